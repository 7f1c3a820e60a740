"""What is claimed about speed, measured: each benchmark is a command that prints a ratio against its peers.

Owns: the measurements and `docs/benchmarks.md`. Does not own: any code that is measured.
`python -m benchmarks` runs all of them; `python -m benchmarks.NAME [--quick] --json` one.
"""
