"""Clients of the Dagster graph: launching, following and planning runs."""
