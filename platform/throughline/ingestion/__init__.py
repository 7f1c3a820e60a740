"""Bringing declared sources into raw tables, a local day at a time."""
