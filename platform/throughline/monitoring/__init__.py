"""What became of predictions, and when that is reason enough to retrain."""
