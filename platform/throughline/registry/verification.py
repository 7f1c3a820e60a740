"""Verifies a version's signed folder before its model is loaded: by the model server, evaluation and rollouts.

Owns: which files such a folder may hold, the comparison with what was registered. Does not own: signatures
(`models/signing.py`), fetching the folder (`versions.py`).
"""

from __future__ import annotations

import logging
from pathlib import Path

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import GRAPH
from throughline.foundation.settings import Settings
from throughline.models import provenance
from throughline.models.signing import verify
from throughline.records import ModelRecord, Revision

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
# MLflow's own files stand beside it. A folder with any other file is refused.
_FILES = {MODEL_FILE, provenance.FILE, "MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}


def verified(settings: Settings, registered: ModelRecord | Revision, folder: Path, where: object = None) -> Path:
    """The model.onnx in a copy of a version's folder. `where`: what messages call the folder.

    Raises `ThroughlineError`, and records a `refused` event in the history, unless a trusted key signed every file,
    the signed statement agrees with `registered`, and the folder holds nothing but an ONNX model and MLflow's files.
    The caller loads by `ServedModel.load`, which compares the bytes that it runs with the same digest.
    """
    where = where or folder
    try:
        signed = verify(settings, folder, where)
        if foreign := sorted(signed.keys() - _FILES):
            raise ThroughlineError(f"{where} holds {', '.join(foreign)}, which is no part of a registered model.")
        if (digest := signed.get(MODEL_FILE, "none")) != registered.sha256:
            raise ThroughlineError(
                f"{where} is signed, but holds another model (digest {digest[:12]}, registered: "
                f"{registered.sha256[:12]}): restore it."
            )
        if differing := provenance.differences(provenance.read(folder, where), registered):
            raise ThroughlineError(
                f"{where} was signed with another {', '.join(differing)} than MLflow's tags have: they were changed "
                "after the registration; restore them."
            )
    except ThroughlineError as error:
        reference = ModelReference(registered.name, registered.version)
        record_refusal(settings, reference, str(error))
        raise ThroughlineError(f"Model {reference} is refused: {error}") from error
    return folder / MODEL_FILE


def record_refusal(settings: Settings, reference: ModelReference, reason: str) -> None:
    """A `refused` event in the history; one that cannot be recorded is logged."""
    from throughline.registry import history  # postpones deltalake and pyarrow, which the model server does not need

    try:
        history.append(settings, reference.name, history.event_of("refused", reference, GRAPH, reason=reason))
    except Exception:  # the model stays refused, whether or not that can be recorded
        log.exception("The refusal of %s could not be recorded in the history", reference)
