"""What the objects of a cluster report, by the behaviour that was observed of the released controllers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fake_cluster import FakeCluster
from tests.support.kserve_revisions import CLUSTER, of, revision
from throughline.rollout.kserve.cluster import predictor_name, service_name
from throughline.rollout.kserve.manifests import inference_service, knative_service
from throughline.rollout.kserve.reading import Objects, knative_served, readiness, served
from throughline.rollout.kserve.target import KServeServers
from throughline.rollout.target import Served

ONE = revision(1)
NAME = service_name(CLUSTER, ONE)
WANTED = inference_service(CLUSTER, ONE)


@pytest.fixture
def ready() -> Objects:
    """What there is when the first revision serves."""
    cluster = FakeCluster()
    KServeServers(CLUSTER, cluster, sleep=lambda _: None).apply(of(ONE))
    return cluster.objects("flight-delay")


def deployment(objects: Objects) -> Any:
    return objects.deployments[predictor_name(NAME)]


def container(objects: Objects) -> Any:
    return objects.pods[0]["status"]["containerStatuses"][0]


def test_pods_of_the_wanted_template_are_ready(ready: Objects) -> None:
    assert readiness(ready, WANTED).state == "ready"


def _older(objects: Objects) -> None:
    deployment(objects)["status"]["observedGeneration"] = 0


def _one_updated(objects: Objects) -> None:
    """An update in place to a version that does not start: the old Pod serves, `Ready` of KServe stays True."""
    deployment(objects)["status"] |= {"updatedReplicas": 1, "replicas": 2, "availableReplicas": 1}


def _no_deployment(objects: Objects) -> None:
    objects.deployments.clear()  # ty: ignore[unresolved-attribute]  # a dict


def _earlier(objects: Objects) -> None:
    """Deleted and created at once under the same name: KServe calls it ready by the old Deployment."""
    deployment(objects)["metadata"]["ownerReferences"] = [{"uid": "another"}]


def _other_image(objects: Objects) -> None:
    deployment(objects)["spec"]["template"]["spec"]["containers"][0]["image"] = "other"


def _other_files(objects: Objects) -> None:
    deployment(objects)["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][1]["subPath"] = "other"


def _deleted(objects: Objects) -> None:
    objects.services[NAME]["metadata"]["deletionTimestamp"] = "now"


def _unscheduled(objects: Objects) -> None:
    deployment(objects)["status"] = {}
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes\nare free"}
    objects.pods[0]["status"] = {"conditions": [condition]}


def _no_image(objects: Objects) -> None:
    """KServe reports nothing of it, for ever."""
    deployment(objects)["status"] = {}
    container(objects)["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}


def _starts_again(objects: Objects) -> None:
    deployment(objects)["status"] = {}
    ended = {"exitCode": 1, "reason": "Error", "message": "first try"}
    container(objects).update(
        restartCount=1, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState={"terminated": ended}
    )


def _silent(objects: Objects) -> None:
    deployment(objects)["status"] = {}
    container(objects).update(started=True, ready=False, state={"running": {}})


WAITS: dict[str, tuple[Callable[[Objects], None], str]] = {
    "an older generation": (_older, "0 of 1|1 of 1"),
    "an update under way": (_one_updated, "1 of 1 Pods"),
    "no Deployment": (_no_deployment, "has made no Deployment"),
    "the Deployment of an earlier one": (_earlier, "earlier .* is not gone"),
    "another image": (_other_image, "another template"),
    "other files": (_other_files, "another template"),
    "it is being deleted": (_deleted, "earlier .* is not gone"),
    "no place": (_unscheduled, "Unschedulable: 0/1 nodes are free"),
    "no image": (_no_image, r"ImagePullBackOff \(not found\)"),
    "it starts again": (_starts_again, "CrashLoopBackOff"),
    "it answers as not ready": (_silent, "does not answer as ready: see its log"),
}


@pytest.mark.parametrize("how", WAITS)
def test_anything_else_is_waited_for_with_the_reason(ready: Objects, how: str) -> None:
    change, reason = WAITS[how]
    objects = copy.deepcopy(ready)
    change(objects)
    found = readiness(objects, WANTED)
    assert found.state == "waiting"
    assert re.search(reason, found.reason), found.reason
    assert "\n" not in found.reason


def _crashed(objects: Objects) -> None:
    ended = {"exitCode": 137, "reason": "OOMKilled"}
    container(objects).update(restartCount=2, state={"terminated": ended})


def _refused(objects: Objects) -> None:
    ended = {"exitCode": 1, "reason": "Error", "message": "x" * 400 + "\nModel is refused"}
    container(objects).update(
        restartCount=4, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState={"terminated": ended}
    )


def _no_secret(objects: Objects) -> None:
    container(objects)["state"] = {"waiting": {"reason": "CreateContainerConfigError", "message": "secret not found"}}


def _no_runtime(objects: Objects) -> None:
    failure = {"reason": "NoSupportingRuntime", "message": "No runtime found"}
    objects.services[NAME]["status"] = {"modelStatus": {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure}}


def _init_failed(objects: Objects) -> None:
    ended = {"exitCode": 1, "reason": "Error", "message": "no such bucket"}
    objects.pods[0]["status"]["initContainerStatuses"] = [
        {"name": "storage-initializer", "restartCount": 2, "state": {"terminated": ended}}
    ]


FAILS: dict[str, tuple[Callable[[Objects], None], str]] = {
    "killed for memory": (_crashed, "ended 3 times, OOMKilled with exit code 137"),
    "refused its model": (_refused, "Model is refused"),
    "no secret": (_no_secret, r"CreateContainerConfigError \(secret not found\)"),
    "no runtime": (_no_runtime, r"NoSupportingRuntime \(No runtime found\)"),
    "an init container": (_init_failed, r"storage-initializer ended 3 times.*no such bucket"),
}


@pytest.mark.parametrize("how", FAILS)
def test_what_will_not_start_by_itself_has_failed_with_the_reason_of_its_pod(ready: Objects, how: str) -> None:
    change, reason = FAILS[how]
    objects = copy.deepcopy(ready)
    deployment(objects)["status"] = {}
    change(objects)
    found = readiness(objects, WANTED)
    assert found.state == "failed"
    assert re.search(reason, found.reason), found.reason
    assert len(found.reason) < 500
    assert "\n" not in found.reason


def test_a_pod_that_is_going_and_one_of_another_server_say_nothing(ready: Objects) -> None:
    objects = copy.deepcopy(ready)
    _crashed(objects)
    objects.pods[0]["metadata"]["deletionTimestamp"] = "now"
    assert readiness(objects, WANTED).state == "ready"
    del objects.pods[0]["metadata"]["deletionTimestamp"]
    objects.pods[0]["metadata"]["labels"]["serving.kserve.io/inferenceservice"] = "another"
    assert readiness(objects, WANTED).state == "ready"


# What serves


def test_what_serves_is_what_the_route_sends_not_what_was_wanted(ready: Objects) -> None:
    assert served(ready) == (Served(revision=ONE.revision, role="stable", weight=1.0),)
    objects = copy.deepcopy(ready)
    backend = copy.deepcopy(objects.route["spec"]["rules"][-1]["backendRefs"][0])
    objects.route["spec"]["rules"][-1]["backendRefs"] = [
        {**backend, "weight": 3},
        {**backend, "name": "unknown", "weight": 1},
    ]
    assert served(objects) == (Served(revision=ONE.revision, role="stable", weight=0.75),)


@pytest.mark.parametrize("kind", ["Accepted", "ResolvedRefs"])
def test_a_route_that_a_gateway_has_not_taken_up_serves_nothing(ready: Objects, kind: str) -> None:
    for change in ({"status": "False"}, {"observedGeneration": 0}, {"type": "Other"}):
        objects = copy.deepcopy(ready)
        conditions = objects.route["status"]["parents"][0]["conditions"]
        next(one for one in conditions if one["type"] == kind).update(change)
        assert served(objects) == ()
    objects.route["status"] = {}
    assert served(objects) == ()
    assert served(Objects({}, {})) == ()


def test_knatives_shares_are_those_of_its_own_revisions() -> None:
    service = knative_service(CLUSTER, of(revision(1, weight=0.9), revision(2, "canary", 0.1)))
    traffic = [
        {"revisionName": "f-00002", "percent": 10, "latestRevision": True},
        {"revisionName": "f-00001", "percent": 90},
    ]
    predictor = {"latestCreatedRevision": "f-00002", "latestReadyRevision": "f-00002", "traffic": traffic}
    service["status"] = {"components": {"predictor": predictor}}
    made = {
        f"f-0000{version}": {"metadata": {"annotations": {"throughline/revision": revision(version).revision}}}
        for version in (1, 2)
    }
    assert knative_served(service, made) == (
        Served(revision=revision(2).revision, role="canary", weight=0.1),
        Served(revision=revision(1).revision, role="stable", weight=0.9),
    )
    predictor["latestReadyRevision"] = "f-00001"  # the newest never got ready
    assert knative_served(service, made) == ()
