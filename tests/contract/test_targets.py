"""What a rollout relies on in every target: this machine's model server, and KServe in Standard mode.

The model server is a real one over a fake feature store. Of KServe the objects and their order are real; the cluster is
a fake (on the released controller: `tests/drill/test_kserve.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.conftest import MODEL_SERVER, started
from tests.support.fake_cluster import FakeCluster
from tests.support.fake_store_server import put_revision
from tests.support.kserve_revisions import CLUSTER, of, revision
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.records import Revision, RevisionSet, Sticky
from throughline.rollout.kserve.target import KServeServers
from throughline.rollout.local import LocalTarget
from throughline.rollout.target import Refused, in_effect
from throughline.services.ports import take_ports

NAME = "flight_delay"


@dataclass
class Place:
    """A target, two revisions that can be served there, and one whose files were changed."""

    target: Any  # the part of `Target` that both have: capabilities, apply, observe
    one: Revision
    two: Revision
    bad: Revision

    def serves(self, revisions: RevisionSet) -> bool:
        return in_effect(revisions, self.target.observe(NAME))


def weighted(role: str, weight: float, one: Revision) -> Revision:
    return one.model_copy(update={"role": role, "weight": weight})


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    settings = Settings(home=tmp_path_factory.mktemp("home"), port_base=take_ports())
    bad = put_revision(settings, version=3, bias=2.0)
    (settings.serving_home / NAME / "3" / "model.onnx").write_bytes(b"changed")
    two, one = put_revision(settings, version=2, bias=0.1), put_revision(settings, version=1)
    with started(settings, "model-server", [sys.executable, str(MODEL_SERVER)], "model_http", "/v2/health/ready"):
        yield Place(LocalTarget(settings), one, two, bad)


@pytest.fixture(scope="module")
def kserve() -> Place:
    cluster = FakeCluster(broken=frozenset({revision(3).revision}))
    return Place(KServeServers(CLUSTER, cluster, sleep=lambda _: None), revision(1), revision(2), revision(3))


@pytest.fixture(params=["local", "kserve"])
def place(request: pytest.FixtureRequest) -> Place:
    """With the first revision alone."""
    found: Place = request.getfixturevalue(request.param)
    found.target.apply(of(found.one))
    return found


def test_a_set_serves_when_apply_returns_and_applying_it_again_is_harmless(place: Place) -> None:
    wanted = of(weighted("stable", 0.9, place.one), weighted("canary", 0.1, place.two))
    for _ in range(2):
        place.target.apply(wanted)
        assert place.serves(wanted)


def test_a_canary_gets_its_share_in_steps_becomes_stable_and_goes_back(place: Place) -> None:
    for share in (0.1, 0.25, 0.5):
        step = of(weighted("stable", 1 - share, place.one), weighted("canary", share, place.two))
        place.target.apply(step)
        assert place.serves(step)
    for alone in (place.two, place.one):
        place.target.apply(of(alone))
        assert place.serves(of(alone))


def test_a_shadow_stands_beside_a_stable_that_answers_all_and_may_become_the_canary(place: Place) -> None:
    assert place.target.capabilities.mirror
    shadow = of(place.one, weighted("shadow", 0.5, place.two))
    canary = of(weighted("stable", 0.5, place.one), weighted("canary", 0.5, place.two))
    for step in (shadow, canary):
        place.target.apply(step)
        assert place.serves(step)


@pytest.mark.parametrize("role", ["canary", "shadow"])
def test_a_revision_that_cannot_be_served_is_refused_in_one_line_and_what_served_goes_on(
    place: Place, role: str
) -> None:
    beside = weighted("stable", 0.9 if role == "canary" else 1.0, place.one)
    with pytest.raises(Refused, match="changed") as refused:
        place.target.apply(of(beside, weighted(role, 0.1, place.bad)))
    assert "\n" not in str(refused.value)
    assert place.serves(of(place.one))


def test_a_sticky_set_serves_or_is_refused_before_anything_changes(place: Place) -> None:
    sticky = of(
        weighted("stable", 0.5, place.one),
        weighted("canary", 0.5, place.two),
        sticky=Sticky(key="tailnum", salt="one"),
    )
    if place.target.capabilities.sticky:
        place.target.apply(sticky)
        assert place.serves(sticky)
    else:
        with pytest.raises(ThroughlineError, match="cannot carry sticky"):
            place.target.apply(sticky)
        assert place.serves(of(place.one))
