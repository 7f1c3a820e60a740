"""Entity rows in SQL: parsed, and checked to read registered sources only; pure."""

from __future__ import annotations

from collections.abc import Mapping

from sqlglot import exp, parse
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.scope import traverse_scope

from throughline.featurestore.delta_source import DeltaSource
from throughline.featurestore.retrieval import SqlSpine
from throughline.foundation.errors import ThroughlineError


def parse_spine(sql: str, engine: str, known: Mapping[str, DeltaSource]) -> SqlSpine:
    """The query with the sources that it names. Raises unless it is one SELECT over sources in `known`."""
    try:
        statements = parse(sql, read="spark" if engine == "spark" else "postgres")
    except SqlglotError as error:
        raise ThroughlineError(f"The SQL for the entity rows does not parse: {str(error).splitlines()[0]}") from error
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise ThroughlineError("The SQL for the entity rows must be one SELECT.")
    read = [s for scope in traverse_scope(statements[0]) for s in scope.sources.values() if isinstance(s, exp.Table)]
    # all but a plain name (another catalog, a path, a function that reads files) is named as it was written
    named = {table.name if type(table.this) is exp.Identifier and not table.db else table.sql() for table in read}
    if unknown := sorted(named - set(known)):
        raise ThroughlineError(
            f"The SQL for the entity rows reads {', '.join(unknown)}: it may read the registered sources "
            f"{', '.join(sorted(known)) or '(there are none)'}."
        )
    return SqlSpine(sql, {name: known[name] for name in named})
