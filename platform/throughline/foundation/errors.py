"""The one error type a person is meant to read.

Owns: how a refusal is worded. Does not own: what is done about it.
"""


class ThroughlineError(Exception):
    """Something was refused or failed for a known reason.

    The message is one line that says what, where and what to do. Process boundaries print it without a
    traceback; the traceback belongs in the log.
    """
