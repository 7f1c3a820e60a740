"""Which columns of its sources a column of a feature table is computed from, read off the compiled SQL; pure.

Owns: reading Spark SQL (sqlglot), with its CTEs, windows and unions, down to the tables it names. What decides a value
counts: its expression, the keys and order of its windows, both sides of a joined key. What only picks rows (filters,
join conditions) does not. Does not own: compiling (dbt), or how lineage is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from throughline.foundation.errors import ThroughlineError
from throughline.usecase import SourceTable, UseCase

# What `ingestion/ingest.py` puts beside the declared columns; a register has no days.
_PLATFORM_COLUMNS = {"ingestion_run_id": "string", "day": "date"}


class Upstream(NamedTuple):
    """A column of a table that the SQL reads, the table by its last name."""

    table: str
    column: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column}"


def column_lineage(sql: str, schema: str, tables: Mapping[str, Mapping[str, str]]) -> dict[str, list[Upstream]]:
    """Column of the query, in its order -> what it is computed from, sorted; an empty list for a constant.

    sql:    one SELECT in Spark's dialect, such as dbt compiles.
    tables: the tables of `schema` whose columns are known, with their types; the others' are taken from their use.
    Raises `ThroughlineError` when the SQL cannot be read, or names a column that is nowhere.
    """
    from sqlglot import exp, parse_one
    from sqlglot.errors import OptimizeError, ParseError, SqlglotError
    from sqlglot.lineage import lineage
    from sqlglot.optimizer.qualify import qualify
    from sqlglot.optimizer.scope import build_scope

    try:
        known = {name: dict(columns) for name, columns in tables.items() if columns}
        schemas = {schema: known} if known else None
        query = parse_one(sql, dialect="spark")
        if not isinstance(query, exp.Query):
            raise ParseError("it is no SELECT")
        query = qualify(query, dialect="spark", schema=schemas, infer_schema=True)
        scope = build_scope(query)
        if any(part.expression.is_star for part in scope.traverse()):
            raise OptimizeError("it selects * from a table whose columns nobody declared")
        found = {}
        for column in query.named_selects:
            leaves = lineage(column, query, scope=scope, dialect="spark", copy=False, trim_selects=False).walk()
            read = (leaf for leaf in leaves if isinstance(leaf.expression, exp.Table))
            found[column] = sorted({Upstream(leaf.expression.name, exp.to_column(leaf.name).name) for leaf in read})
    except SqlglotError as error:
        reason = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:160]
        raise ThroughlineError(
            f"Column lineage cannot be read off the SQL ({reason}): correct the model, or declare the columns it reads "
            "under `expects`."
        ) from error
    return found


def raw_columns(usecase: UseCase) -> dict[str, dict[str, str]]:
    """The columns of each raw table as declared, with Spark's types; none where nothing is expected of a table."""
    return {name: _columns(table) for name, table in usecase.sources.tables.items()}


def _columns(table: SourceTable) -> dict[str, str]:
    if table.expects is None:
        return {}
    types = {"integer": "bigint", "number": "double"}
    declared = {name: types.get(column.type, column.type) for name, column in table.expects.all_columns.items()}
    platform = {name: kind for name, kind in _PLATFORM_COLUMNS.items() if name != "day" or not table.static}
    return declared | platform
