"""Servers first, then weights, then clean-up: from any state, after any interruption, and no request to nobody."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_cluster import FakeCluster
from tests.support.kserve_revisions import CLUSTER, of, revision
from throughline.foundation.errors import ThroughlineError
from throughline.records import RevisionSet, Sticky
from throughline.rollout.kserve.cluster import predictor_name, service_name
from throughline.rollout.kserve.reading import Objects
from throughline.rollout.kserve.steps import next_steps
from throughline.rollout.kserve.target import KServeServers
from throughline.rollout.target import Capabilities, Refused, in_effect

STABLE = of(revision(1))
CANARY = of(revision(1, weight=0.9), revision(2, "canary", 0.1))
PROMOTED = of(revision(2))
SHADOW = of(revision(1), revision(2, "shadow", 0.5))
SETS = [STABLE, CANARY, of(revision(1, weight=0.5), revision(2, "canary", 0.5)), SHADOW, PROMOTED, of(revision(3))]


class Watched(FakeCluster):
    """Fails the test when the Gateway sends requests to a Service without a Pod that answers."""

    def objects(self, usecase: str) -> Objects:
        found = super().objects(usecase)
        nobody = {service for service in self.carried if not self.ready(service)}
        assert not nobody, (nobody, self.log)
        return found


class Interrupted(BaseException):
    """As by a kill of the controller."""


def target(cluster: FakeCluster, **values: Any) -> KServeServers:
    return KServeServers(CLUSTER, cluster, sleep=lambda _: None, **values)


def test_a_canary_is_ready_before_it_has_a_weight_and_the_old_one_goes_last() -> None:
    cluster = Watched()
    for step in (STABLE, CANARY, PROMOTED):
        target(cluster).apply(step)
        assert in_effect(step, target(cluster).observe("flight_delay"))
    assert cluster.log == [
        "put InferenceService flight-delay-v1-111111111111",
        "put HTTPRoute flight-delay",
        "put InferenceService flight-delay-v2-222222222222",
        "put HTTPRoute flight-delay",
        "put HTTPRoute flight-delay",
        "delete InferenceService flight-delay-v1-111111111111",
    ]


def test_a_shadow_is_a_server_of_its_own_and_is_observed_as_one() -> None:
    cluster = Watched()
    for step in (STABLE, SHADOW, CANARY):
        target(cluster).apply(step)
        assert in_effect(step, target(cluster).observe("flight_delay"))
    assert "delete InferenceService flight-delay-v2-222222222222-shadow" in cluster.log


def test_repeating_a_set_that_serves_changes_nothing() -> None:
    cluster = Watched()
    target(cluster).apply(CANARY)
    before = list(cluster.log)
    target(cluster).apply(CANARY)
    assert cluster.log == before


def test_a_canary_that_does_not_start_is_refused_with_its_last_words_and_removed() -> None:
    cluster = Watched(broken=frozenset({revision(2).revision}))
    target(cluster).apply(STABLE)
    with pytest.raises(Refused, match=r"exit code 1 \(Model late/2 is refused: changed\)") as refused:
        target(cluster).apply(CANARY)
    assert "\n" not in str(refused.value)
    assert in_effect(STABLE, target(cluster).observe("flight_delay"))
    target(cluster).apply(STABLE)
    assert sorted(cluster.services) == [service_name(CLUSTER, revision(1))]


def test_a_server_that_takes_requests_is_not_removed_whatever_its_pods_say() -> None:
    cluster = FakeCluster()
    target(cluster).apply(CANARY)
    cluster.broken = frozenset({revision(2).revision})
    with pytest.raises(Refused):
        target(cluster).apply(of(revision(1, weight=0.5), revision(2, "canary", 0.5)))
    assert not [line for line in cluster.log if line.startswith("delete")]


def test_what_is_not_ready_at_the_deadline_is_an_error_that_names_what_it_waits_for() -> None:
    class Never(FakeCluster):
        def objects(self, usecase: str) -> Objects:
            return replace(super().objects(usecase), deployments={})

    passed = iter(range(1000))
    reports: list[str] = []
    waiting = target(Never(), ready_s=20, clock=lambda: next(passed), report=reports.append)
    with pytest.raises(ThroughlineError, match=r"within 20 s.*KServe has made no Deployment"):
        waiting.apply(STABLE)
    assert len(reports) <= 3  # a reason is reported once, not at each look


def test_a_new_image_is_put_into_the_same_server() -> None:
    cluster = Watched()
    target(cluster).apply(STABLE)
    newer = replace(CLUSTER, image=f"registry.example/platform@sha256:{'b' * 64}")
    cluster.log.clear()
    KServeServers(newer, cluster, sleep=lambda _: None).apply(STABLE)
    assert cluster.log == ["put InferenceService flight-delay-v1-111111111111"]


@pytest.mark.parametrize(
    ("mode", "wanted", "lacks"),
    [
        ("standard", of(*CANARY.revisions, sticky=Sticky(key="tailnum", salt="s")), "sticky"),
        ("knative", of(*CANARY.revisions, sticky=Sticky(key="tailnum", salt="s")), "sticky"),
        ("knative", SHADOW, "mirror"),
    ],
)
def test_a_set_that_the_mode_cannot_carry_is_refused_before_anything_is_done(mode, wanted, lacks) -> None:
    cluster = FakeCluster()
    servers = KServeServers(replace(CLUSTER, mode=mode, word="X"), cluster)
    with pytest.raises(ThroughlineError, match=f"mode X cannot carry {lacks}"):
        servers.apply(wanted)
    assert cluster.log == []
    assert servers.capabilities == Capabilities(weights=True, sticky=False, mirror=mode == "standard")


@hypothesis.settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(SETS), st.integers(0, 12)), min_size=1, max_size=6))
def test_whatever_is_deployed_and_interrupted_the_last_set_serves_and_nobody_is_sent_to_nobody(
    course: list[tuple[RevisionSet, int]],
) -> None:
    """Each set is worked on for some looks, then the controller is killed and starts anew with the next set."""
    cluster = Watched()
    for wanted, looks in course:
        left = iter(range(looks))

        def interrupt(_: float, left=left) -> None:
            if next(left, None) is None:
                raise Interrupted

        try:
            KServeServers(CLUSTER, cluster, sleep=interrupt).apply(wanted)
        except Interrupted:
            continue
    last = course[-1][0]
    target(cluster).apply(last)
    assert in_effect(last, target(cluster).observe("flight_delay"))
    assert set(cluster.services) == {service_name(CLUSTER, one) for one in last.revisions}
    assert next_steps(CLUSTER, last, cluster.objects("flight-delay")).done
    assert cluster.carried == {predictor_name(name) for name in cluster.services}
