"""What a version says of itself beside its file: the tags that follow from its evaluation, and the list of versions.

Owns: those tags, and reading all versions at once. Does not own: the tags of registration (`models.py`), the card.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from throughline.foundation.fingerprint import combine, fingerprint_imports
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import Settings
from throughline.mlflow.rest import aliases, model_versions, tags_in, tell
from throughline.records import DatasetRecord, EvaluationRecord, GateDecision, ModelRecord, Record
from throughline.usecase import UseCase

TABLE_VERSIONS, SERVICE, DEFINITIONS = (
    "throughline.table_versions",
    "throughline.feature_service",
    "throughline.feature_definitions",
)
AUC, PARENT = "throughline.holdout_auc", "throughline.parent"
DECISION, FAILURES, DECIDED_AT = "throughline.gate", "throughline.gate_failures", "throughline.gate_at"
CARD = "throughline.card"
_REGISTERED = "throughline.sha256"  # has every version that was registered here


class VersionSummary(Record):
    """One line of `throughline models`; None: not told yet."""

    model: ModelReference
    aliases: list[str]
    trainer: str
    dataset: str = Field(description="Fingerprint.")
    dataset_table: str | None
    auc: float | None = Field(description="On the rows held out.")
    decision: str | None
    parent: str | None
    card: str | None
    registered: datetime


def description_of(
    usecase: UseCase, dataset: DatasetRecord, evaluation: EvaluationRecord, decision: GateDecision | None
) -> dict[str, str]:
    """Tags of a version after its evaluation and, where there is one, its decision. Reads our own source."""
    tags = {
        TABLE_VERSIONS: json.dumps([str(version) for version in dataset.inputs]),
        SERVICE: dataset.service or usecase.features.service,
        DEFINITIONS: definitions_of(usecase),
        AUC: repr(evaluation.candidate.auc),
        PARENT: str(evaluation.champion_model or "none"),
    }
    if decision is not None:
        tags |= {
            DECISION: decision.decision,
            FAILURES: decision.failures or "none",
            DECIDED_AT: decision.decided_at.isoformat(),
        }
    return tags


def definitions_of(usecase: UseCase) -> str:
    """Fingerprint of what the features are: the Feast definitions and the code of the request's own features."""
    places = (usecase.features.definitions, usecase.features.request_features.partition(":")[0])
    return combine(usecase.features.service, *(fingerprint_imports(place, (place.split(".")[0],)) for place in places))


def describe_version(
    settings: Settings,
    usecase: UseCase,
    model: ModelRecord,
    dataset: DatasetRecord,
    evaluation: EvaluationRecord,
    decision: GateDecision | None,
) -> dict[str, str]:
    """Add what `description_of` says to the version in the registry; without a decision for what no gate judges."""
    tags = description_of(usecase, dataset, evaluation, decision)
    set_tags(settings, model, tags)
    return tags


def set_tags(settings: Settings, model: ModelRecord, tags: Mapping[str, str]) -> None:
    for tag, value in tags.items():
        tell(settings, "model-versions/set-tag", name=model.name, version=str(model.version), key=tag, value=value)


def summaries(settings: Settings, name: str) -> list[VersionSummary]:
    """All versions of a model that were registered here, newest first."""
    named: dict[int, list[str]] = defaultdict(list)
    for alias, version in sorted(aliases(settings, name).items()):
        named[version].append(alias)
    found = (_summary(version, named) for version in model_versions(settings, name))
    return sorted(filter(None, found), key=lambda one: one.model, reverse=True)


def _summary(version: dict[str, Any], named: Mapping[int, list[str]]) -> VersionSummary | None:
    tags = tags_in(version)
    if _REGISTERED not in tags:
        return None
    auc = tags.get(AUC)
    return VersionSummary(
        model=ModelReference(version["name"], int(version["version"])),
        aliases=named.get(int(version["version"]), []),
        trainer=json.loads(tags["throughline.trainer"]),
        dataset=json.loads(tags["throughline.dataset_fingerprint"]),
        dataset_table=tags.get("throughline.dataset_table"),
        auc=None if auc is None else float(auc),
        decision=tags.get(DECISION),
        parent=tags.get(PARENT),
        card=tags.get(CARD),
        registered=datetime.fromtimestamp(int(version["creation_timestamp"]) / 1000, UTC),
    )
