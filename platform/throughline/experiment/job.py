"""One training as a file, for any revision's code to do: `python -m throughline.experiment.job FILE`.

Owns: the file's words, running a job here or in a clean worktree of another revision. Does not own: training
(`train.py`), finding the dataset. What a job asks is the only interface between two revisions of the code.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from throughline.experiment.commit import worktree
from throughline.experiment.recipe import Recipe, code_of, recipe_of
from throughline.experiment.train import Run, fit, train_and_register
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT, SECRETS, load_settings
from throughline.launch.protocol import LaunchSpec
from throughline.records import DatasetRecord, ModelRecord, Record
from throughline.usecase import get_usecase

MODULE = "throughline.experiment.job"


class Job(Record):
    """With `output`: train the very `recipe` into that folder and register nothing."""

    usecase: str
    dataset: DatasetRecord
    trainer: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    recipe: Recipe | None = None
    output: str | None = None
    force: bool = False
    tags: dict[str, str] = Field(default_factory=dict)


class JobResult(Record):
    model: ModelRecord | None = None
    code: dict[str, str] = Field(default_factory=dict, description="Fingerprint of each trainer module's code.")


class _File(Record):
    job: Job
    settings: dict[str, Any]
    result: str


def run_job(run: Run, job: Job) -> JobResult:
    """Do the job with the code that stands here."""
    usecase = get_usecase(job.usecase)
    if job.output is None:
        recipe = job.recipe or recipe_of(run.settings, usecase, job.trainer, job.parameters)
        return JobResult(model=train_and_register(run, usecase, job.dataset, recipe, job.tags, job.force))
    if job.recipe is None:
        raise ThroughlineError("A job with an output folder names its recipe.")
    fit(run, job.dataset, job.recipe, Path(job.output))
    modules = {recipe.module for recipe in (job.recipe, *job.recipe.members)}
    return JobResult(code={module: code_of(module) for module in sorted(modules)})


def run_job_at(run: Run, job: Job, revision: str) -> JobResult:
    """Do the job with a revision's code, in a clean worktree that is gone afterwards.

    Its packages are those of this environment. Raises when the revision is older than jobs are.
    """
    with worktree(PROJECT_ROOT, revision) as code, tempfile.TemporaryDirectory(prefix="throughline-") as folder:
        if not (code / "platform" / "throughline" / "experiment" / "job.py").exists():
            raise ThroughlineError(f"Revision {revision} is older than `throughline train`: take a newer one.")
        file, result = Path(folder) / "job.json", Path(folder) / "result.json"
        settings = run.settings.model_dump(mode="json", exclude=set(SECRETS), exclude_none=True)
        file.write_text(_File(job=job, settings=settings, result=str(result)).model_dump_json())
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
        return JobResult.model_validate_json(result.read_text())


def main(arguments: list[str]) -> int:
    """The process boundary: events on standard output, one line for what went wrong."""

    def emit(event: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(event, default=str) + "\n")
        sys.stdout.flush()

    try:
        asked = _File.model_validate_json(Path(arguments[0]).read_text())
        run = Run(load_settings(**asked.settings), on_event=emit)
        Path(asked.result).write_text(run_job(run, asked.job).model_dump_json())
    except ValidationError as error:
        emit({"event": "error", "message": f"This revision does not understand the job: {error.errors()[0]['msg']}"})
        return 1
    except ThroughlineError as error:
        emit({"event": "error", "message": str(error), "reason": getattr(error, "reason", "bad_data")})
        return 1
    except Exception as error:  # the process boundary: the log gets the traceback, people get one line
        traceback.print_exc()
        emit({"event": "error", "message": f"{type(error).__name__}: {error}", "reason": "bad_code"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
