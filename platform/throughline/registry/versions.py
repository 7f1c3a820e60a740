"""Model versions in MLflow: registered once, signed, described in full by their tags, fetched only as signed.

Owns: how a `ModelRecord` is written into the registry and read back, what a version's folder may hold, the alias
`champion`. Does not own: the server, the run a version came from (`mlflow/tracking.py`), keys (`signing.py`), what
is served (`rollout/`).

A version is an MLflow LoggedModel of the flavours `onnx` and `python_function`, so `mlflow.pyfunc.load_model` works.
The file in it is the trainer's, byte for byte. Nothing is pickled. The signature lies beside the files.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.security.principal import GRAPH, current_principal
from throughline.foundation.settings import Settings
from throughline.mlflow import artifacts, rest
from throughline.mlflow.rest import aliases, model_versions, post, tags_in
from throughline.mlflow.tags import Tags, decode, encode
from throughline.mlflow.tracking import client_of
from throughline.models import provenance
from throughline.models.onnx_graph import CATEGORICAL, NUMERIC, SCORE
from throughline.models.provenance import Provenance
from throughline.models.served_model import ServedModel, sha256_of
from throughline.records import ModelRecord
from throughline.registry import history
from throughline.registry.champions import line_of
from throughline.registry.verification import MODEL_FILE, verified

if TYPE_CHECKING:
    from mlflow import MlflowClient


CHAMPION = "champion"
# Everything of a ModelRecord that MLflow itself does not keep.
_TAGGED = ("sha256", "uri", "dataset_fingerprint", "trained_until", "trainer", "parameters")


def register(
    settings: Settings,
    *,
    name: str,
    run_id: str,
    file: Path,
    dataset_fingerprint: str,
    trained_until: datetime,
    trainer: str,
    parameters: dict[str, Any],
    tags: Mapping[str, Any] | None = None,
) -> ModelRecord:
    """Register `file` as a signed version of `name`, and tell the history. The same run registered again gives the
    version it already has."""
    client = client_of(settings)
    _registered_model(client, name)
    digest = sha256_of(file)
    actor = (tags or {}).get("submitter") or _me(settings)
    if known := _version_of_run(settings, name, run_id):
        if known.sha256 != digest:
            raise ThroughlineError(
                f"Run {run_id} is already registered as {known.reference} with another file: register a run once."
            )
        _tell_registered(settings, known, actor)  # whoever registered it may have been interrupted here
        return known
    model = ServedModel.load(file, digest)  # a file that cannot be served is not registered
    logged = client.create_logged_model(
        client.get_run(run_id).info.experiment_id, name=name, source_run_id=run_id, model_type="onnx"
    )
    described = {
        "sha256": digest,
        "dataset_fingerprint": dataset_fingerprint,
        "trained_until": trained_until,
        "trainer": trainer,
        "parameters": parameters,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        _mlflow_folder(file, folder, model, logged, run_id)
        statement = Provenance(name=name, run_id=run_id, tags=encode(tags or {}), **described)
        provenance.seal(settings, folder, statement)
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    _link(client, run_id, logged.model_id)
    described["uri"] = artifacts.resolve(settings, logged.artifact_location)
    version = client.create_model_version(
        name,
        source=logged.artifact_location,
        run_id=run_id,
        model_id=logged.model_id,
        tags=encode({**(tags or {}), **described}),
    )
    record = get(settings, ModelReference(name, int(version.version)))
    _tell_registered(settings, record, actor)
    return record


def get(settings: Settings, reference: ModelReference) -> ModelRecord:
    """The version's record. Raises `ThroughlineError` when there is none."""
    return _record(_described(settings, reference))


def versions(settings: Settings, name: str) -> list[ModelRecord]:
    """All versions of a model, oldest first; those others have registered without our tags are left out."""
    ours = [version for version in model_versions(settings, name) if "sha256" in decode(tags_in(version))]
    return sorted((_record(version) for version in ours), key=lambda record: record.version)


def with_tag(settings: Settings, name: str, tag: Tags) -> ModelRecord | None:
    """The newest version that has this one tag, or None."""
    ((key, text),) = encode(tag).items()
    found = list(model_versions(settings, name, f"tag.`{key}` = '{text}'"))
    return _record(max(found, key=lambda version: int(version["version"]))) if found else None


def tags_of(settings: Settings, reference: ModelReference) -> dict[str, Any]:
    """What MLflow says of a version, decoded: what it was registered with, and what was added since."""
    return decode(tags_in(_described(settings, reference)))


def dataset_tables(settings: Settings, name: str) -> dict[ModelReference, TableReference]:
    """Version -> the dataset that it was trained on. Raises when a version does not say it."""
    tags = {
        ModelReference(name, int(each["version"])): decode(tags_in(each)) for each in model_versions(settings, name)
    }
    ours = {version: each.get("dataset_table") for version, each in tags.items() if "sha256" in each}
    if silent := [version for version, table in ours.items() if table is None]:
        raise ThroughlineError(
            f"{', '.join(map(str, silent))} does not say which dataset it was trained on: delete the version, or train "
            "it again."
        )
    return {version: table for version, table in ours.items() if table}


def fetch(settings: Settings, record: ModelRecord, folder: Path) -> Path:
    """Copy the version's signed folder into `folder`, which is new or empty; the path of the model.onnx in it.

    Raises `ThroughlineError` as `verified` does, and when the files cannot be had; `folder` is then as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        draft, location = Path(scratch) / "model", record.uri
        if not Path(location).is_dir():  # what MLflow calls it, for the server to give
            location = _described(settings, record.reference)["source"]
        try:
            artifacts.fetch(settings, location, draft)
        except ThroughlineError as error:
            raise ThroughlineError(f"Model {record.reference}: {error}") from error
        verified(settings, record, draft, record.uri)
        for path in draft.iterdir():
            path.replace(folder / path.name)
    return folder / MODEL_FILE


def load(settings: Settings, record: ModelRecord) -> ServedModel:
    """The version ready to score, its signature and digest checked. Raises as `fetch` does."""
    with tempfile.TemporaryDirectory() as scratch:  # the session is made from bytes read: the file may go
        return ServedModel.load(fetch(settings, record, Path(scratch)), record.sha256)


def provenance_of(settings: Settings, record: ModelRecord) -> Provenance:
    """What the version was signed with. Raises as `fetch` does."""
    with tempfile.TemporaryDirectory() as scratch:
        return provenance.read(fetch(settings, record, Path(scratch)).parent)


def champion(settings: Settings, name: str) -> ModelRecord | None:
    """The champion by the history, or None when there is none."""
    reference = line_of(history.events(settings, name)).champion
    return None if reference is None else get(settings, reference)


def alias(settings: Settings, name: str) -> ModelReference | None:
    """The version with the alias `champion` in MLflow, which follows the history (`rollout/promotion.py`)."""
    version = aliases(settings, name).get(CHAMPION)
    return None if version is None else ModelReference(name, version)


def set_alias(settings: Settings, reference: ModelReference) -> None:
    """Point the alias `champion` at this version."""
    post(settings, "registered-models/alias", name=reference.name, alias=CHAMPION, version=str(reference.version))


def page(settings: Settings, record: ModelRecord) -> str:
    """Where people see the version in MLflow."""
    return f"{settings.url('mlflow')}/#/models/{record.name}/versions/{record.version}"


def _registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _mlflow_folder(file: Path, folder: Path, model: ServedModel, logged: Any, run_id: str) -> None:
    """What `mlflow.onnx.log_model` would log, around the very bytes of `file`."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    inputs: list[ColSpec | TensorSpec] = []
    if model.numeric:
        inputs.append(TensorSpec(np.dtype("float32"), (-1, len(model.numeric)), NUMERIC))
    if model.categorical:
        inputs.append(TensorSpec(np.dtype("O"), (-1, len(model.categorical)), CATEGORICAL))
    outputs: list[ColSpec | TensorSpec] = [TensorSpec(np.dtype("float32"), (-1,), SCORE)]
    mlflow.onnx.save_model(
        onnx.load(str(file)),
        str(folder),
        mlflow_model=Model(artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id),
        signature=ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs)),
        # Given, because MLflow otherwise loads the model in another process to find out, for 12 s.
        pip_requirements=mlflow.onnx.get_default_pip_requirements(),
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1},
        save_as_external_data=False,
    )
    shutil.copyfile(file, folder / MODEL_FILE)


def _link(client: MlflowClient, run_id: str, model_id: str) -> None:
    """Show the model among the run's outputs."""
    from mlflow.entities import LoggedModelOutput

    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _me(settings: Settings) -> str:
    """Who runs this process; the graph, where nobody's token was given to it."""
    try:
        return current_principal(settings).name
    except ThroughlineError:
        return GRAPH


def _tell_registered(settings: Settings, record: ModelRecord, actor: str) -> None:
    event = history.event_of("registered", record.reference, actor, new=record.sha256, once=record.sha256)
    history.append(settings, record.name, event)


def _version_of_run(settings: Settings, name: str, run_id: str) -> ModelRecord | None:
    found = list(model_versions(settings, name, f"run_id = '{run_id}'"))
    return _record(min(found, key=lambda version: int(version["version"]))) if found else None


def _described(settings: Settings, reference: ModelReference) -> dict[str, Any]:
    found = rest.get(settings, "model-versions/get", name=reference.name, version=reference.version)
    if found is None:
        raise ThroughlineError(f"Model {reference} is not registered: `throughline models` lists what is.")
    return found["model_version"]


def _record(described: Mapping[str, Any]) -> ModelRecord:
    reference, tags = ModelReference(described["name"], int(described["version"])), decode(tags_in(described))
    try:
        tagged = {key: tags[key] for key in _TAGGED}
    except KeyError as error:
        raise ThroughlineError(
            f"Model {reference} lacks the tags of a version registered here ({error}): "
            "it was registered by something else; register it with throughline.registry.versions."
        ) from error
    return ModelRecord(name=reference.name, version=reference.version, run_id=described.get("run_id", ""), **tagged)
