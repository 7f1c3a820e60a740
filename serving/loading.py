"""Loading the model of a revision: first in a process of its own with limits, then here.

Owns: what is tried before a revision may serve, the limits, the reasons of a refusal. Does not own: signatures
(`throughline.registry.verification`), what serves (`repository.py`).
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from throughline.evaluation import background
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import write_atomic
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.models import provenance
from throughline.models.served_model import ServedModel
from throughline.records import Revision
from throughline.registry import statement
from throughline.registry.verification import verified

CHECKED = "checked"  # in the folder of a use case: the digests of models that were tried
TOLERANCE = 1e-4  # of a score against the one of the evaluation: another machine may round otherwise


@dataclass(frozen=True)
class Loaded:
    """The model of a revision, with what the signed statement names: its trainer and parameters."""

    served: ServedModel
    trainer: str
    parameters: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


def load(settings: Settings, folder: Path, revision: Revision) -> Loaded:
    """Load from the folder of the use case: release and signature verified, digest checked on the bytes that are run.

    Raises `ThroughlineError`; the refusal of a signature is recorded in the history, too.
    """
    file = verify(settings, folder, revision)
    served = ServedModel.load(file, revision.sha256)
    origin = provenance.read(file.parent)
    parameters = ",".join(f"{name}={value}" for name, value in sorted(origin.parameters.items()))
    return Loaded(served, origin.trainer, parameters[:200])


def verify(settings: Settings, folder: Path, revision: Revision) -> Path:
    """The model file of a revision, its release and signature verified. Raises as `load` does."""
    statement.require(settings, revision)
    return verified(settings, revision, (folder / revision.file).parent)


def try_out(settings: Settings, folder: Path, revision: Revision) -> None:
    """Load the revision in a process of its own and have it score the rows that its evaluation recorded.

    Nothing is done for a file that passed before. Raises `ThroughlineError` with the reason of a failure: so a model
    that crashes, hangs or fills the memory never touches the process that serves.
    """
    passed = folder / CHECKED / revision.sha256
    if passed.exists():
        return
    command = [sys.executable, "-m", "serving.check", str(settings.home), str(folder)]
    try:
        done = subprocess.run(
            command,
            input=revision.model_dump_json(),
            capture_output=True,
            text=True,
            cwd=PROJECT_ROOT,
            timeout=settings.model_load_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ThroughlineError(
            f"its model did not load within {settings.model_load_s:g} s (THROUGHLINE_MODEL_LOAD_S)"
        ) from None
    if done.returncode:
        raise ThroughlineError(_reason(settings, done.returncode, done.stderr))
    with contextlib.suppress(OSError):  # a folder that is mounted read-only: it is tried at each start
        write_atomic(passed, "")


def _reason(settings: Settings, code: int, errors: str) -> str:
    last = (errors.strip().splitlines() or ["it gave no reason"])[-1][:300]
    if any(sign in errors for sign in ("bad_alloc", "MemoryError", "Failed to allocate", "bad allocation")):
        return f"its model needs more than {settings.model_memory_mb} MB (THROUGHLINE_MODEL_MEMORY_MB): {last}"
    if code < 0:
        return f"its model crashed the process that tried it ({signal.Signals(-code).name})"
    return last


def score_recorded_rows(served: ServedModel, folder: Path, sha256: str) -> int:
    """Score the rows that the evaluation recorded, or a row without any value where there are none; returns how many.

    Raises `ThroughlineError` for a score that is no probability or not the recorded one.
    """
    recorded = background.read(background.served_path(folder, sha256))
    if recorded is None or not recorded.scores:
        nothing = np.full((1, len(served.numeric)), np.nan, np.float32)
        arrays = nothing, served.words([[None]] * len(served.categorical), 1)
        expected = None
    else:
        arrays = served.matrices(background.frame_of(recorded, served, sha256))
        expected = np.array(recorded.scores)
    scores = served.run(*arrays)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ThroughlineError("its model gives scores that are no probabilities")
    if expected is not None and (differs := np.abs(scores - expected) > TOLERANCE).any():
        row = int(differs.argmax())
        raise ThroughlineError(
            f"its model scores {differs.sum()} of {len(scores)} recorded rows otherwise than its evaluation did "
            f"(row {row}: {scores[row]:.4f}, recorded {expected[row]:.4f})"
        )
    return len(scores)
