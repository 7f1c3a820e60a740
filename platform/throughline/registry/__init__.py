"""Model versions: the served format, the graph that precedes a model's core, and the registry over MLflow."""
