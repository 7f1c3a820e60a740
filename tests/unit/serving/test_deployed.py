"""Requests reach the revision they should; another one that is slow, fails or only gets copies changes no answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from serving.deployed import COPIES, SMALL, Deployed, VersionNotServed
from serving.predictor import Call, Unavailable
from tests.unit.serving.test_router import revision
from throughline.records import Revision, RevisionSet, Sticky
from throughline.usecase.requests import BadRequest


class FakePredictor:
    """Answers with the name of its revision, the row and the thread."""

    def __init__(self, revision: Revision) -> None:
        self.revision = revision
        self.calls: list[Call] = []
        self.go = threading.Event()
        self.go.set()
        self.fails = False

    def predict(self, calls: Sequence[Call]) -> list[Any]:
        self.go.wait(10)
        self.calls += calls
        if self.fails:
            return [Unavailable("no")] * len(calls)
        thread = threading.get_ident()
        return [[(self.revision.revision, key, thread) for key in call.columns["k"]] for call in calls]


class World:
    def __init__(self, *made: tuple[str, str, float], quick: bool = True, sticky: Sticky | None = None) -> None:
        revisions = [revision(*one).model_copy(update={"version": n}) for n, one in enumerate(made, 1)]
        self.predictors = {one.revision: FakePredictor(one) for one in revisions}
        self.dropped: list[str] = []
        given: Any = self.predictors
        self.deployed = Deployed(
            RevisionSet(usecase="u", revisions=tuple(revisions), sticky=sticky), given, quick, 1, self.dropped.append
        )

    def ask(self, *keys: Any, version: str | None = None, **headers: str) -> list[Any]:
        named = {f"x-throughline-{name}": value for name, value in headers.items()}
        return asyncio.run(self.deployed.answer({"k": list(keys)}, named, 0.0, version))


def test_a_small_request_to_the_only_revision_is_answered_in_the_event_loop() -> None:
    world, here = World(("old", "stable", 1.0)), threading.get_ident()
    assert {thread for *_, thread in world.ask(*range(SMALL))} == {here}
    assert here not in {thread for *_, thread in world.ask(*range(SMALL + 1))}
    assert here not in {thread for *_, thread in World(("old", "stable", 1.0), quick=False).ask(1)}


def test_beside_another_revision_each_has_its_own_thread() -> None:
    world = World(("old", "stable", 0.5), ("new", "canary", 0.5))
    threads = {world.ask(1, revision=name)[0][2] for name in ("old", "new")}
    assert len(threads | {threading.get_ident()}) == 3


def test_a_slow_revision_holds_up_no_other() -> None:
    world = World(("old", "stable", 1.0), ("new", "canary", 0.0))
    world.predictors["new"].go.clear()

    async def both() -> None:
        slow = asyncio.create_task(world.deployed.answer({"k": [1]}, {"x-throughline-revision": "new"}, 0.0))
        for _ in range(20):
            assert (await world.deployed.answer({"k": [1]}, {}, 0.0))[0][0] == "old"
        assert not slow.done()
        world.predictors["new"].go.set()
        assert (await slow)[0][0] == "new"

    asyncio.run(both())


def test_a_tester_reaches_a_revision_by_header_and_an_unknown_one_is_refused() -> None:
    world = World(("old", "stable", 1.0), ("new", "canary", 0.0))
    assert world.ask(1)[0][0] == "old"
    assert world.ask(1, revision="new")[0][0] == "new"
    with pytest.raises(BadRequest, match=r"v9.*is not served: these are old, new"):
        world.ask(1, revision="v9")
    with pytest.raises(BadRequest, match=r"traffic.*production, load_test, shadow, test"):
        world.ask(1, traffic="holiday")


def test_a_version_reaches_the_revision_that_has_it() -> None:
    world = World(("old", "stable", 1.0), ("new", "canary", 0.0))
    assert [world.ask(1, version=version)[0][0] for version in ("1", "2")] == ["old", "new"]
    with pytest.raises(VersionNotServed, match=r"'3' is not served, 1, 2 is"):
        world.ask(1, version="3")


def test_rows_of_a_batch_stay_with_the_revisions_of_their_keys_and_in_order() -> None:
    world = World(("old", "stable", 0.5), ("new", "canary", 0.5), sticky=Sticky(key="k", salt="s"))
    batch = [(name, key) for name, key, _ in world.ask(*range(50))]
    assert [key for _, key in batch] == list(range(50))
    assert {name for name, _ in batch} == {"old", "new"}
    assert batch == [(world.ask(key)[0][0], key) for key in range(50)]


def test_a_shadow_gets_a_copy_and_changes_no_answer_though_it_fails() -> None:
    world = World(("old", "stable", 1.0), ("copy", "shadow", 1.0))
    world.predictors["copy"].fails = True
    assert [name for name, *_ in world.ask(1, 2)] == ["old", "old"]
    world.deployed.close()
    (copied,) = world.predictors["copy"].calls
    assert (copied.columns, copied.traffic) == ({"k": [1, 2]}, "shadow")
    assert {call.traffic for call in world.predictors["old"].calls} == {"production"}


def test_copies_that_a_shadow_has_no_time_for_are_dropped_and_counted() -> None:
    world = World(("old", "stable", 1.0), ("copy", "shadow", 1.0))
    world.predictors["copy"].go.clear()
    for key in range(COPIES + 10):
        assert world.ask(key)[0][:2] == ("old", key)
    # one is being scored at most
    assert len(world.dropped) in (9, 10)
    world.predictors["copy"].go.set()
    world.deployed.close()
    assert len(world.predictors["copy"].calls) + len(world.dropped) == COPIES + 10


def test_what_is_sent_as_a_shadow_is_copied_no_further() -> None:
    world = World(("old", "stable", 1.0), ("copy", "shadow", 1.0))
    world.ask(1, traffic="shadow")
    world.deployed.close()
    assert world.predictors["copy"].calls == []


def test_closing_answers_what_waits() -> None:
    world = World(("old", "stable", 1.0), quick=False)
    world.predictors["old"].go.clear()

    async def ask() -> list[Any]:
        waiting = [asyncio.create_task(world.deployed.answer({"k": [n]}, {}, 0.0)) for n in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(world.deployed.close))
        world.predictors["old"].go.set()
        answers = await asyncio.gather(*waiting)
        await closing
        return answers

    assert [answer[0][1] for answer in asyncio.run(ask())] == list(range(5))
