"""The champion of a model by its history: pure.

Owns: the order of champions as the events give it, the version that a rollback returns to. Does not own: serving a
version, moving the alias (`rollout/promotion.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from throughline.foundation.references import ModelReference
from throughline.records import HistoryEvent

BACK = ("rolled back", "aborted")  # what the event of a rollout calls an end without a promotion


@dataclass(frozen=True)
class Line:
    """The champions in the order they last became one, without those that were withdrawn since.

    `last`: the version in the newest `champion` event, withdrawn or not. `returned`: versions whose newest rollout was
    rolled back or aborted: only `promote` starts another.
    """

    champions: tuple[ModelReference, ...] = ()
    withdrawn: frozenset[ModelReference] = frozenset()
    last: ModelReference | None = None
    returned: frozenset[ModelReference] = frozenset()

    @property
    def champion(self) -> ModelReference | None:
        return self.champions[-1] if self.champions else None

    @property
    def former(self) -> frozenset[ModelReference]:
        """Champions that were replaced or withdrawn: only `promote` and `rollback` serve them again."""
        return self.withdrawn.union(self.champions[:-1])


def line_of(history: Iterable[HistoryEvent]) -> Line:
    """From events, oldest first. A withdrawn version that becomes champion again is in the order again."""
    champions: list[ModelReference] = []
    withdrawn: set[ModelReference] = set()
    returned: set[ModelReference] = set()
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
        elif event.action == "rollout":
            version = ModelReference.parse(event.target)
            returned = returned | {version} if event.new in BACK else returned - {version}
    return Line(tuple(champions), frozenset(withdrawn), last, frozenset(returned))


def rollback_target(line: Line, serving: ModelReference | None, alias: ModelReference | None) -> ModelReference | None:
    """The version that a rollback returns to: the champion before the current one, None when there is none.

    Withdrawn versions are not in the order, so that a second rollback returns to the champion before that. It is the
    current champion when an interrupted rollback (a withdrawn version serves or has the alias) or an interrupted
    promotion (another version serves) has to be completed first.
    """
    if {serving, alias} & line.withdrawn or serving != line.champion:
        return line.champion
    return line.champions[-2] if len(line.champions) > 1 else None
