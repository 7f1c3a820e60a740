"""Load tests of the live endpoint: scenarios as code, each held against its service levels. `python -m loadtests`."""
