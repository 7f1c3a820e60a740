"""The KServe target on a real API server with the released KServe controller: no request fails at any step.

Needs the Kubernetes test bed (K8S_TESTBED names another place), whose kubelet and Gateway are doubles: containers are
processes of this machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from kubernetes import client
from kubernetes.config import new_client_from_config

from benchmarks.serving_home import make_home
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import PROJECT_ROOT, load_settings
from throughline.records import GateDecision, Revision, RevisionSet
from throughline.registry import statement
from throughline.rollout.kserve.bundle import bundle
from throughline.rollout.kserve.client import KubernetesClient
from throughline.rollout.kserve.cluster import Cluster, detect, host
from throughline.rollout.kserve.target import KServeServers
from throughline.rollout.revision import read_revisions
from throughline.rollout.target import in_effect
from throughline.usecase import get_usecase

pytestmark = pytest.mark.drill(minutes=5)

TESTBED = Path(os.environ.get("K8S_TESTBED", PROJECT_ROOT.parent / "shared" / "k8s-testbed"))
NAME, NAMESPACE, TOKEN = "flight_delay", "throughline", "s3cret"
CLUSTER = Cluster(
    namespace=NAMESPACE,
    image=f"throughline/platform@sha256:{'a' * 64}",
    gateway="kserve/kserve-ingress-gateway",
    domain="ml.example.com",
    cpu="500m",
)
# The bed replaces a value that begins with a mountPath by the real directory, past the mounts inside of it.
HOME = "/var/lib/./throughline"


@dataclass
class Bed:
    """A cluster, the address of its Gateway, and two revisions whose files are in the home of the cluster."""

    client: KubernetesClient
    gateway: str
    instance: dict[str, Any]
    one: Revision
    two: Revision

    def apply(self, *revisions: Revision, ready_s: float = 240) -> None:
        wanted = RevisionSet(usecase=NAME, revisions=revisions)
        target = KServeServers(CLUSTER, self.client, ready_s=ready_s)
        target.apply(wanted)
        assert in_effect(wanted, target.observe(NAME))

    def predict(self, http: httpx.Client, **headers: str) -> int | str:
        """The version that answered, or what came instead."""
        given = {"Host": host(CLUSTER, NAME), "Authorization": f"Bearer {TOKEN}", **headers}
        try:
            answer = http.post(
                f"{self.gateway}/v1/models/{NAME}:predict", json={"instances": [self.instance]}, headers=given
            )
            return answer.json()["predictions"][0]["model_version"] if answer.is_success else answer.text
        except httpx.HTTPError as error:
            return type(error).__name__


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    if not (TESTBED / "up").exists():
        pytest.skip(f"no Kubernetes API server: {TESTBED} is not there (K8S_TESTBED names another place)")
    if str(PROJECT_ROOT).startswith("/tmp/"):
        pytest.skip("the containers mount a folder of their own at /tmp, where this checkout is")
    state = Path(tempfile.mkdtemp(prefix="throughline-k8s-", dir="/var/tmp"))
    path = os.pathsep.join([str(PROJECT_ROOT / "platform"), str(PROJECT_ROOT)])
    image = {"path": str(Path(sys.executable).parent), "workdir": str(PROJECT_ROOT), "env": {"PYTHONPATH": path}}
    images = state / "our-images.json"
    images.write_text(json.dumps({CLUSTER.image: image}))
    environment = {**os.environ, "TESTBED_PYTHON": sys.executable, "TESTBED_IMAGES": str(images)}
    bed_state = state / "bed"
    try:
        up = subprocess.run(
            [TESTBED / "up", "--kserve", bed_state], env=environment, check=True, capture_output=True, text=True
        )
        (gateway,) = re.findall(r"TESTBED_GATEWAY=(\S+)", up.stdout)
        kubeconfig = str(bed_state / "kubeconfig")
        core = client.CoreV1Api(new_client_from_config(kubeconfig))
        config = core.read_namespaced_config_map("inferenceservice-config", "kserve").to_dict()
        assert detect(config, {"gateway.networking.k8s.io/v1"}) == (CLUSTER.mode, CLUSTER.word)
        _namespace(core)
        one, two, instance = _home(bed_state / "claims" / NAMESPACE / CLUSTER.home)
        yield Bed(KubernetesClient(CLUSTER, kubeconfig), gateway, instance, one, two)
    finally:
        subprocess.run([TESTBED / "down", bed_state], env=environment, capture_output=True)
        shutil.rmtree(state, ignore_errors=True)


def _namespace(core: client.CoreV1Api) -> None:
    settings = {"THROUGHLINE_HOME": HOME, "THROUGHLINE_BIND": "0.0.0.0"}
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    core.create_namespace({"metadata": {"name": NAMESPACE}})
    core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": CLUSTER.service_account}})
    core.create_namespaced_secret(NAMESPACE, {"metadata": {"name": CLUSTER.token}, "stringData": {"token": TOKEN}})
    core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": CLUSTER.settings}, "data": settings})
    core.create_namespaced_persistent_volume_claim(NAMESPACE, {"metadata": {"name": CLUSTER.home}, "spec": claim})


def _home(folder: Path) -> tuple[Revision, Revision, dict[str, Any]]:
    """A home with two versions of one file, both released."""
    folder.mkdir(parents=True)
    settings = load_settings(home=folder)
    instances = make_home(settings, get_usecase(NAME))
    placed = settings.serving_home / NAME
    revisions = read_revisions(placed)
    assert revisions is not None
    one = revisions.stable
    shutil.copytree(placed / "1", placed / "2")
    decision = GateDecision(
        model=ModelReference(NAME, 2), sha256=one.sha256, decision="release", decided_at=datetime.now(UTC), rules=[]
    )
    statement.issue(settings, NAME, decision)
    two = one.model_copy(update={"version": 2, "revision": f"v2-{one.sha256[:12]}", "file": "2/model.onnx"})
    for revision in (one, two):
        bundle(settings, revision)
    return one, two, instances[0]


def test_no_request_fails_while_canaries_are_promoted_rolled_back_and_never_get_ready(bed: Bed) -> None:
    one, two = bed.one, bed.two
    bed.apply(one)
    answers: Counter[int | str] = Counter()
    stop = threading.Event()

    def send_requests() -> None:
        with httpx.Client(timeout=30) as http:
            while not stop.wait(0.005):
                answers[bed.predict(http)] += 1

    caller = threading.Thread(target=send_requests)
    caller.start()
    try:
        for share in (0.2, 0.5):
            canary = two.model_copy(update={"role": "canary", "weight": share})
            bed.apply(one.model_copy(update={"weight": 1 - share}), canary)
        with httpx.Client(timeout=30) as http:  # a tester reaches each by its name, whatever the weights
            for revision in (one, two):
                header = {"X-Throughline-Revision": revision.revision}
                assert [bed.predict(http, **header) for _ in range(5)] == [revision.version] * 5
        bed.apply(two)  # promoted
        stable = two.model_copy(update={"weight": 0.9})
        bed.apply(stable, one.model_copy(update={"role": "canary", "weight": 0.1}))
        bed.apply(two)  # rolled back
        nowhere = {"version": 3, "revision": "v3-nowhere", "file": "3/model.onnx", "role": "canary", "weight": 0.1}
        with pytest.raises(ThroughlineError, match=r"within 30 s .* does not answer as ready: see its log"):
            bed.apply(stable, two.model_copy(update=nowhere), ready_s=30)
        bed.apply(two)
    finally:
        stop.set()
        caller.join()
    assert set(answers) == {1, 2}, answers
    assert answers.total() > 500
