"""Sources of raw rows: files, databases, pushed rows, a module of the use case; one protocol (`source.py`)."""
