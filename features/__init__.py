"""What the features are: sources, one dbt project, Feast definitions; a folder per use case."""
