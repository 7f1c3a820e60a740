"""Trainers that any use case can name in its declaration; one module each, run as `python -m MODULE SPEC.json`."""
