"""Predictions joined with their outcomes.

Owns: which outcome belongs to which prediction, and how long one is waited for. Uses the data clock.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from throughline.events import feedback
from throughline.events.schema import LOG_SCHEMA, production
from throughline.events.waiting import unmatched
from throughline.featurestore.spine import as_known
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import find_pin, read, replace_all
from throughline.records import InferenceLogRecord, OutcomesRecord
from throughline.usecase import UseCase
from throughline.usecase.requests import row_keys

LAYER, TABLE = "monitoring", "outcomes"

_LOGGED = ("id", "time", "row_key", "model_name", "model_version", "revision", "role", "score", "decision")


def join_outcomes(
    usecase: UseCase,
    predictions: pl.DataFrame,
    spine: pl.DataFrame,
    as_of: datetime,
    reports: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """One row per prediction of production traffic with `label` (null while unknown), `label_available_at`,
    `label_from`, `label_conflict` and `state`.

    predictions: the inference log; spine: the use case's spine; reports: `monitoring/feedback`. `as_of` in UTC: what
    became known later is not seen. A label of the spine wins over a report, of which the newest (by its event time)
    counts; `label_conflict`: they differ.
    state is `labelled`; `pending`, while the label may still come; or `never`, once the declared delay has passed
    after the time that was predicted (cancelled, diverted): counted, not scored.
    """
    label, time_field = usecase.label, usecase.prediction.time_field
    known = as_known(usecase, spine.lazy(), as_of).collect()
    outcomes = known.select(
        row_keys(usecase, known).alias("row_key"),
        pl.col(time_field).alias("outcome_time"),
        pl.col(label.column).cast(pl.Int8).alias("label"),
        pl.col(label.known_at).alias("label_available_at"),
    )
    state = (
        pl.when(pl.col("label").is_not_null())
        .then(pl.lit("labelled"))
        .when(pl.col("outcome_time") + label.delay < as_of)
        .then(pl.lit("never"))
        .otherwise(pl.lit("pending"))
    )
    return (
        production(predictions.lazy())
        .collect()
        .select(*_LOGGED)
        .filter(pl.col("time") <= as_of)
        .unique("id", keep="first", maintain_order=True)
        .join(outcomes, on="row_key", how="left", maintain_order="left")
        .join(_reported(reports, as_of), on="id", how="left", maintain_order="left")
        .with_columns(
            label_from=pl.when(pl.col("label").is_not_null())
            .then(pl.lit("spine"))
            .when(pl.col("reported").is_not_null())
            .then(pl.lit("feedback")),
            label_conflict=(pl.col("label") != pl.col("reported")).fill_null(False),
        )
        .with_columns(
            label=pl.coalesce("label", "reported"),
            label_available_at=pl.when(pl.col("label").is_not_null())
            .then("label_available_at")
            .otherwise("reported_available_at"),
        )
        .with_columns(state.alias("state"))
        .drop("reported", "reported_available_at")
    )


def _reported(reports: pl.DataFrame | None, as_of: datetime) -> pl.DataFrame:
    """The newest report of each prediction, of those known at `as_of`."""
    rows = pl.DataFrame(schema=feedback.SCHEMA) if reports is None else reports
    return (
        rows.filter(pl.col("available_at") <= as_of)
        .sort("event_time", "available_at", "id")
        .unique("prediction_id", keep="last", maintain_order=True)
        .select(
            pl.col("prediction_id").alias("id"),
            pl.col("label").cast(pl.Int8).alias("reported"),
            pl.col("available_at").alias("reported_available_at"),
        )
    )


def write_outcomes(
    settings: Settings, usecase: UseCase, log: InferenceLogRecord, spine: TableReference, as_of: datetime
) -> OutcomesRecord:
    """Join the pinned log with the pinned spine and reports, and write `monitoring/outcomes`."""
    predictions = read(settings, log.table).collect() if log.table else pl.DataFrame(schema=LOG_SCHEMA)
    reports = read(settings, log.feedback).collect() if log.feedback else pl.DataFrame(schema=feedback.SCHEMA)
    outcomes = join_outcomes(usecase, predictions, read(settings, spine).collect(), as_of, reports)
    alone = unmatched(reports.lazy(), predictions.lazy(), as_of, usecase.label.feedback_wait)
    version = replace_all(settings.table_path(usecase.name, LAYER, TABLE), outcomes)
    states = dict(outcomes.group_by("state").len().iter_rows())
    return OutcomesRecord(
        table=TableReference(f"{usecase.name}/{LAYER}/{TABLE}", version),
        as_of=as_of,
        predictions=outcomes.height,
        labelled=states.get("labelled", 0),
        pending=states.get("pending", 0),
        never_labelled=states.get("never", 0),
        log_complete=log.lost == 0,
        from_feedback=outcomes.filter(pl.col("label_from") == "feedback").height,
        conflicts=int(outcomes["label_conflict"].sum()),
        feedback_waiting=alone.waiting,
        feedback_expired=alone.expired,
    )


def losses(settings: Settings, usecase: str) -> dict[str, tuple[int, float]]:
    """By revision, the number of labelled predictions and the sum of their Brier losses, each in [0, 1]."""
    table = find_pin(settings, f"{usecase}/{LAYER}/{TABLE}")
    if table is None:
        return {}
    rows = read(settings, table)
    if "revision" not in rows.collect_schema():
        return {}  # written before outcomes named revisions
    labelled = rows.filter(pl.col("state") == "labelled")
    squared = (pl.col("score") - pl.col("label")) ** 2
    summed = labelled.group_by("revision").agg(pl.len(), squared.sum().alias("loss")).collect()
    return {revision: (number, loss) for revision, number, loss in summed.iter_rows()}
