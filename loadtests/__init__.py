"""Load tests of the live endpoint against service levels: `python -m loadtests`."""
