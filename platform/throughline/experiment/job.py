"""Work for the code of another commit, done in a clean worktree: `python -m throughline.experiment.job FILE`.

Owns: the file, which is the only interface between two commits of the code (with the records in it), and its process.
Does not own: training (`train.py`), finding the dataset.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from throughline.experiment.commit import worktree
from throughline.experiment.recipe import Recipe, code_of, recipe_of
from throughline.experiment.request import TrainingRequest
from throughline.experiment.train import Run, fit, train_and_register
from throughline.foundation.errors import ThroughlineError, first_problem
from throughline.foundation.settings import PROJECT_ROOT, SECRETS, load_settings
from throughline.launch.protocol import LaunchSpec, emit
from throughline.records import DatasetRecord, ModelRecord, Record
from throughline.usecase import get_usecase

MODULE = "throughline.experiment.job"


class Training(Record):
    """Train and register as requested; the result is a `ModelRecord`."""

    request: TrainingRequest
    dataset: DatasetRecord
    tags: dict[str, str]


class Rebuild(Record):
    """Fit a recipe into the folder `output` and register nothing; the result is each module's code fingerprint."""

    recipe: Recipe
    dataset: DatasetRecord
    output: str


class _File(Record):
    work: Training | Rebuild
    settings: dict[str, Any]
    result: str


def train_here(run: Run, request: TrainingRequest, dataset: DatasetRecord, tags: Mapping[str, str]) -> ModelRecord:
    """Train and register with the code of this checkout; of the request its trainer, parameters and `force` count."""
    usecase = get_usecase(request.usecase)
    recipe = recipe_of(run.settings, usecase, request.trainer, request.parameters)
    return train_and_register(run, usecase, dataset, recipe, tags, request.force)


def train_at(
    run: Run, commit: str, request: TrainingRequest, dataset: DatasetRecord, tags: Mapping[str, str]
) -> ModelRecord:
    """Train and register with the code of a commit."""
    work = Training(request=request, dataset=dataset, tags=dict(tags))
    return ModelRecord.model_validate_json(_run_at(run, commit, work))


def rebuild_at(run: Run, commit: str, recipe: Recipe, dataset: DatasetRecord, output: Path) -> dict[str, str]:
    """Fit a recipe with the code of a commit: leaves model.onnx and report.json in `output`.

    Returns the fingerprint of each trainer module's code at that commit.
    """
    return json.loads(_run_at(run, commit, Rebuild(recipe=recipe, dataset=dataset, output=str(output))))


def _run_at(run: Run, commit: str, work: Training | Rebuild) -> str:
    """The result's JSON. Packages are those of this environment. Raises for a commit without this module."""
    with worktree(PROJECT_ROOT, commit) as code, tempfile.TemporaryDirectory(prefix="throughline-") as folder:
        if not (code / "platform" / "throughline" / "experiment" / "job.py").exists():
            raise ThroughlineError(f"Commit {commit} is older than `throughline train`: take a newer one.")
        file, result = Path(folder) / "job.json", Path(folder) / "result.json"
        settings = run.settings.model_dump(mode="json", exclude=set(SECRETS), exclude_none=True)
        file.write_text(_File(work=work, settings=settings, result=str(result)).model_dump_json())
        spec = LaunchSpec(
            module=MODULE,
            parameters=file,
            processes=1,
            timeout_s=run.settings.step_timeout_s,
            log=run.settings.logs / "training" / f"job-{Path(folder).name}.log",
            workdir=code,
            env={"PYTHONPATH": os.pathsep.join([str(code / "platform"), str(code)])},
        )
        run.launchers["single"].run(spec, run.on_event, run.cancelled)
        return result.read_text()


def _do(run: Run, work: Training | Rebuild) -> str:
    if isinstance(work, Training):
        return train_here(run, work.request, work.dataset, work.tags).model_dump_json()
    fit(run, work.dataset, work.recipe, Path(work.output))
    return json.dumps({recipe.module: code_of(recipe.module) for recipe in (work.recipe, *work.recipe.members)})


def main(arguments: list[str]) -> int:
    """The process boundary: events on standard output, one line for a failure."""
    try:
        file = _File.model_validate_json(Path(arguments[0]).read_text())
        run = Run(load_settings(**file.settings), on_event=lambda event: emit(**event))
        Path(file.result).write_text(_do(run, file.work))
        return 0
    except ValidationError as error:
        emit("error", message=f"This commit cannot read the job: {first_problem(error)[1]}")
    except ThroughlineError as error:
        emit("error", message=str(error), reason=getattr(error, "reason", "bad_data"))
    except Exception as error:  # the process boundary: the log gets the traceback, people get one line
        traceback.print_exc()
        emit("error", message=f"{type(error).__name__}: {error}", reason="bad_code")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
