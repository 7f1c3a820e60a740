"""Where rows come from: whatever a use case declares, through one small protocol (`source.py`)."""
