"""Predictions joined with their outcomes.

Owns: which outcome belongs to which prediction, and how long one is waited for. Uses the data clock.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from throughline.events.schema import LOG_SCHEMA, production
from throughline.featurestore.spine import as_known
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import read, replace_all
from throughline.records import InferenceLogRecord, OutcomesRecord
from throughline.usecase import UseCase
from throughline.usecase.requests import row_keys

LAYER, TABLE = "monitoring", "outcomes"

_LOGGED = ("id", "time", "row_key", "model_name", "model_version", "role", "score", "decision")


def join_outcomes(usecase: UseCase, predictions: pl.DataFrame, spine: pl.DataFrame, as_of: datetime) -> pl.DataFrame:
    """One row per prediction of production traffic with `label` (null while unknown), `label_available_at` and `state`.

    predictions: the inference log; spine: the use case's spine. `as_of` in UTC: what became known later is not seen.
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
        .with_columns(state.alias("state"))
    )


def write_outcomes(
    settings: Settings, usecase: UseCase, log: InferenceLogRecord, spine: TableReference, as_of: datetime
) -> OutcomesRecord:
    """Join the pinned log with the pinned spine and write `monitoring/outcomes`."""
    predictions = read(settings, log.table).collect() if log.table else pl.DataFrame(schema=LOG_SCHEMA)
    outcomes = join_outcomes(usecase, predictions, read(settings, spine).collect(), as_of)
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
    )
