"""The `throughline` command: one module per group of commands, put together in `main`."""
