"""The built-in use case's trainer."""
