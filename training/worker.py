"""The process boundary of a worker: how it starts, reports, and fails.

Owns: reading the spec, reports, exit codes, the catch-all. Does not own: training, event lines (`launch/protocol.py`).
A trainer is a module with a model `Parameters`, light to import, and `main(Parameters, train)` at its end;
`train(task, parameters)` fits on `task.rows` and ends with `task.write(...)`.
"""

from __future__ import annotations

import math
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from throughline.experiment.parameters import CommonParameters, checked
from throughline.experiment.prepared import PreparedRows, open_prepared
from throughline.experiment.spec import Epoch, TrainingSpec
from throughline.foundation.errors import ThroughlineError, first_problem
from throughline.launch.protocol import EXIT_LOST_PEER, Reason, WorkerFailed, emit
from training.output import Fitted, write_output
from training.tracking import log_metrics

P = TypeVar("P", bound=CommonParameters)
# How Gloo, NCCL and torch.distributed report that the other end of a connection is gone.
_LOST_PEER = re.compile(
    r"connection (closed|reset|refused)|broken pipe|HorovodInternalError|remote process exited", re.IGNORECASE
)
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|std::bad_alloc|MemoryError", re.IGNORECASE)


@dataclass
class Task:
    """One training as a trainer sees it: the rows, and where its progress is reported."""

    spec: TrainingSpec
    rows: PreparedRows
    leads: bool = True  # only one of several workers reports and writes
    workers: int = 1
    epochs: list[Epoch] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        if self.leads:
            facts = self.rows.facts
            emit("start", rows=facts.rows_trained, validation_rows=facts.rows_validation, workers=self.workers)

    def epoch(
        self,
        train_loss: float,
        validation_loss: float | None,
        rows: int,
        seconds: float,
        data_share: float | None = None,
    ) -> Epoch:
        """Keep and report an epoch that trained on `rows` rows. Losses are of all workers.

        Raises `WorkerFailed`, on all workers alike, for a loss that is no number.
        """
        number, seconds = len(self.epochs) + 1, max(seconds, 1e-9)
        if not math.isfinite(train_loss):
            remedy = "lower the learning rate or look for absurd feature values"
            problem = f"The training loss became {train_loss} in epoch {number}: {remedy}."
            raise WorkerFailed(problem, "bad_parameters")
        epoch = Epoch(
            epoch=number,
            train_loss=train_loss,
            validation_loss=validation_loss,
            samples_per_s=round(rows / seconds, 1),
            seconds=round(seconds, 3),
            data_share=data_share,
        )
        self.epochs.append(epoch)
        if self.leads:
            emit("epoch", **epoch.model_dump())
            if self.spec.tracking:
                log_metrics(self.spec.tracking, number, epoch.model_dump(exclude={"epoch"}, exclude_none=True))
        return epoch

    def write(self, fitted: Fitted, **fields: Any) -> None:
        """Export, check and write the output folder, on the worker that leads; `fields`: more of the report."""
        if not self.leads:
            return
        fields = {"epochs": self.epochs, "notes": self.notes, "world_size": self.workers, **fields}
        report = write_output(self.spec, self.rows, fitted, self._started, fields)
        emit("done", sha256=report.sha256, seconds=round(report.seconds, 2), onnx_difference=report.onnx_difference)


def main(parameters: type[P], train: Callable[[Task, P], None], arguments: list[str] | None = None) -> int:
    """Run `train` on the spec file named by the only argument. Returns the exit code of the process."""
    try:
        spec = read_spec(sys.argv[1:] if arguments is None else arguments)
        given = checked(parameters, spec.parameters)
        train(Task(spec, open_prepared(Path(spec.data))), given)
        return 0
    except ThroughlineError as error:
        emit("error", message=str(error), reason=getattr(error, "reason", "bad_data"))
    except Exception as error:  # the process boundary: the log gets the traceback, people get one line
        traceback.print_exc()
        kind, text = type(error).__name__, " ".join(str(error).split())
        if _LOST_PEER.search(f"{kind}: {text}"):
            return EXIT_LOST_PEER
        reason: Reason = "out_of_memory" if _NO_MEMORY.search(f"{kind}: {text}") else "bad_code"
        emit("error", message=f"{kind}: {text[:300] or 'no further text'}", reason=reason)
    return 1


def read_spec(arguments: list[str]) -> TrainingSpec:
    """Raises `ThroughlineError` when there is no such file or it is not a `TrainingSpec`."""
    if len(arguments) != 1:
        raise ThroughlineError("Give one argument, the path of a training spec (JSON).")
    path = Path(arguments[0])
    try:
        return TrainingSpec.model_validate_json(path.read_text())
    except OSError as error:
        raise ThroughlineError(f"Training spec {path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        where, problem = first_problem(error)
        raise ThroughlineError(f"Training spec {path}: {where or 'file'}: {problem}.") from error
