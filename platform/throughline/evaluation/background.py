"""The background of explanations: rows drawn once per model version, logged with its run, placed beside its revision.
With the scores that the evaluated model gave them they are also what a model server checks a loaded model against.

Owns: drawing, the JSON file and where it is. Does not own: explaining (`explain.py`). The file is checked data bound to
a model's digest: a changed one can falsify explanations, never a prediction.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import polars as pl

from throughline.evaluation.explain import Model, sample
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.mlflow import artifacts
from throughline.mlflow.tracking import client_of
from throughline.models.served_model import ServedModel
from throughline.records import Background, ModelRecord
from throughline.records.store import read_record, write_record

logger = logging.getLogger(__name__)

ROWS = 50
FOLDER, FILE = "evaluation", "background.json"  # among the artifacts of the version's run
SERVED = "explain"  # in the folder of a use case


def background_of(model: ServedModel, rows: pl.DataFrame) -> Background:
    """At most `ROWS` of the rows, with the model's features. The same rows in the same order give the same."""
    drawn = sample(rows, ROWS)
    numeric = drawn.select(pl.col(name).cast(pl.Float64).fill_nan(None) for name in model.numeric)
    words = drawn.select(pl.col(name).cast(pl.String) for name in model.categorical)
    return Background(
        sha256=model.sha256,
        numeric=numeric.to_dict(as_series=False),
        categorical=words.to_dict(as_series=False),
        scores=model.score(drawn).tolist(),
    )


def frame_of(background: Background, model: Model, sha256: str) -> pl.DataFrame:
    """The rows, for the model whose file has this digest. Raises when they are another's."""
    names = ([*background.numeric], [*background.categorical])
    if (background.sha256, *names) != (sha256, model.numeric, model.categorical):
        raise ThroughlineError(
            f"The background is of the file {background.sha256[:12]}, explained is {sha256[:12]}: "
            "evaluate and deploy the version again."
        )
    return pl.DataFrame(
        [
            *(pl.Series(name, values, pl.Float64) for name, values in background.numeric.items()),
            *(pl.Series(name, values, pl.String) for name, values in background.categorical.items()),
        ]
    )


def log(settings: Settings, model: ModelRecord, background: Background) -> None:
    """Log it with the version's run in MLflow."""
    client_of(settings).log_text(model.run_id, background.model_dump_json(), f"{FOLDER}/{FILE}")


def fetch(settings: Settings, model: ModelRecord) -> Background | None:
    """The one logged with the version's run; None where there is none."""
    path = f"{FOLDER}/{FILE}"
    if not artifacts.is_logged(settings, model.run_id, path):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        return read(artifacts.fetch_of_run(settings, model.run_id, path, Path(scratch) / FILE))


def place(settings: Settings, model: ModelRecord, folder: Path) -> None:
    """Copy the logged background to where the model server reads it, in the folder of a use case, unless it is there.

    Without one the version is served without explanations: that is logged, and nothing is raised.
    """
    path = served_path(folder, model.sha256)
    if path.exists():  # a rollback needs no registry
        return
    try:
        background = fetch(settings, model)
    except Exception:  # each kind of store raises its own
        logger.exception("The background of %s cannot be read: it is served without explanations", model.reference)
        return
    if background is None:
        logger.warning("%s has no background: it is served without explanations", model.reference)
    else:
        write_record(path, background)


def served_path(folder: Path, sha256: str) -> Path:
    """The file of a model, beside the revisions: a revision's own folder holds the signed files and nothing else."""
    return folder / SERVED / f"{sha256[:12]}.json"


def read(path: Path) -> Background | None:
    """The file's content; None when there is none. Raises when it is no background."""
    return read_record(path, Background, "deploy the version again")
