"""The tags of runs and model versions in MLflow: every name, its type, and how its value is written and read.

Owns: names (`throughline.NAME` in MLflow), types, encoding (texts, instants and references as text, the rest as JSON).
Does not own: who writes a tag, and when. Tags without this prefix (`cause`, `dagster_run_id`, `mlflow.*`) are text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict, get_type_hints

from pydantic import TypeAdapter, ValidationError

from throughline.foundation.errors import ThroughlineError, first_problem
from throughline.foundation.references import ModelReference, TableReference

PREFIX = "throughline."


class Tags(TypedDict, total=False):
    """The tags with the prefix: a name and its type each."""

    # of a run
    usecase: str
    owner: str
    error: str
    search: str
    trial: str
    # of a run and the version registered from it
    submitter: str
    commit: str
    lock: str
    code_fingerprint: str
    recipe_fingerprint: str
    dataset_table: TableReference
    dataset_fingerprint: str
    trainer: str
    # of a version, when it is registered
    sha256: str
    uri: str
    trained_until: datetime
    parameters: dict[str, Any]
    base_rate: float
    # of a version, after its evaluation and its decision
    table_versions: list[TableReference]
    feature_service: str
    feature_definitions: str
    holdout_auc: float
    parent: ModelReference
    gate: str
    gate_failures: str
    gate_at: datetime
    card: str


_ADAPTERS = {name: TypeAdapter(kind) for name, kind in get_type_hints(Tags).items()}
_JSON = ("table_versions", "parameters")


def encode(tags: Mapping[str, Any]) -> dict[str, str]:
    """As MLflow keeps them, from names without prefix; None is left out."""
    return {_key(name): _text(name, value) for name, value in tags.items() if value is not None}


def decode(tags: Mapping[str, str]) -> dict[str, Any]:
    """Names without prefix and typed values. Raises `ThroughlineError` for a value that is not of the tag's type."""
    ours = {name: _value(name, tags[PREFIX + name]) for name in _ADAPTERS if PREFIX + name in tags}
    others = {key: text for key, text in tags.items() if key not in _ADAPTERS and key.removeprefix(PREFIX) not in ours}
    return {**others, **ours}


def _key(name: str) -> str:
    return f"{PREFIX}{name}" if name in _ADAPTERS else name


def _text(name: str, value: Any) -> str:
    plain = _ADAPTERS[name].dump_python(value, mode="json") if name in _ADAPTERS else value
    return plain if isinstance(plain, str) else json.dumps(plain, sort_keys=True)


def _value(name: str, text: str) -> Any:
    adapter = _ADAPTERS[name]
    try:
        return adapter.validate_json(text) if name in _JSON else adapter.validate_python(text)
    except ValidationError as error:
        _, problem = first_problem(error)
        raise ThroughlineError(f"MLflow's tag {_key(name)} cannot be read ({problem}): {text[:80]!r}.") from error
