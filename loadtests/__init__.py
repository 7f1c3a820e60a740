"""Load on the live endpoint, held against service levels: `python -m loadtests`."""
