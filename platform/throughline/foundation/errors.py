"""The error type for every failure with a known reason, and the reason in an error of pydantic."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class ThroughlineError(Exception):
    """Its message is one line: what, where, what to do. Processes print it; the traceback goes to the log."""


def first_problem(error: ValidationError) -> tuple[str, str]:
    """The field at fault (dotted; empty: the whole) and the message of the first problem, without the value."""
    first = error.errors(include_input=False, include_url=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
