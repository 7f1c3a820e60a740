"""The process boundary of a worker: how it starts, tells what it does, and gives up.

Owns: exit codes, event lines, the catch-all. Does not own: training itself (`loop.py`).
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from throughline.errors import ThroughlineError
from throughline.experiment.spec import TrainingSpec
from throughline.launch.protocol import EXIT_LOST_PEER


def emit(event: str, **values: Any) -> None:
    """One event line on standard output (see `throughline.launch.protocol`)."""
    # One write per line: the lines of two workers must not be mixed.
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def main(train: Callable[[TrainingSpec], None], arguments: list[str]) -> int:
    """Run `train` on the spec file named by the only argument. Returns the exit code of the process."""
    try:
        train(read_spec(arguments))
    except ThroughlineError as error:
        emit("error", message=str(error))
        return 1
    except Exception as error:  # the process boundary: the log gets the traceback, people get one line
        traceback.print_exc()
        if type(error).__name__ == "HorovodInternalError":
            return EXIT_LOST_PEER
        text = str(error).strip().splitlines()
        emit("error", message=f"{type(error).__name__}: {text[0] if text else 'no further text'}")
        return 1
    return 0


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
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise ThroughlineError(f"Training spec {path}: {where}: {first['msg']}.") from error
