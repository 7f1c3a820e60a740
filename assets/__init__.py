"""The Dagster graph: the only folder that imports Dagster. Start at `definitions.py`."""
