"""The error type for every failure with a known reason."""


class ThroughlineError(Exception):
    """Its message is one line for people: what, where, what to do. Process boundaries print it without a traceback,
    which goes to the log."""
