"""The objects of a set of revisions: as they stand in the snapshots, and as the CRDs of the cluster take them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.support.kserve_revisions import CLUSTER, of, revision
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT, load_settings
from throughline.rollout.kserve.bundle import bundle
from throughline.rollout.kserve.manifests import WHOLE, inference_service, knative_service, route, weights

TESTBED = Path(os.environ.get("K8S_TESTBED", PROJECT_ROOT.parent / "shared" / "k8s-testbed"))
CANARY = of(revision(1, weight=0.9), revision(2, "canary", 0.1))
OBJECTS: dict[str, Any] = {
    "inference-service": inference_service(CLUSTER, revision(1)),
    "inference-service-shadow": inference_service(CLUSTER, revision(2, "shadow", 0.25)),
    "route-stable": route(CLUSTER, of(revision(1))),
    "route-canary": route(CLUSTER, CANARY),
    "route-shadow": route(CLUSTER, of(revision(1), revision(2, "shadow", 0.25))),
    "knative-canary": knative_service(CLUSTER, CANARY),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_as_it_was_reviewed(name: str) -> None:
    """After a change on purpose: `WRITE_SNAPSHOTS=1 pytest` writes them, to be read in the diff."""
    path, text = (
        Path(__file__).with_name(f"snapshot-{name}.yaml"),
        yaml.safe_dump(OBJECTS[name], sort_keys=False, width=120),
    )
    if os.environ.get("WRITE_SNAPSHOTS"):
        path.write_text(text)
    assert path.read_text() == text


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """The schemas of the API server by kind."""
    folder, found = TESTBED / "crds", {}
    if not folder.is_dir():
        pytest.skip(f"no CRDs: {folder} is not there (K8S_TESTBED names another place)")
    for name in ("serving.kserve.io_inferenceservices", "gateway.networking.k8s.io_httproutes"):
        crd = yaml.load(gzip.decompress((folder / f"{name}.yaml.gz").read_bytes()), yaml.CSafeLoader)
        for version in crd["spec"]["versions"]:
            kind = f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]
            found[kind] = version["schema"]["openAPIV3Schema"]
    return found


@pytest.mark.parametrize("name", OBJECTS)
def test_the_crds_take_an_object_and_know_all_of_its_fields(name: str, schemas: dict[str, Any]) -> None:
    content = OBJECTS[name]
    schema = schemas[content["apiVersion"], content["kind"]]
    jsonschema.Draft202012Validator(schema).validate(content)  # `validate` checks 2 MB of schema first
    assert unknown(content["spec"], schema["properties"]["spec"]) == []
    assert unknown({"predictr": 1}, schema["properties"]["spec"]) == ["predictr"]


def unknown(content: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """Fields of which the schema has nothing: the API server drops them, or refuses them when it is strict."""
    if isinstance(content, list):
        return [problem for each in content for problem in unknown(each, schema["items"], path)]
    if (
        not isinstance(content, dict)
        or "additionalProperties" in schema
        or schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        return []
    known = schema.get("properties", {})
    return [
        problem
        for key, value in content.items()
        for problem in (unknown(value, known[key], f"{path}{key}.") if key in known else [f"{path}{key}"])
    ]


def test_a_server_is_the_same_at_every_step_of_a_rollout() -> None:
    """A changed template would start its Pods anew."""
    steps = [revision(2, "canary", 0.1), revision(2, "canary", 0.5), revision(2)]
    one, *others = [inference_service(CLUSTER, step) for step in steps]
    assert others == [one, one]


def test_a_server_has_explicit_resources_and_mounts_its_files_by_version_and_digest() -> None:
    predictor = inference_service(CLUSTER, revision(2))["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert container["resources"] == {kind: {"cpu": "1", "memory": "1Gi"} for kind in ("requests", "limits")}
    (mount,) = [one for one in container["volumeMounts"] if one["mountPath"].endswith("/serving/flight_delay")]
    assert mount["subPath"] == f"deployments/flight_delay/v2-{'2' * 64}"
    assert mount["readOnly"]
    assert predictor["minReplicas"] == predictor["maxReplicas"] == 1


def test_what_a_server_mounts_is_what_the_bundle_holds(tmp_path: Path) -> None:
    settings, one = load_settings(home=tmp_path), revision(2, "canary", 0.1)
    placed = settings.serving_home / "flight_delay"
    for file in (
        "2/model.onnx",
        "2/model.sig",
        "releases/2/release.json",
        "backgrounds/222222222222.json",
        "1/model.onnx",
    ):
        (placed / file).parent.mkdir(parents=True, exist_ok=True)
        (placed / file).write_text(file)
    folder = bundle(settings, one)
    mounts = inference_service(CLUSTER, one)["spec"]["predictor"]["containers"][0]["volumeMounts"]
    assert str(folder.relative_to(tmp_path)) in [mount.get("subPath") for mount in mounts]
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"revisions.json", "2/model.onnx", "2/model.sig", "releases/2/release.json"} <= held
    assert "1/model.onnx" not in held
    assert bundle(settings, one) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=5))
def test_weights_sum_to_the_whole_and_none_is_lost(given_shares: list[float]) -> None:
    shares = [share / sum(given_shares) for share in given_shares]
    made = weights(shares)
    assert sum(made) == WHOLE
    assert all(part >= 1 for part in made)
    # a share too small for a part of its own takes one from the largest
    assert all(abs(part - share * WHOLE) <= len(shares) for part, share in zip(made, shares, strict=True))


def test_a_share_of_nothing_gets_nothing() -> None:
    assert weights([1.0, 0.0]) == [WHOLE, 0]
    assert weights([0.9, 0.1]) == [9000, 1000]
    assert weights([0.99999, 0.00001]) == [WHOLE - 1, 1]


def test_knative_carries_whole_percents_of_two_revisions() -> None:
    for refused in (
        of(revision(1, weight=0.995), revision(2, "canary", 0.005)),
        of(revision(1), revision(2, "shadow", 0.5)),
        of(revision(1, weight=0.8), revision(2, "canary", 0.1), revision(3, "canary", 0.1)),
    ):
        with pytest.raises(ThroughlineError, match="is not deployed"):
            knative_service(CLUSTER, refused)
    rolled_out = knative_service(CLUSTER, of(revision(2)))
    assert "canaryTrafficPercent" not in rolled_out["spec"]["predictor"]
    canary = OBJECTS["knative-canary"]["spec"]["predictor"]
    assert canary.pop("canaryTrafficPercent") == 10
    assert canary == rolled_out["spec"]["predictor"]  # promoted without a new Knative revision
