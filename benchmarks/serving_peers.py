"""Who takes part in the serving benchmark: the command of each process, its address, and what it is sent.

Owns: that, as a list made from one home. Does not own: the processes' code (`peers/`), the rounds (`serving.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.http_client import requests
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT
from throughline.models.onnx_graph import CATEGORICAL, NUMERIC
from throughline.usecase import UseCase

# what BentoML's server runs on, at our own versions of the model's runtime
BENTOML = ("bentoml==1.4.40", "onnxruntime==1.31.1", "numpy==2.4.6")


@dataclass(frozen=True)
class Peer:
    """`bodies`: rows per request -> requests, ready to send; `marker`: what a good answer holds; `does`: its part of a
    prediction; `grpc_port`: None when it speaks no V2 gRPC."""

    name: str
    command: tuple[str, ...]
    port: int
    ready: str
    bodies: Mapping[int, list[bytes]]
    marker: bytes
    does: str
    environment: Mapping[str, str] = field(default_factory=dict)
    grpc_port: int | None = None
    folder: Path = PROJECT_ROOT


@dataclass(frozen=True)
class Given:
    """What the peers are made from: instances, the features that our server read for them, the model's file."""

    usecase: UseCase
    instances: Sequence[dict[str, Any]]
    numeric: Sequence[Sequence[float]]
    categorical: Sequence[Sequence[str]]
    model: Path
    scratch: Path


def bodies_v1(path: str, instances: Sequence[dict[str, Any]], rows: int) -> list[bytes]:
    batches = [instances[first : first + rows] for first in range(0, len(instances) - rows + 1, rows)]
    return requests(path, [{"instances": list(batch)} for batch in batches])


def bare_kserve(given: Given, port: int, grpc_port: int, sizes: Sequence[int]) -> Peer:
    return Peer(
        "bare_kserve",
        (sys.executable, "-m", "benchmarks.peers.bare_kserve", str(port), str(grpc_port)),
        port,
        "/v2/models/trivial/ready",
        {rows: bodies_v1("/v1/models/trivial:predict", given.instances, rows) for rows in sizes},
        b'"score"',
        "a constant",
        grpc_port=grpc_port,
    )


def mlflow_serve(given: Given, port: int, sizes: Sequence[int]) -> Peer:
    return Peer(
        "mlflow_serve",
        (
            *(sys.executable, "-m", "benchmarks.peers.mlflow_serve"),
            *(str(given.model), str(given.scratch / "mlflow_serve"), str(port)),
        ),
        port,
        "/ping",
        {rows: requests("/invocations", [{"inputs": each} for each in _features(given, rows)]) for rows in sizes},
        b'"score"',
        "the model",
        {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
    )


def feast_serve(given: Given, port: int, sizes: Sequence[int]) -> Peer:
    fields = list(dict.fromkeys(given.usecase.entities.values()))

    def entities(rows: int) -> list[dict[str, Any]]:
        batches = [given.instances[first : first + rows] for first in range(0, len(given.instances) - rows + 1, rows)]
        return [{name: [each[name] for each in batch] for name in fields} for batch in batches]

    service = given.usecase.features.service
    return Peer(
        "feast_serve",
        (sys.executable, "-m", "benchmarks.peers.feast_serve", str(port)),
        port,
        "/health",
        {
            rows: requests(
                "/get-online-features", [{"feature_service": service, "entities": e} for e in entities(rows)]
            )
            for rows in sizes
        },
        b'"results"',
        "the look-up",
    )


def bentoml(given: Given, port: int, sizes: Sequence[int], environment: Path) -> Peer:
    """In the environment that `bentoml_environment` made."""
    return Peer(
        "bentoml",
        (
            *(str(environment / "bin" / "bentoml"), "serve", "bentoml_service:Scores"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ),
        port,
        "/readyz",
        {rows: requests("/score", _features(given, rows)) for rows in sizes},
        b".",
        "the model",
        {
            "PEER_MODEL": str(given.model),
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(given.scratch / "bentoml"),
        },
        folder=PROJECT_ROOT / "benchmarks" / "peers",
    )


def bentoml_environment(cache: Path) -> Path:
    """An environment with BentoML under `cache`, made once. Raises `ThroughlineError` when it cannot be made."""
    folder = cache / BENTOML[0].replace("==", "-")
    made = subprocess.run(
        [PROJECT_ROOT / "deploy" / "environment.sh", "other", folder, *BENTOML],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        last = ((made.stderr or made.stdout).strip().splitlines() or ["no output"])[-1]
        raise ThroughlineError(f"no environment with BentoML could be made: {last[:200]}")
    return folder


def scores(peer: str, content: bytes) -> list[float]:
    """The score of each row in an answer of a peer that runs the model."""
    answer = json.loads(content)
    found = answer["predictions"]["score"] if peer == "mlflow_serve" else answer
    return [float(one[0] if isinstance(one, list) else one) for one in found]


def _features(given: Given, rows: int) -> list[dict[str, Any]]:
    starts = range(0, len(given.numeric) - rows + 1, rows)
    return [
        {NUMERIC: given.numeric[first : first + rows], CATEGORICAL: given.categorical[first : first + rows]}
        for first in starts
    ]
