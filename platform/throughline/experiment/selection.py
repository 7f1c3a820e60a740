"""Leaving out features that later weeks do not need, by permutation importance.

Owns: importance and which features are kept. Does not own: training, the weeks (a search names them).
Importance of a feature: the rise of the log loss on the later weeks when the feature's values are shuffled among the
rows (Breiman 2001, section 10), as the mean of several shuffles. Features without a rise are left out, and the smaller
set is taken only when a training on it is no worse on those weeks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from throughline.experiment.recipe import Recipe
from throughline.experiment.spec import MODEL_FILE
from throughline.experiment.train import Run, fit
from throughline.featurestore.dataset import dataset_fingerprint
from throughline.lakehouse.table import scan
from throughline.mlflow.tracking import client_of
from throughline.models.metrics import log_loss
from throughline.models.served_model import ServedModel
from throughline.records import DatasetRecord

SHUFFLES = 3
NO_WORSE = 0.0005  # of log loss; a difference that another seed makes, too
ROWS = 20_000


def importances(
    score: Callable[[pl.DataFrame], np.ndarray], rows: pl.DataFrame, features: list[str], seed: int
) -> dict[str, float]:
    """Per feature the mean rise of log loss over `SHUFFLES` shuffles of its values; `rows` has `label`."""
    labels = rows["label"].cast(pl.Float64).to_numpy()
    before = log_loss(score(rows), labels)
    draw = np.random.default_rng(seed)
    rises = {}
    for name in features:
        orders = [draw.permutation(rows.height) for _ in range(SHUFFLES)]
        losses = [log_loss(score(rows.with_columns(rows[name].gather(order))), labels) for order in orders]
        rises[name] = float(np.mean(losses)) - before
    return rises


def needed(rises: dict[str, float]) -> set[str]:
    """Features without which the model is worse; the best one when there is none."""
    return {name for name, rise in rises.items() if rise > 0} or {max(rises, key=rises.__getitem__)}


def select_features(
    run: Run, recipe: Recipe, dataset: DatasetRecord, validation_from: datetime, run_id: str
) -> set[str]:
    """The features that are needed, or all when fewer do worse on rows from `validation_from`."""
    with tempfile.TemporaryDirectory(prefix="throughline-") as scratch:
        folder = Path(scratch)
        report = fit(run, dataset, recipe, folder / "all", validation_from=validation_from)
        model = ServedModel.load(folder / "all" / MODEL_FILE, report.sha256)
        later = pl.col("prediction_time").is_between(validation_from, dataset.holdout_from, closed="left")
        rows = scan(dataset.path, dataset.table.version).filter(later).sort("row_key").collect()
        rows = rows.gather_every(max(1, rows.height // ROWS))
        rises = importances(model.score, rows, [*dataset.numeric, *dataset.categorical], recipe.seed)
        kept = needed(rises)
        again = fit(run, with_features(dataset, kept), recipe, folder / "fewer", validation_from=validation_from)
    by_rise = dict(sorted(rises.items(), key=lambda item: -item[1]))
    client_of(run.settings).log_dict(run_id, by_rise, "search/importances.json")
    with_all, with_fewer = report.validation_log_loss, again.validation_log_loss
    better = with_all is not None and with_fewer is not None and with_fewer <= with_all + NO_WORSE
    run.report(
        "selection", kept=len(kept), of=len(rises), log_loss_all=with_all, log_loss_kept=with_fewer, taken=better
    )
    return kept if better else set(rises)


def with_features(dataset: DatasetRecord, features: set[str]) -> DatasetRecord:
    """The same rows with these features; fewer of them are another dataset, under its own fingerprint."""
    if features >= {*dataset.numeric, *dataset.categorical}:
        return dataset
    numeric = [name for name in dataset.numeric if name in features]
    categorical = [name for name in dataset.categorical if name in features]
    rows = scan(dataset.path, dataset.table.version).select(
        "row_key", "prediction_time", "label_available_at", "label", *numeric, *categorical
    )
    fingerprint = dataset_fingerprint(rows, numeric, categorical, dataset.holdout_from, dataset.service)
    return dataset.model_copy(update={"numeric": numeric, "categorical": categorical, "fingerprint": fingerprint})
