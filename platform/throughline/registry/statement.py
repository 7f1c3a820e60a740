"""The signed statement of a release: what a model server verifies in place of the history before it loads a version.

Owns: the statement beside the deployed versions (`serving/<usecase>/releases/<version>`), issuing and requiring it.
Does not own: whether the history has the release (`rollout/placing.py` looks before it issues), signatures
(`models/signing.py`), the version's own folder (`verification.py`).

An experiment's folder is signed, too, and a revision file can be written by hand: only this binds version, file and
the gate's release together. Decision 026.
"""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.models.signing import sign, verify
from throughline.records import GateDecision, Revision
from throughline.records.base import Record
from throughline.records.store import write_record
from throughline.registry.verification import record_refusal

FILE = "release.json"
_REMEDY = "`throughline run` deploys it again if the history has its release"


class ReleaseStatement(Record):
    """The gate's release of a version and its file, for one use case."""

    usecase: str
    decision: GateDecision


def issue(settings: Settings, usecase: str, decision: GateDecision) -> None:
    """State that `decision`, which the caller found in the history, is a release. Repeating it changes nothing."""
    if decision.decision != "release":
        raise ThroughlineError(f"{decision.model} is not deployed: the gate's decision is {decision.decision}.")
    statement, folder = ReleaseStatement(usecase=usecase, decision=decision), _folder(settings, usecase, decision)
    with suppress(ThroughlineError):
        if _read(settings, folder) == statement:
            return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".issue-") as scratch:
        made = Path(scratch) / "new"
        write_record(made / FILE, statement)
        sign(settings, made)
        if folder.exists():
            folder.replace(Path(scratch) / "old")
        made.replace(folder)


def require(settings: Settings, revision: Revision) -> None:
    """Raises `ThroughlineError`, and records it in the history, unless a trusted key signed the release of this very
    version and file for this use case."""
    folder = settings.serving_home / revision.usecase / "releases" / str(revision.version)
    try:
        if not folder.exists():
            raise ThroughlineError(f"it has no statement of its release ({folder}): {_REMEDY}.")
        statement = _read(settings, folder)
        stated = (statement.usecase, statement.decision.model, statement.decision.sha256, statement.decision.decision)
        if stated != (revision.usecase, revision.model, revision.sha256, "release"):
            raise ThroughlineError(
                f"{folder} states the {statement.decision.decision} of {statement.decision.model} with digest "
                f"{statement.decision.sha256[:12]} for {statement.usecase}, not of digest {revision.sha256[:12]}: "
                f"{_REMEDY}."
            )
    except ThroughlineError as error:
        record_refusal(settings, revision.model, str(error))
        raise ThroughlineError(f"Model {revision.model} is refused: {error}") from error


def _folder(settings: Settings, usecase: str, decision: GateDecision) -> Path:
    return settings.serving_home / usecase / "releases" / str(decision.model.version)


def _read(settings: Settings, folder: Path) -> ReleaseStatement:
    """The statement in a folder of which a trusted key signed every file: it holds nothing else."""
    signed = verify(settings, folder)
    if signed.keys() != {FILE}:
        raise ThroughlineError(f"{folder} holds other files than {FILE}: {_REMEDY}.")
    try:
        content = (folder / FILE).read_bytes()
        if hashlib.sha256(content).hexdigest() != signed[FILE]:
            raise ThroughlineError(f"{folder / FILE} changed while it was read: {_REMEDY}.")
        return ReleaseStatement.model_validate_json(content)
    except (OSError, ValidationError) as error:
        raise ThroughlineError(f"{folder / FILE} cannot be read ({type(error).__name__}): {_REMEDY}.") from error
