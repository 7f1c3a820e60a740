"""What is declared about a table, and how brought columns differ from held ones: pure.

Owns: the words for both. Does not own: enforcing them (`table.py`), verdicts on the content of a day (`validation/`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from deltalake import Schema


@dataclass(frozen=True)
class Rules:
    """What is declared about a table. A write that brings rules makes the table keep them, for all who write to it.

    required: columns without nulls. checks: name -> SQL that is true of every row (unknown is not true).
    columns:  those that may be new, gone or of another type than before; any other difference is refused.
    """

    required: Collection[str] = ()
    checks: Mapping[str, str] = field(default_factory=dict)
    columns: Collection[str] = ()

    @property
    def constraints(self) -> dict[str, str]:
        """Name -> SQL of what the table itself shall refuse."""
        return {**{f"{name}_not_null": f"{name} IS NOT NULL" for name in self.required}, **self.checks}


@dataclass(frozen=True)
class Differences:
    """Per column that differs, its type before and now; None where it was or is not there."""

    columns: Mapping[str, tuple[str | None, str | None]]

    @property
    def only_new(self) -> bool:
        return all(before is None for before, _ in self.columns.values())

    def undeclared(self, rules: Rules | None) -> str:
        """The differences that `rules` do not allow, in words; empty when there are none."""
        declared = set(rules.columns) if rules else set()
        return str(Differences({name: kinds for name, kinds in self.columns.items() if name not in declared}))

    def __str__(self) -> str:
        return "; ".join(f"column {name} {_told(*kinds)}" for name, kinds in sorted(self.columns.items()))


def compare(held: Schema, brought: Schema) -> Differences:
    """How the columns of two schemas differ; their order and whether nulls are allowed is no difference."""
    before = {field.name: _kind(field.type) for field in held.fields}
    now = {field.name: _kind(field.type) for field in brought.fields}
    pairs = {name: (before.get(name), now.get(name)) for name in {**before, **now}}
    return Differences({name: kinds for name, kinds in pairs.items() if kinds[0] != kinds[1]})


def _kind(delta_type: object) -> str:
    kind = getattr(delta_type, "type", None)
    return kind if kind and kind not in ("struct", "array", "map") else str(delta_type)


def _told(before: str | None, now: str | None) -> str:
    if before is None:
        return f"is new ({now})"
    return f"is missing (was {before})" if now is None else f"was {before} and is {now}"
