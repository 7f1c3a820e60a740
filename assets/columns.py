"""Columns in the metadata of assets: their types and descriptions, and the raw columns they are computed from.

Owns: the form of both in Dagster's metadata. Does not own: the lineage itself (`throughline.featurestore.lineage`) or
descriptions (the Feast definitions). The open edition of Dagster does not show `dagster/column_lineage`, so a column's
description repeats it.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dagster import AssetKey, TableColumn, TableColumnConstraints, TableColumnDep, TableColumnLineage, TableSchema

from throughline.featurestore.incremental import models_of
from throughline.featurestore.lineage import Upstream, column_lineage, raw_columns
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import write_atomic
from throughline.foundation.fingerprint import combine, fingerprint_code
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.spark import schema_name
from throughline.lakehouse.table import open_table
from throughline.usecase import Column, SourceTable, UseCase

RAW = "raw"

Columns = Mapping[str, Sequence[Upstream]]


def model_lineage(settings: Settings, usecase: UseCase, manifest: Mapping[str, Any]) -> dict[str, Columns]:
    """The lineage of the columns of each dbt model; a model whose SQL cannot be parsed is left out, with a warning.

    Kept in the home for other processes with the same SQL: parsing takes a second of a core, and each run loads it.
    """
    known, schema = raw_columns(usecase), schema_name(usecase.name, RAW)
    sql = {node["name"]: node["compiled_code"] for node in models_of(manifest, usecase).values()}
    code = fingerprint_code(["throughline.featurestore.lineage", "sqlglot"])
    inputs = combine(code, schema, json.dumps([known, sql], sort_keys=True))
    kept = settings.dbt_home / "lineage" / f"{usecase.name}.json"
    if kept.exists() and (read := json.loads(kept.read_text()))["inputs"] == inputs:
        return {
            model: {column: [Upstream(*source) for source in sources] for column, sources in columns.items()}
            for model, columns in read["models"].items()
        }
    found = {}
    for name, query in sql.items():
        try:
            found[name] = column_lineage(query, schema, known)
        except ThroughlineError as error:
            logging.getLogger(__name__).warning("%s: %s", name, error)
    if len(found) == len(sql):
        write_atomic(kept, json.dumps({"inputs": inputs, "models": found}))
    return found


def lineage_metadata(usecase: UseCase, columns: Columns) -> dict[str, Any]:
    """`dagster/column_lineage` of a feature table."""
    deps = {
        name: [TableColumnDep(AssetKey([usecase.name, RAW, source.table]), source.column) for source in sources]
        for name, sources in columns.items()
    }
    return {"dagster/column_lineage": TableColumnLineage(deps_by_column=deps)}


def held_columns(
    settings: Settings, pinned: TableReference, descriptions: Mapping[str, str], columns: Columns | None
) -> dict[str, Any]:
    """`dagster/column_schema` of a feature table at a version: types, descriptions and origin of its columns."""
    fields = open_table(settings.lakehouse / pinned.table, pinned.version).schema().fields
    return _schema(
        TableColumn(
            name=field.name,
            type=getattr(field.type, "type", str(field.type)),
            description=" ".join(filter(None, (descriptions.get(field.name), _origin(field.name, columns)))) or None,
        )
        for field in fields
    )


def _origin(name: str, columns: Columns | None) -> str:
    sources = (columns or {}).get(name)
    return f"← {', '.join(map(str, sources))}" if sources else ""


def declared_columns(table: SourceTable) -> dict[str, Any]:
    """`dagster/column_schema` of a raw table from its declared expectations; empty without them."""
    if table.expects is None:
        return {}
    return _schema(
        TableColumn(
            name=name,
            type=column.type,
            constraints=TableColumnConstraints(
                nullable=column.nulls is not None, other=[*(["key"] if name in table.key else []), *_rules(column)]
            ),
        )
        for name, column in table.expects.all_columns.items()
    )


def _rules(column: Column) -> list[str]:
    rules = [] if column.nulls is None else [f"at most {column.nulls:.0%} null"]
    rules += [] if column.at_least is None else [f"≥ {column.at_least:g}"]
    rules += [] if column.at_most is None else [f"≤ {column.at_most:g}"]
    rules += [f"one of {', '.join(map(str, column.values))}"] if column.values else []
    return rules + ([column.pattern] if column.pattern else [])


def _schema(columns: Iterable[TableColumn]) -> dict[str, Any]:
    return {"dagster/column_schema": TableSchema(columns=list(columns))}
