"""MLflow as the platform uses it: REST client, runs, artifacts."""
