"""Who takes part in the serving benchmark: the command of each process, its address, and what it is sent.

Owns: that. Does not own: the processes' code (`peers/`), the rounds (`serving.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.http_client import requests
from benchmarks.report import OURS
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.models.onnx_graph import CATEGORICAL, NUMERIC
from throughline.usecase import UseCase

# what BentoML's server runs on, at our own versions of the model's runtime
BENTOML = ("bentoml==1.4.40", "onnxruntime==1.31.1", "numpy==2.4.6")


@dataclass(frozen=True)
class Peer:
    """A server that takes part. `does`: its part of a prediction; `marker`: what a good answer holds; `grpc_port`: None
    when it speaks no V2 gRPC."""

    name: str
    does: Literal["all of it", "a constant", "the model", "the look-up"]
    command: tuple[str, ...]
    port: int
    ready: str
    path: str
    marker: bytes
    environment: Mapping[str, str] = field(default_factory=dict)
    grpc_port: int | None = None
    folder: Path = PROJECT_ROOT


@dataclass(frozen=True)
class Given:
    """What is requested: instances, and the features that our server read for them, in the same order."""

    usecase: UseCase
    instances: Sequence[dict[str, Any]]
    numeric: Sequence[Sequence[float]]
    categorical: Sequence[Sequence[str]]

    def bodies(self, peer: Peer, rows: int) -> list[bytes]:
        """Requests of `rows` rows each, ready to send; what does not fill a request is left out."""
        return requests(peer.path, [self._body(peer, slice(n, n + rows)) for n in self._starts(rows)])

    def _starts(self, rows: int) -> range:
        return range(0, len(self.instances) - rows + 1, rows)

    def _body(self, peer: Peer, part: slice) -> dict[str, Any]:
        if peer.does == "the look-up":
            fields = dict.fromkeys(self.usecase.entities.values())
            keys = {name: [each[name] for each in self.instances[part]] for name in fields}
            return {"feature_service": self.usecase.features.service, "entities": keys}
        if peer.does == "the model":
            features = {NUMERIC: self.numeric[part], CATEGORICAL: self.categorical[part]}
            return {"inputs": features} if peer.name == "mlflow_serve" else features
        return {"instances": list(self.instances[part])}


def ours(settings: Settings, usecase: UseCase) -> Peer:
    port, grpc_port = settings.port("model_http"), settings.port("model_grpc")
    path = f"/v1/models/{usecase.name}:predict"
    ready = f"/v2/models/{usecase.name}/ready"
    return Peer(
        OURS, "all of it", (sys.executable, "-m", "serving"), port, ready, path, b'"score"', grpc_port=grpc_port
    )


def bare_kserve(port: int, grpc_port: int) -> Peer:
    command = (sys.executable, "-m", "benchmarks.peers.bare_kserve", str(port), str(grpc_port))
    ready, path = "/v2/models/trivial/ready", "/v1/models/trivial:predict"
    return Peer("bare_kserve", "a constant", command, port, ready, path, b'"score"', grpc_port=grpc_port)


def mlflow_serve(model: Path, folder: Path, port: int) -> Peer:
    """It waits for the file `model`, and saves it to `folder` as MLflow does."""
    command = (sys.executable, "-m", "benchmarks.peers.mlflow_serve", str(model), str(folder), str(port))
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    return Peer("mlflow_serve", "the model", command, port, "/ping", "/invocations", b'"score"', quiet)


def feast_serve(port: int) -> Peer:
    command = (sys.executable, "-m", "benchmarks.peers.feast_serve", str(port))
    return Peer("feast_serve", "the look-up", command, port, "/health", "/get-online-features", b'"results"')


def bentoml(model: Path, scratch: Path, port: int, environment: Path) -> Peer:
    """In the environment that `bentoml_environment` made."""
    program, address = str(environment / "bin" / "bentoml"), ("--host", "127.0.0.1", "--port", str(port))
    command = (program, "serve", "bentoml_service:Scores", *address)
    own = {"PEER_MODEL": str(model), "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(scratch / "bentoml")}
    folder = PROJECT_ROOT / "benchmarks" / "peers"
    return Peer("bentoml", "the model", command, port, "/readyz", "/score", b".", own, folder=folder)


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
