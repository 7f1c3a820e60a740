"""The version that a rollback returns to follows from the history, also after an interrupted command."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from throughline.foundation.references import ModelReference
from throughline.records import HistoryEvent
from throughline.registry.champions import Line, line_of, rollback_target
from throughline.registry.history import event_of

NOW = datetime(2024, 7, 1, tzinfo=UTC)


def history(*steps: tuple[str, int]) -> list[HistoryEvent]:
    """("champion", 3): u/3 became champion; ("withdrawn", 3): it was rolled back from."""
    found = []
    for number, (action, version) in enumerate(steps):
        reference = f"u/{version}"
        event = event_of(action, reference if action == "withdrawn" else "u", "ada", new=reference)
        found.append(event.model_copy(update={"at": NOW + timedelta(minutes=number)}))
    return found


def u(version: int | None) -> ModelReference | None:
    return None if version is None else ModelReference("u", version)


def returns_to(*steps: tuple[str, int]) -> ModelReference | None:
    """Of a complete history: the champion serves and has the alias."""
    line = line_of(history(*steps))
    return rollback_target(line, line.champion, line.champion)


UP = "champion"
DOWN = "withdrawn"


@pytest.mark.parametrize(
    ("steps", "target"),
    [
        ([], None),
        ([(UP, 1)], None),
        ([(UP, 1), (UP, 2)], 1),
        ([(UP, 1), (UP, 2), (UP, 3)], 2),
        # rolled back from 3: a second rollback returns to the one before, not to 3
        ([(UP, 1), (UP, 2), (UP, 3), (DOWN, 3), (UP, 2)], 1),
        ([(UP, 1), (UP, 2), (UP, 3), (DOWN, 3), (UP, 2), (DOWN, 2), (UP, 1)], None),
        # a new champion after a rollback: what was rolled back from is skipped
        ([(UP, 1), (UP, 2), (DOWN, 2), (UP, 1), (UP, 3)], 1),
        # an earlier one was promoted: the one before it is the one it replaced
        ([(UP, 1), (UP, 2), (UP, 3), (UP, 1)], 3),
        # promoted again after a rollback: it counts again
        ([(UP, 1), (UP, 2), (DOWN, 2), (UP, 1), (UP, 2), (UP, 3)], 2),
    ],
)
def test_a_rollback_returns_to_the_champion_before_the_current_one(steps, target):
    assert returns_to(*steps) == u(target)


def test_other_events_change_no_champion():
    others = [event_of(action, "u/9", "ada", new="u/9") for action in ("note", "decided", "approved", "refused")]
    assert line_of(others) == Line()


@pytest.mark.parametrize(
    ("steps", "serving", "alias", "target"),
    [
        # a rollback from 3 to 2 interrupted after: withdrawal, serving, champion event
        ([(UP, 1), (UP, 2), (UP, 3), (DOWN, 3)], 3, 3, 2),
        ([(UP, 1), (UP, 2), (UP, 3), (DOWN, 3)], 2, 3, 2),
        ([(UP, 1), (UP, 2), (UP, 3), (DOWN, 3), (UP, 2)], 2, 3, 2),
        # a promotion of 3 interrupted after: serving, champion event. Undone, it returns to 2
        ([(UP, 1), (UP, 2)], 3, 2, 2),
        ([(UP, 1), (UP, 2), (UP, 3)], 3, 2, 2),
        # the same of an earlier champion, 1
        ([(UP, 1), (UP, 2), (UP, 3)], 1, 3, 3),
        # nothing is deployed here: the champion is what should be
        ([(UP, 1), (UP, 2)], None, 2, 2),
        # the alias was taken away or moved by hand: the history decides
        ([(UP, 1), (UP, 2)], 2, None, 1),
        ([(UP, 1), (UP, 2)], 2, 7, 1),
        # the first promotion was interrupted before its event: there is no champion to return to
        ([], 1, None, None),
    ],
)
def test_a_repeated_rollback_completes_the_interrupted_command(steps, serving, alias, target):
    assert rollback_target(line_of(history(*steps)), u(serving), u(alias)) == u(target)


moves = st.lists(st.one_of(st.integers(1, 5), st.just("rollback")), max_size=20)


@settings(max_examples=300)
@given(moves)
def test_rollbacks_undo_promotions_like_a_stack_without_those_rolled_back_from(steps):
    """Against a plain list: a promotion puts a version on top, wherever it was; a rollback takes the top away."""
    steps_taken: list[tuple[str, int]] = []
    stack: list[int] = []
    for step in steps:
        target = returns_to(*steps_taken)
        if step != "rollback":
            steps_taken.append((UP, step))
            stack = [*(one for one in stack if one != step), step]
        elif len(stack) > 1:
            top = stack.pop()
            assert target == u(stack[-1])
            steps_taken += [(DOWN, top), (UP, stack[-1])]
        else:
            assert target is None
    line = line_of(history(*steps_taken))
    assert line.champions == tuple(map(u, stack))
    assert line.champion not in line.former
    every = {u(version) for action, version in steps_taken if action == UP}
    assert line.former == every - {line.champion}


@pytest.mark.parametrize(
    ("steps", "returned"),
    [
        (["started: canary 10%"], set()),
        (["started: canary 10%", "advanced: canary 50%", "promoted"], set()),
        (["started: canary 10%", "rolled back"], {u(2)}),
        (["started: canary 10%", "paused", "aborted"], {u(2)}),
        (["started: canary 10%", "rolled back", "started: canary 10%", "promoted"], set()),
    ],
)
def test_a_version_whose_newest_rollout_ended_without_a_promotion_was_returned(steps, returned):
    rollout = [event_of("rollout", "u/2", "graph", old="u/1", new=step) for step in steps]
    line = line_of([*history((UP, 1)), *rollout])
    assert line.returned == returned
    assert line.champions == (u(1),)
