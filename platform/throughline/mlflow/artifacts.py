"""Files among MLflow's artifacts: copied where the artifact folder is on this machine, otherwise downloaded.

Owns: the place behind an artifact location, and fetching from it. Does not own: whether a file may be trusted
(`models/signing.py`), logging files.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.mlflow.rest import get
from throughline.mlflow.tracking import client_of


def fetch(settings: Settings, location: str, target: Path) -> Path:
    """Copy the file or folder at an artifact location to `target`, which is new. Raises one line."""
    source = Path(resolve(settings, location))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)  # a link stays one: verification refuses it
        elif source.exists():
            shutil.copyfile(source, target)
        else:
            _download(settings, location, target)
    except OSError as error:
        raise ThroughlineError(f"{source} cannot be copied ({str(error).splitlines()[0]}): restore it.") from error
    return target


def fetch_of_run(settings: Settings, run_id: str, path: str, target: Path) -> Path:
    """As `fetch`, of the file or folder `path` among a run's artifacts."""
    run = get(settings, "runs/get", run_id=run_id)
    if run is None:
        raise ThroughlineError(f"MLflow at {settings.url('mlflow')} has no run {run_id}.")
    return fetch(settings, f"{run['run']['info']['artifact_uri']}/{path}", target)


def is_logged(settings: Settings, run_id: str, path: str) -> bool:
    """Whether a run has this artifact."""
    listed = get(settings, "artifacts/list", run_id=run_id, path=path.rpartition("/")[0]) or {}
    return path in [file["path"] for file in listed.get("files", [])]


def resolve(settings: Settings, location: str) -> str:
    """The folder or object-store address behind an artifact location; `mlflow-artifacts:` is the server's own root."""
    parsed = urlparse(location)
    if parsed.scheme == "mlflow-artifacts":
        root = settings.mlflow_artifacts or str(settings.mlflow_home / "artifacts")
        return f"{root}/{unquote(parsed.path).lstrip('/')}"
    if parsed.scheme == "file":
        return unquote(parsed.path)
    if parsed.scheme in {"models", "runs"}:
        raise ThroughlineError(f"Artifact location {location} is an MLflow address, not a place: report this.")
    return location


def _download(settings: Settings, location: str, target: Path) -> None:
    client_of(settings)  # raises when the server is down, and imports mlflow without Feast's plug-in
    from mlflow.artifacts import download_artifacts  # postpones mlflow (6 s)

    with tempfile.TemporaryDirectory() as scratch:
        try:
            file = download_artifacts(artifact_uri=location, dst_path=scratch, tracking_uri=settings.url("mlflow"))
        except Exception as error:  # each kind of store raises its own
            raise ThroughlineError(
                f"{resolve(settings, location)} is not on this machine and MLflow cannot send it "
                f"({(str(error).splitlines() or [type(error).__name__])[0]})."
            ) from error
        shutil.move(file, target)
