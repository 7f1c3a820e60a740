"""A launch as Kubernetes objects: what they are for one launch (`mpijob.json`), and what holds for all."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughline.foundation.errors import ThroughlineError
from throughline.launch.kubernetes import (
    LARGEST_PARAMETERS,
    LONGEST_NAME,
    job_name,
    mpijob,
    parameters_of,
)
from throughline.launch.protocol import LaunchSpec
from throughline.usecase import Resources

SNAPSHOT = Path(__file__).with_name("mpijob.json")
ENV = {"AWS_PROFILE": "lake", "PRICE": "5$"}
SPEC = LaunchSpec("training.worker", Path("/here/given.json"), 3, 1800, Path("/here/the.log"), Path("/here"), ENV)
WORKER = Resources(cpu=2, memory="4Gi", gpu=1)
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def job(spec: LaunchSpec = SPEC, name: str = "trips-7", **changed: Any) -> dict[str, Any]:
    values = {"image": "registry.example/training:1", "namespace": "ml", "worker": WORKER, "labels": {"usecase": "u"}}
    return mpijob(spec, name, **{**values, **changed})


def created(name: str = "trips-7") -> dict[str, Any]:
    """As an API server answers."""
    made = job(name=name)
    return {**made, "metadata": {**made["metadata"], "uid": "5f0c", "resourceVersion": "9"}}


def replicas(made: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    both = made["spec"]["mpiReplicaSpecs"]
    return both["Launcher"], both["Worker"]


def container(replica: dict[str, Any]) -> dict[str, Any]:
    [only] = replica["template"]["spec"]["containers"]
    return only


def test_the_manifests_of_one_launch():
    """After a change that is meant: `python -m tests.unit.platform.launch.test_mpijob`."""
    assert json.loads(SNAPSHOT.read_text()) == _snapshot()


def _snapshot() -> list[dict[str, Any]]:
    return [job(), parameters_of(created(), '{"days": 7}')]


def test_kubernetes_neither_repeats_nor_outlives_a_launch():
    made = job(replace(SPEC, timeout_s=0.2))
    assert made["spec"]["runPolicy"] == {"cleanPodPolicy": "Running", "backoffLimit": 0, "activeDeadlineSeconds": 1}
    assert [replica["restartPolicy"] for replica in replicas(made)] == ["Never", "Never"]


def test_no_path_of_this_machine_is_in_the_manifest():
    assert "/here" not in json.dumps(job())


def test_a_value_is_not_expanded_by_kubernetes():
    variables = {entry["name"]: entry["value"] for entry in container(replicas(job())[0])["env"]}
    assert variables["PRICE"] == "5$$"


def test_env_of_a_launch_overrides_the_number_of_threads():
    made = job(replace(SPEC, env={"OMP_NUM_THREADS": "4"}))
    assert {"name": "OMP_NUM_THREADS", "value": "4"} in container(replicas(made)[0])["env"]


def test_an_elastic_launch_finds_its_hosts_while_it_runs():
    command = container(replicas(job(replace(SPEC, min_processes=2)))[0])["command"]
    assert command[command.index("--min-np") :][:4] == ["--min-np", "2", "--max-np", "3"]
    assert "--hostfile" not in command
    assert "--min-np" not in container(replicas(job())[0])["command"]


def test_gpus_are_a_limit_of_workers_only():
    with_some, without = container(replicas(job())[1]), container(replicas(job(worker=Resources()))[1])
    assert with_some["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "1"}
    assert without["resources"] == {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "2Gi"}}
    assert "nvidia.com/gpu" not in container(replicas(job())[0])["resources"]["limits"]


@given(st.integers(1, 99_999), st.integers(0, 8), st.sampled_from(["a", "a" * LONGEST_NAME, "x-1"]))
def test_every_pod_is_bound_and_named(processes: int, gpu: int, name: str):
    made = job(replace(SPEC, processes=processes), name, worker=Resources(cpu=0.5, memory="1Gi", gpu=gpu))
    launcher, worker = replicas(made)
    assert (launcher["replicas"], worker["replicas"], made["spec"]["slotsPerWorker"]) == (1, processes, 1)
    for replica in (launcher, worker):
        pod, labels = replica["template"]["spec"], replica["template"]["metadata"]["labels"]
        only = container(replica)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert only["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert only["resources"]["requests"]["memory"] == only["resources"]["limits"]["memory"]
        assert made["metadata"]["labels"].items() <= labels.items()
    assert LABEL.fullmatch(f"{name}-worker-{processes - 1}")
    assert json.loads(json.dumps(made)) == made


@given(st.text(max_size=200))
def test_a_derived_name_is_one_that_is_taken(text: str):
    name = job_name(text)
    assert LABEL.fullmatch(name)
    assert len(name) <= LONGEST_NAME
    assert job_name(name) == name
    assert job(name=name)["metadata"]["name"] == name


@given(st.lists(st.text(max_size=80), unique=True, max_size=8))
def test_different_texts_have_different_names(texts: list[str]):
    assert len({job_name(text) for text in texts}) == len(texts)


def test_a_name_can_be_read():
    assert job_name("trips-7") == "trips-7"
    assert re.fullmatch(r"trips-training-2013-03-01-[0-9a-f]{10}", job_name("Trips/training 2013-03-01"))
    assert re.fullmatch(r"job-[0-9a-f]{10}", job_name("2013"))


@pytest.mark.parametrize("name", ["", "Trips", "7", "a_b", "a.b", "a-", "-a", "a\n", "é", "a" * (LONGEST_NAME + 1)])
def test_a_name_that_kubernetes_would_refuse_is_refused(name: str):
    refused("derive one with job_name", name=name)


@pytest.mark.parametrize("namespace", ["", "ML", "-a", "a.b", "a" * 64])
def test_a_namespace_that_cannot_be_is_refused(namespace: str):
    refused("is no namespace", namespace=namespace)


@pytest.mark.parametrize("image", ["", "two words", "name\n"])
def test_an_image_that_cannot_be_is_refused(image: str):
    refused("is no image", image=image)


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
def test_a_launch_without_a_deadline_is_refused(timeout_s: float):
    refused("give one above 0", spec=replace(SPEC, timeout_s=timeout_s))


@pytest.mark.parametrize("labels", [{"usecase": "two words"}, {"": "u"}, {"a/b": "u"}, {"usecase": "u" * 64}])
def test_a_label_that_kubernetes_would_refuse_is_refused(labels: dict[str, str]):
    refused("cannot be a label", labels=labels)


def refused(problem: str, **changed: Any) -> None:
    with pytest.raises(ThroughlineError, match=problem) as caught:
        job(**changed)
    assert "\n" not in str(caught.value)


def test_parameters_go_with_their_job_and_have_a_largest_size():
    made = parameters_of(created(), "é" * (LARGEST_PARAMETERS // 2))
    for replica in replicas(created()):
        [mounted] = replica["template"]["spec"]["volumes"]
        assert made["metadata"]["name"] == mounted["configMap"]["name"]
        assert container(replica)["volumeMounts"][0]["name"] == mounted["name"]
    [owner] = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("MPIJob", "trips-7", "5f0c")
    with pytest.raises(ThroughlineError, match="pass the address of what is large"):
        parameters_of(created(), "é" * (LARGEST_PARAMETERS // 2) + "x")


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(_snapshot(), indent=2) + "\n")
