"""The platform library: everything a use case does not have to write. Knows no use case and no Dagster."""
