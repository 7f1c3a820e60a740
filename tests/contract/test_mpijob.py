"""The manifests of a launch, held against a real API server with the MPI operator; ranks are processes of this machine.

The server comes from a folder beside the checkout, or the one that K8S_TESTBED names; without it the test is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from kubernetes.config import new_client_from_config

from throughline.foundation.settings import PROJECT_ROOT
from throughline.launch import LaunchSpec
from throughline.launch.kubernetes import mpijob, parameters_of
from throughline.usecase import Resources

TESTBED = Path(os.environ.get("K8S_TESTBED", PROJECT_ROOT.parent / "shared" / "k8s-testbed"))
NAMESPACE, IMAGE = "ml", "registry.example/training:1"
MPIJOBS = ("kubeflow.org", "v2beta1", NAMESPACE, "mpijobs")

WORKER = """
import json, os, pathlib, sys
import horovod.torch as hvd
import torch
hvd.init()
given = json.loads(pathlib.Path(sys.argv[1]).read_text())
total = hvd.allreduce(torch.tensor([float(hvd.rank() + 1)]), op=hvd.Sum).item()
print(json.dumps({"event": "sum", "total": total, "hosts": hvd.cross_size(), "days": given["days"],
                  "environment": os.environ["GIVEN"]}), flush=True)
sys.exit(given["code"] if hvd.rank() == 1 else 0)
"""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[client.ApiClient]:
    """A client of a server whose namespace takes only Pods that keep the strictest standard."""
    if not (TESTBED / "up").exists():
        pytest.skip(f"no Kubernetes API server: {TESTBED} is not there (K8S_TESTBED names another place)")
    state = tmp_path_factory.mktemp("k8s") / "state"
    code = state.parent / "code"
    code.mkdir()
    (code / "the_worker.py").write_text(WORKER)
    images = state.parent / "images.json"
    images.write_text(json.dumps({IMAGE: {"path": str(Path(sys.executable).parent), "workdir": str(code)}}))
    environment = {**os.environ, "TESTBED_PYTHON": sys.executable, "TESTBED_IMAGES": str(images)}
    try:
        subprocess.run([TESTBED / "up", "--mpi-operator", state], env=environment, check=True, capture_output=True)
        found = new_client_from_config(str(state / "kubeconfig"))
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        client.CoreV1Api(found).create_namespace({"metadata": {"name": NAMESPACE, "labels": labels}})
        yield found
    finally:
        subprocess.run([TESTBED / "down", state], env=environment, check=True, capture_output=True)


def launched(api: client.ApiClient, name: str, at_least: int | None = None, **given: Any) -> dict[str, Any]:
    """The job as the server took it, with its parameters sent after it; the server refuses unknown fields."""
    env = {"GIVEN": "a $(HOME) b"}
    spec = LaunchSpec("the_worker", Path("given.json"), 2, 90, Path("the.log"), Path(), env, at_least)
    job = mpijob(
        spec, name, IMAGE, NAMESPACE, Resources(cpu=0.1, memory="512Mi"), labels={"usecase": "u"}, interface="lo"
    )
    created = client.CustomObjectsApi(api).create_namespaced_custom_object(*MPIJOBS, job, field_validation="Strict")
    parameters = parameters_of(created, json.dumps(given))
    client.CoreV1Api(api).create_namespaced_config_map(NAMESPACE, parameters, field_validation="Strict")
    return created


def eventually(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if answer := found():
            return answer
        time.sleep(0.3)
    raise AssertionError(f"not within 120 s: {what}")


def ended(api: client.ApiClient, name: str) -> str:
    """How a job ended; its launcher's Pod stands until the job is deleted."""

    def end() -> str | None:
        job = client.CustomObjectsApi(api).get_namespaced_custom_object(*MPIJOBS, name)
        conditions = job.get("status", {}).get("conditions", [])
        return next(
            (c["type"] for c in conditions if c["status"] == "True" and c["type"] in ("Succeeded", "Failed")), None
        )

    return eventually(end, f"the end of {name}")


def log(api: client.ApiClient, name: str) -> str:
    core = client.CoreV1Api(api)
    launchers = f"app.kubernetes.io/instance={name},app.kubernetes.io/component=launcher"
    [pod] = core.list_namespaced_pod(NAMESPACE, label_selector=launchers).items
    # as bytes: what looks like JSON would otherwise be taken apart
    return core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE, _preload_content=False).data.decode()


@pytest.mark.parametrize("at_least", [None, 1], ids=["fixed", "elastic"])
def test_ranks_run_in_worker_pods_and_leave_nothing_behind(api: client.ApiClient, at_least: int | None) -> None:
    name = f"trips-{at_least or 'fixed'}"
    launched(api, name, at_least, days=7, code=0)
    end, text = ended(api, name), log(api, name)
    assert end == "Succeeded", text
    given = {"event": "sum", "total": 3.0, "hosts": 2, "days": 7, "environment": "a $(HOME) b"}
    assert [f"[{rank}]<stdout>:{json.dumps(given)}" in text for rank in range(2)] == [True, True], text
    client.CustomObjectsApi(api).delete_namespaced_custom_object(*MPIJOBS, name)
    core = client.CoreV1Api(api)
    mine = {"label_selector": f"app.kubernetes.io/instance={name}"}
    eventually(lambda: not core.list_namespaced_config_map(NAMESPACE, **mine).items, "the parameters go with the job")
    eventually(lambda: not core.list_namespaced_pod(NAMESPACE, **mine).items, "the Pods go with the job")


def test_a_rank_that_fails_ends_the_job_with_its_exit_code(api: client.ApiClient) -> None:
    launched(api, "trips-failing", days=7, code=3)
    end, text = ended(api, "trips-failing"), log(api, "trips-failing")
    assert end == "Failed", text
    assert json.dumps({"event": "exit", "worker": 1, "code": 3}) in text
