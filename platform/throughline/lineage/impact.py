"""The tables, datasets and model versions made from a table version, and the predictions of these models.

Owns: following the `inputs` of commits forwards. Does not own: writing these, the way back (`trace.py`). Maintenance
changes a table's version and not its content: such versions count as one.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from pydantic import Field

from throughline.events.log import PredictionLog
from throughline.featurestore.dataset import LAYER as TRAINING
from throughline.featurestore.incremental import inputs_of
from throughline.featurestore.layout import LAYER as FEATURES
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.maintenance import tables as all_tables
from throughline.lakehouse.table import KEEPS_CONTENT
from throughline.lineage.pinned import PinnedTables
from throughline.records import FeatureStoreRecord, Record
from throughline.records.store import find_record
from throughline.registry.versions import dataset_tables


class Impact(Record):
    """What was made from a table version, directly or not."""

    table: TableReference
    feature_tables: list[TableReference]
    datasets: list[TableReference]
    models: list[ModelReference] | None = Field(description="Trained on one of them; None: unknown, see below.")
    models_unknown: str | None = None
    predictions: dict[ModelReference, int] = Field(description="Model version -> its predictions, production traffic.")
    served_from: int = Field(description="Production predictions while a reached feature table's version was newest.")
    log: TableReference | None = Field(description="The inference log that was counted; None: there is none.")
    log_lost: int = Field(description="Events of the log that never arrived: counts are too low by as many at most.")


def impact(settings: Settings, pinned: TableReference) -> Impact:
    """Raises one line when the table is not there, or never had that version."""
    usecase = pinned.usecase
    tables = PinnedTables(settings)
    known = {commit.version for commit in tables.commits(pinned.table)}
    if pinned.version not in known:
        there = f"its versions are {min(known)} to {max(known)}" if known else "there is no such table"
        raise ThroughlineError(f"{pinned} is not in the history of this home: {there}.")
    made: dict[TableReference, list[TableReference]] = {}
    for table in all_tables(settings):
        if table.split("/")[:2] in ([usecase, FEATURES], [usecase, TRAINING]):
            made |= _made_from(tables, table)
    start = tables.content(pinned)
    reached = follow(start, made)
    log = PredictionLog(settings, usecase)
    store = find_record(settings, (usecase, FEATURES, "feature_store"), FeatureStoreRecord)
    online = {view.table.table for view in (store.views if store else ())}
    models, unknown = _trained_on(settings, usecase, tables, reached)
    counts = log.per_model()
    return Impact(
        table=pinned,
        feature_tables=[each for each in reached if each.layer == FEATURES and each != start],
        datasets=[each for each in reached if each.layer == TRAINING and each != start],
        models=models,
        models_unknown=unknown,
        predictions={model: counts.get(model, 0) for model in models or ()},
        served_from=log.made_within(_newest_within(tables, each) for each in reached if each.table in online),
        log=log.table,
        log_lost=log.lost,
    )


def _trained_on(
    settings: Settings, usecase: str, tables: PinnedTables, reached: Collection[TableReference]
) -> tuple[list[ModelReference] | None, str | None]:
    """The model versions, oldest first, or None and why they are unknown: MLflow does not answer."""
    try:
        trained = dataset_tables(settings, usecase)
    except ThroughlineError as error:
        return None, str(error)
    return sorted(model for model, table in trained.items() if tables.content(table) in reached), None


def follow(start: TableReference, made: Mapping[TableReference, Iterable[TableReference]]) -> list[TableReference]:
    """`start`, then everything made from it, the nearest first; pure. made: what each was made from."""
    children: dict[TableReference, list[TableReference]] = defaultdict(list)
    for each, inputs in made.items():
        for source in inputs:
            children[source].append(each)
    reached = {start: None}
    following = deque(reached)
    while following:
        fresh = [each for each in children[following.popleft()] if each not in reached]
        reached |= dict.fromkeys(fresh)
        following.extend(fresh)
    return list(reached)


def _made_from(tables: PinnedTables, table: str) -> dict[TableReference, list[TableReference]]:
    return {
        TableReference(table, commit.version): [tables.content(source) for source in inputs]
        for commit in tables.commits(table)
        if (inputs := inputs_of(table, commit))
    }


def _newest_within(tables: PinnedTables, pinned: TableReference) -> tuple[datetime, datetime | None]:
    """From when to when (wall clock) the content was the newest of its table; None: it still is."""
    changes = [commit for commit in tables.commits(pinned.table) if commit.operation not in KEEPS_CONTENT]
    (since,) = (commit.at for commit in changes if commit.version == pinned.version)
    return since, min((commit.at for commit in changes if commit.version > pinned.version), default=None)
