"""Model versions in MLflow: registered once, signed, described by their tags, fetched with their signature verified.

Owns: writing a `ModelRecord` into the registry and reading it, the alias `champion`. Does not own: the training run
(`mlflow/tracking.py`), signatures (`models/signing.py`), what is served (`rollout/`).

A version is an MLflow LoggedModel of the flavours `onnx` and `python_function`, so `mlflow.pyfunc.load_model` works.
The file in it is the trainer's, byte for byte. Nothing is pickled.
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
    """Register `file` as a signed version of `name`, and record that in the history.

    The same run registered again gives the version it already has. Raises `ThroughlineError` for another file of that
    run, and for one that cannot be served.
    """
    from mlflow.entities import LoggedModelOutput  # postpones mlflow (6 s)

    client = client_of(settings)
    _registered_model(client, name)
    digest = sha256_of(file)
    actor = (tags or {}).get("submitter") or _principal(settings)
    if known := _version_of_run(settings, name, run_id):
        if known.sha256 != digest:
            raise ThroughlineError(
                f"Run {run_id} is already registered as {known.reference} with another file: register a run once."
            )
        _record_registration(settings, known, actor)  # a registration may have been interrupted before this
        return known
    model = ServedModel.load(file, digest)  # a file that cannot be served is not registered
    logged = client.create_logged_model(
        client.get_run(run_id).info.experiment_id, name=name, source_run_id=run_id, model_type="onnx"
    )
    statement = Provenance(
        name=name, run_id=run_id, sha256=digest, dataset_fingerprint=dataset_fingerprint, trained_until=trained_until,
        trainer=trainer, parameters=parameters, tags=encode(tags or {}),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        _mlflow_folder(file, folder, model, logged, run_id)
        provenance.seal(settings, folder, statement)
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    uri = artifacts.resolve(settings, logged.artifact_location)
    described = encode({**statement.model_dump(include=set(_TAGGED)), "uri": uri})
    version = client.create_model_version(
        name, logged.artifact_location, run_id, tags=statement.tags | described, model_id=logged.model_id
    )
    record = get(settings, ModelReference(name, int(version.version)))
    _record_registration(settings, record, actor)
    return record


def get(settings: Settings, reference: ModelReference) -> ModelRecord:
    """The version's record. Raises `ThroughlineError` when there is none."""
    return _record(_described(settings, reference))


def with_tag(settings: Settings, name: str, tag: Tags) -> ModelRecord | None:
    """The newest version that has this one tag, or None."""
    ((key, text),) = encode(tag).items()
    found = list(model_versions(settings, name, f"tag.`{key}` = '{text}'"))
    return _record(max(found, key=lambda version: int(version["version"]))) if found else None


def tags_of(settings: Settings, reference: ModelReference) -> dict[str, Any]:
    """The tags of a version in MLflow, decoded: those of its registration, and those added since."""
    return decode(tags_in(_described(settings, reference)))


def dataset_tables(settings: Settings, name: str) -> dict[ModelReference, TableReference]:
    """Version -> the dataset that it was trained on. Raises when a version registered here lacks that tag."""
    tables = {}
    for described in model_versions(settings, name):
        reference, tags = ModelReference(name, int(described["version"])), decode(tags_in(described))
        if "sha256" in tags:
            if "dataset_table" not in tags:
                raise ThroughlineError(
                    f"{reference} has no tag for the dataset it was trained on: delete the version, or train it again."
                )
            tables[reference] = tags["dataset_table"]
    return tables


def fetch(settings: Settings, record: ModelRecord, folder: Path) -> Path:
    """Copy the version's signed folder into `folder`, which is new or empty; the path of the model.onnx in it.

    Raises `ThroughlineError` as `verified` does, and when the files cannot be had; `folder` is then as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        draft, location = Path(scratch) / "model", record.uri
        if not Path(location).is_dir():  # MLflow's address of it, for a download from the server
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
    """Address of the version's page in MLflow."""
    return f"{settings.url('mlflow')}/#/models/{record.name}/versions/{record.version}"


def _registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException  # postpones mlflow

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _mlflow_folder(file: Path, folder: Path, model: ServedModel, logged: Any, run_id: str) -> None:
    """What `mlflow.onnx.log_model` would log, around the very bytes of `file`."""
    # postpones mlflow and onnx
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


def _principal(settings: Settings) -> str:
    """The principal of this process; the graph, when its token is no user's."""
    try:
        return current_principal(settings).name
    except ThroughlineError:
        return GRAPH


def _record_registration(settings: Settings, record: ModelRecord, actor: str) -> None:
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
            f"Model {reference} lacks the tag {error} of a version registered here: train it here, or delete it."
        ) from error
    return ModelRecord(name=reference.name, version=reference.version, run_id=described.get("run_id", ""), **tagged)
