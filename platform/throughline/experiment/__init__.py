"""Training runs: tracking, fingerprints, and the path from a dataset to a registered model version."""
