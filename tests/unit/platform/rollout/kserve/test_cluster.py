"""The mode of a cluster is detected or refused; names of objects are names that Kubernetes takes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.kserve_revisions import CLUSTER, revision
from throughline.foundation.errors import ThroughlineError
from throughline.rollout.kserve.cluster import (
    GATEWAY_API,
    KNATIVE_API,
    detect,
    host,
    predictor_name,
    service_name,
    usecase_name,
)

BOTH = {GATEWAY_API, KNATIVE_API, "v1", "apps/v1"}


def config(mode: object) -> dict[str, Any]:
    return {"data": {"deploy": json.dumps({"defaultDeploymentMode": mode})}}


@pytest.mark.parametrize(
    ("word", "mode"),
    [("Standard", "standard"), ("RawDeployment", "standard"), ("Knative", "knative"), ("Serverless", "knative")],
)
def test_the_mode_is_the_clusters_own_in_its_own_word(word: str, mode: str) -> None:
    assert detect(config(word), BOTH) == (mode, word)


@pytest.mark.parametrize(
    ("found", "apis", "problem"),
    [
        (config("ModelMesh"), BOTH, "mode ModelMesh, which is not supported"),
        (config("Standard"), BOTH - {GATEWAY_API}, "no gateway.networking.k8s.io/v1"),
        (config("Knative"), BOTH - {KNATIVE_API}, "no serving.knative.dev/v1"),
        ({"data": {}}, BOTH, "names no defaultDeploymentMode"),
        ({"data": {"deploy": "{"}}, BOTH, "names no defaultDeploymentMode"),
        ({"data": {"deploy": "[]"}}, BOTH, "names no defaultDeploymentMode"),
        ({}, BOTH, "names no defaultDeploymentMode"),
    ],
)
def test_a_cluster_that_carries_no_rollout_is_refused_in_one_line(found: Any, apis: set[str], problem: str) -> None:
    with pytest.raises(ThroughlineError, match=problem) as refused:
        detect(found, apis)
    assert "\n" not in str(refused.value)


def test_an_image_that_may_change_and_a_gateway_without_its_namespace_are_refused() -> None:
    for image in ("platform:1", "platform", f"platform@sha256:{'a' * 63}"):
        with pytest.raises(ThroughlineError, match="digest"):
            replace(CLUSTER, image=image)
    with pytest.raises(ThroughlineError, match="NAMESPACE/NAME"):
        replace(CLUSTER, gateway="kserve")


@given(
    usecase=st.text(st.sampled_from("abz09_-"), min_size=1, max_size=60),
    name=st.from_regex(r"v[0-9]{1,9}-[0-9a-f]{12}", fullmatch=True),
    namespace=st.from_regex(r"[a-z][a-z0-9-]{0,18}[a-z0-9]", fullmatch=True),
)
def test_every_name_is_one_that_kubernetes_takes(usecase: str, name: str, namespace: str) -> None:
    cluster = replace(CLUSTER, namespace=namespace)
    made = [
        service_name(cluster, revision(1, role=role, weight=1.0, usecase=usecase, revision=name))
        for role in ("stable", "shadow")
    ]
    assert len(set(made)) == 2  # a shadow is a server of its own
    for each in (*made, usecase_name(cluster, usecase)):
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", each)
        assert len(f"{predictor_name(each)}-{namespace}") <= 63  # the first label of the host that KServe makes


def test_different_revisions_have_different_names_also_when_they_are_shortened() -> None:
    long = {"usecase": "delays_of_flights_leaving_new_york_in_the_winter_of_2013"}
    names = {service_name(CLUSTER, revision(version, **long)) for version in range(1, 16)}
    assert len(names) == 15
    assert service_name(CLUSTER, revision(2)) == "flight-delay-v2-222222222222"
    assert host(CLUSTER, "flight_delay") == "flight-delay.ml.example.com"
