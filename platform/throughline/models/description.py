"""The tags of a model version that follow from its evaluation and decision, and the list of all versions.

Does not own: the tags of registration (`registry/versions.py`), the card.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from throughline.foundation.fingerprint import combine, fingerprint_imports
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.mlflow.rest import aliases, model_versions, post, tags_in
from throughline.mlflow.tags import decode, encode
from throughline.records import DatasetRecord, EvaluationRecord, GateDecision, ModelRecord, Record
from throughline.usecase import UseCase


class VersionSummary(Record):
    """One line of `throughline models`; None: not known yet."""

    model: ModelReference
    aliases: list[str]
    trainer: str
    dataset: str = Field(description="Fingerprint.")
    dataset_table: TableReference | None
    auc: float | None = Field(description="On the rows held out.")
    decision: str | None
    parent: ModelReference | None
    card: str | None
    registered: datetime


def describe_version(
    settings: Settings,
    usecase: UseCase,
    model: ModelRecord,
    dataset: DatasetRecord,
    evaluation: EvaluationRecord,
    decision: GateDecision | None,
) -> dict[str, Any]:
    """Set and return the tags of a version after its evaluation; `decision`: None for what no gate judges."""
    # what the features are: the Feast definitions and the code of the request's own features
    places = (usecase.features.definitions, usecase.features.request_features.partition(":")[0])
    code = (fingerprint_imports(place, (place.split(".")[0],)) for place in places)
    tags: dict[str, Any] = {
        "table_versions": dataset.inputs,
        "feature_service": dataset.service or usecase.features.service,
        "feature_definitions": combine(usecase.features.service, *code),
        "holdout_auc": evaluation.candidate.auc,
        "parent": evaluation.champion_model,
    }
    if decision is not None:
        failures = decision.failures or "none"
        tags |= {"gate": decision.decision, "gate_failures": failures, "gate_at": decision.decided_at}
    set_tags(settings, model, tags)
    return tags


def set_tags(settings: Settings, model: ModelRecord, tags: Mapping[str, Any]) -> None:
    for key, text in encode(tags).items():
        post(settings, "model-versions/set-tag", name=model.name, version=str(model.version), key=key, value=text)


def summaries(settings: Settings, name: str) -> list[VersionSummary]:
    """All versions of a model that were registered here, newest first."""
    named: dict[int, list[str]] = defaultdict(list)
    for alias, version in sorted(aliases(settings, name).items()):
        named[version].append(alias)
    found = (_summary(version, named) for version in model_versions(settings, name))
    return sorted(filter(None, found), key=lambda one: one.model, reverse=True)


def _summary(version: dict[str, Any], named: Mapping[int, list[str]]) -> VersionSummary | None:
    tags = decode(tags_in(version))
    if "sha256" not in tags:
        return None
    return VersionSummary(
        model=ModelReference(version["name"], int(version["version"])),
        aliases=named.get(int(version["version"]), []),
        trainer=tags["trainer"],
        dataset=tags["dataset_fingerprint"],
        dataset_table=tags.get("dataset_table"),
        auc=tags.get("holdout_auc"),
        decision=tags.get("gate"),
        parent=tags.get("parent"),
        card=tags.get("card"),
        registered=datetime.fromtimestamp(int(version["creation_timestamp"]) / 1000, UTC),
    )
