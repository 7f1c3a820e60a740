"""Sets of revisions and the settings of a cluster, for tests of the KServe target."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from throughline.records import Revision, RevisionSet
from throughline.rollout.kserve.cluster import Cluster

CLUSTER = Cluster(
    namespace="throughline",
    image=f"registry.example/platform@sha256:{'a' * 64}",
    gateway="kserve/kserve-ingress-gateway",
    domain="ml.example.com",
)


def revision(version: int, role: str = "stable", weight: float = 1.0, **values: Any) -> Revision:
    digest = f"{version:x}" * 64
    given = {
        "revision": f"v{version}-{digest[:12]}",
        "usecase": "flight_delay",
        "name": "flight_delay",
        "version": version,
        "sha256": digest[:64],
        "file": f"{version}/model.onnx",
        "role": role,
        "weight": weight,
        "deployed_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Revision.model_validate(given | values)


def of(*revisions: Revision, **values: Any) -> RevisionSet:
    return RevisionSet(usecase=revisions[0].usecase, revisions=revisions, **values)
