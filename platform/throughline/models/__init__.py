"""A model version as such: the served format, its signature, where it came from, how good its scores are."""
