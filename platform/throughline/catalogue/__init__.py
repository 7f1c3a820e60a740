"""The catalogue of features."""
