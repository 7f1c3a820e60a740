"""Dagster's graph as its clients see it: launching, following, planning runs."""
