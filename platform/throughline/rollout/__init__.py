"""Putting a model version in front of requests: what a revision is, and the targets that serve it."""
