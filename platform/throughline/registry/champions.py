"""Who is champion by the history of a model: pure.

Owns: the order of champions as the history's events give it, and the version that a rollback returns to. Does not own:
serving a version or moving the alias (`rollout/promotion.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from throughline.foundation.references import ModelReference
from throughline.records import HistoryEvent


@dataclass(frozen=True)
class Line:
    """The champions in the order they last became one, without those rolled back from since.

    `last`: whom the newest event about a champion names, also when that one was rolled back from.
    """

    champions: tuple[ModelReference, ...] = ()
    withdrawn: frozenset[ModelReference] = frozenset()
    last: ModelReference | None = None

    @property
    def champion(self) -> ModelReference | None:
        return self.champions[-1] if self.champions else None

    @property
    def former(self) -> frozenset[ModelReference]:
        """Whom people or a better candidate replaced: only people bring them back."""
        return self.withdrawn.union(self.champions[:-1])


def line_of(history: Iterable[HistoryEvent]) -> Line:
    """From events, oldest first. Who becomes champion again after a rollback stands in the line again."""
    champions: list[ModelReference] = []
    withdrawn: set[ModelReference] = set()
    last = None
    for event in history:
        if event.action == "champion" and event.new:
            last = ModelReference.parse(event.new)
            withdrawn.discard(last)
            champions = [*(one for one in champions if one != last), last]
        elif event.action == "withdrawn":
            gone = ModelReference.parse(event.target)
            withdrawn.add(gone)
            champions = [one for one in champions if one != gone]
    return Line(tuple(champions), frozenset(withdrawn), last)


def rollback_target(line: Line, serving: ModelReference | None, alias: ModelReference | None) -> ModelReference | None:
    """To whom a rollback returns: the champion before the current one, or None when there is none.

    Versions rolled back from are not in the line: a second rollback goes one further back, and none goes forth again.
    When something was left undone (of a rollback: who serves or has the alias was withdrawn; of a promotion: who serves
    is not the champion) it is the champion by the history.
    """
    unfinished = bool({serving, alias} & line.withdrawn) or serving != line.champion
    if unfinished:
        return line.champion
    return line.champions[-2] if len(line.champions) > 1 else None
