"""Replaying recorded days."""
