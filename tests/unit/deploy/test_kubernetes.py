"""The manifests hold together: every reference leads somewhere, nothing runs as root, no image can change by itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from throughline.foundation.settings import DEFAULT_PORTS, PROJECT_ROOT, Settings

ROOT = PROJECT_ROOT / "deploy" / "kubernetes"
BASE = ROOT / "base"
OVERLAYS = sorted(path.parent for path in ROOT.glob("overlays/*/kustomization.yaml"))


def kustomization(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "kustomization.yaml").read_text())


def base_objects() -> list[dict[str, Any]]:
    return [
        loaded
        for name in kustomization(BASE)["resources"]
        for loaded in yaml.safe_load_all((BASE / name).read_text())
        if loaded
    ]


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for each in objects:
        if each["kind"] == "InferenceService":
            found[each["metadata"]["name"]] = each["spec"]["predictor"]
        elif each["kind"] == "Deployment":
            found[each["metadata"]["name"]] = each["spec"]["template"]["spec"]
    return found


def named(objects: list[dict[str, Any]], kind: str) -> set[str]:
    return {each["metadata"]["name"] for each in objects if each["kind"] == kind}


def render(folder: Path) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: overlays are not rendered")
    ended = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return list(yaml.safe_load_all(ended.stdout))


def test_every_file_is_named_by_a_kustomization_and_every_name_is_a_file():
    for folder in (BASE, *OVERLAYS):
        declared = kustomization(folder)
        names = declared["resources"] + declared.get("configurations", [])
        for name in names:
            assert (folder / name).exists(), f"{folder.name}: {name}"
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert files <= set(names)
    assert OVERLAYS


def test_what_the_pods_refer_to_exists():
    objects = base_objects()
    generated = {each["name"] for each in kustomization(BASE)["configMapGenerator"]}
    for name, pod in pods(objects).items():
        assert pod["serviceAccountName"] in named(objects, "ServiceAccount")
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in named(objects, "PersistentVolumeClaim")
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes), name
            assert {source["configMapRef"]["name"] for source in container["envFrom"]} <= generated


def test_containers_are_confined_and_sized_and_probed():
    for name, pod in pods(base_objects()).items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][kind]), name
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = container[probe]["httpGet"]["port"]
                assert port in ports or port in ports.values(), f"{name} {probe}"


def test_no_image_can_change_by_itself():
    images = [c["image"] for pod in pods(base_objects()).values() for c in pod["containers"]]
    assert images
    for image in images:
        assert re.fullmatch(r"[^:@]+(/[^:@]+)*:(?!latest$)[\w.-]+", image), image
    for overlay in OVERLAYS:
        for image in kustomization(overlay).get("images", []):
            assert str(image["newTag"]) != "latest"


def test_settings_and_ports_are_the_ones_the_code_knows():
    (generated,) = kustomization(BASE)["configMapGenerator"]
    for literal in generated["literals"]:
        name = literal.partition("=")[0]
        assert name.removeprefix("THROUGHLINE_").lower() in Settings.model_fields, name
    ports = {
        name: [p["containerPort"] for p in pod["containers"][0]["ports"]] for name, pod in pods(base_objects()).items()
    }
    assert ports == {
        "model-server": [DEFAULT_PORTS["model_http"], DEFAULT_PORTS["model_grpc"]],
        "collector": [DEFAULT_PORTS["collector"]],
    }


def test_there_is_never_a_second_writer_of_the_inference_log():
    (deployment,) = [each for each in base_objects() if each["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"]["type"] == "Recreate"


def test_no_secret_is_in_a_file():
    for path in ROOT.rglob("*.yaml"):
        for each in yaml.safe_load_all(path.read_text()):
            assert each.get("kind") != "Secret", path
            assert "secretGenerator" not in each, path


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_an_overlay_renders_with_its_references_kept(overlay):
    objects = render(overlay)
    (settings,) = named(objects, "ConfigMap")
    for name, pod in pods(objects).items():
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": settings}}], name
        for image in kustomization(overlay)["images"]:
            assert container["image"] == f"{image['newName']}:{image['newTag']}", name


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_a_cluster_with_kserve_accepts_the_overlay(overlay):
    if "TESTBED_GATEWAY" not in os.environ or "KUBECONFIG" not in os.environ:
        pytest.skip("no Kubernetes test bed is up (KUBECONFIG and TESTBED_GATEWAY are not set)")
    (namespace,) = named(render(overlay), "Namespace")
    made = subprocess.run(["kubectl", "create", "namespace", namespace], capture_output=True, text=True)
    assert made.returncode == 0 or "already exists" in made.stderr, made.stderr
    apply = ["kubectl", "apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-k"]
    ended = subprocess.run([*apply, str(overlay)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "inferenceservice.serving.kserve.io/model-server" in ended.stdout
