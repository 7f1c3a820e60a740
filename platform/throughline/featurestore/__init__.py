"""Feast on pinned Delta versions: the offline store plug-in, the registry, online materialisation and reading."""
