"""Batch scores: what falls due on local days, scored by one model version into a Delta table.

Owns: which rows a day has, the table, the comparison with what the endpoint answered. Does not own: the features, which
are joined point in time as for training (`featurestore`), the model.
"""

from __future__ import annotations

import json
from datetime import date, datetime

import polars as pl

from throughline.events.schema import LAYER as LOG_LAYER
from throughline.events.schema import TABLE as LOG
from throughline.events.schema import production
from throughline.featurestore.request_features import add_request_features
from throughline.foundation.days import DAY as ONE_DAY
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import DAY, find_pin, read, replace_days
from throughline.models.served_model import ServedModel
from throughline.records import ModelRecord
from throughline.records.base import Record
from throughline.rollout.endpoint import requests_between
from throughline.usecase import UseCase
from throughline.usecase.requests import row_keys

LAYER, TABLE = "batch", "scores"
TOLERANCE = 1e-6  # a matrix of many rows may be multiplied in another order than one row


class BatchScoresRecord(Record):
    """The scores of some local days. Of the predictions that the endpoint made of the same rows by the same version,
    `compared` had the same features; of these, `differing` have another score."""

    table: TableReference
    model: ModelReference
    rows: int
    mean_score: float | None
    compared: int
    differing: int


def score_days(
    settings: Settings,
    usecase: UseCase,
    model: ModelRecord,
    served: ServedModel,
    first: date,
    last: date,
    now: datetime,
    run_id: str,
) -> BatchScoresRecord:
    """Score what is to be predicted on the local days [first, last] with features as known at each prediction time.

    `now` (UTC, data clock): when the scores become known. The days' rows are replaced: repeated, the content is the
    same. Raises `ThroughlineError` when the model does not fit the features.
    """
    from throughline.featurestore.store import historical_features  # postpones feast (4 s)

    start, end = usecase.day_start(first), usecase.day_start(last + ONE_DAY)
    rows = requests_between(settings, usecase, start, end)
    features = add_request_features(usecase, historical_features(settings, usecase, rows, "prediction_time"))
    scores = served.score(features)
    decide = usecase.prediction.decision.decide
    scored = features.select(
        pl.col("prediction_time").dt.convert_time_zone(usecase.timezone).dt.date().alias(DAY),
        row_keys(usecase, rows),
        "prediction_time",
        pl.col("prediction_time").alias("event_time"),
        pl.lit(now).dt.convert_time_zone("UTC").cast(pl.Datetime("us", "UTC")).alias("available_at"),
        pl.lit(run_id).alias("ingestion_run_id"),
        pl.lit(model.name).alias("model_name"),
        pl.lit(model.version, pl.Int64).alias("model_version"),
        pl.lit(model.sha256).alias("model_sha256"),
        pl.Series("score", scores, pl.Float64),
        pl.Series("decision", [decide(score) for score in scores.tolist()], pl.String),
    )
    version = replace_days(settings.table_path(usecase.name, LAYER, TABLE), scored, first, last)
    ours = features.hstack(scored.select("row_key", "score"))
    compared, differing = compare(ours, logged(settings, usecase, model), served)
    return BatchScoresRecord(
        table=TableReference(f"{usecase.name}/{LAYER}/{TABLE}", version),
        model=model.reference,
        rows=scored.height,
        mean_score=float(scores.mean()) if scored.height else None,
        compared=compared,
        differing=differing,
    )


def logged(settings: Settings, usecase: UseCase, model: ModelRecord) -> pl.DataFrame:
    """Row key, features (JSON) and score of the production predictions of a version."""
    table = find_pin(settings, f"{usecase.name}/{LOG_LAYER}/{LOG}")
    if table is None:
        return pl.DataFrame(schema={"row_key": pl.String, "features": pl.String, "score": pl.Float64})
    mine = (pl.col("model_name") == model.name) & (pl.col("model_version") == model.version)
    return production(read(settings, table)).filter(mine).select("row_key", "features", "score").collect()


def compare(scored: pl.DataFrame, predicted: pl.DataFrame, served: ServedModel) -> tuple[int, int]:
    """How many predictions have the features that the batch had for their row, and how many of these another score.

    scored: per row its features, `row_key` and `score`; predicted: as `logged` gives. Pure.
    """
    names = [*served.numeric, *served.categorical]
    batch = {row["row_key"]: row for row in scored.select("row_key", "score", *names).to_dicts()}
    compared = differing = 0
    for key, features, score in predicted.iter_rows():
        mine, theirs = batch.get(key), json.loads(features)
        if mine is not None and all(mine[name] == theirs.get(name) for name in names):
            compared += 1
            differing += abs(mine["score"] - score) > TOLERANCE
    return compared, differing
