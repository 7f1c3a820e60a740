"""A model card: what a version is, how it was judged, and what it must not be used for. Pure.

After Mitchell et al. 2019 (Model Cards for Model Reporting). Owns: what a card has, and its two forms. Does not own:
its storage and signature (`card_store.py`), the numbers (`evaluation/`), texts about use (the declaration's `card`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import Field

from throughline.evaluation import plots
from throughline.evaluation.report import fill
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.records import (
    DatasetRecord,
    EvaluationRecord,
    GateDecision,
    HistoryEvent,
    ModelRecord,
    Record,
    SliceMetrics,
)
from throughline.registry.history import change, concerning
from throughline.usecase import CardStatement, UseCase

REQUEST = "request"  # the group of what comes with the request, beside the feature views
SHOWN = 10  # of the slices


class CardData(Record):
    """The rows a version was made from and judged on."""

    table: TableReference
    fingerprint: str
    rows: int
    as_of: datetime
    trained_until: datetime
    holdout_from: datetime
    holdout_until: datetime
    inputs: list[TableReference]


class CardLineage(Record):
    """From the version back to its code; `unknown` where it has no such tag."""

    run: str
    commit: str
    lock: str
    code: str
    sha256: str = Field(description="Of the ONNX file.")
    feature_service: str
    feature_definitions: str
    orchestrator_run: str
    cause: str


class Card(Record):
    """Everything by value: a card needs no other record to be read."""

    model: ModelReference
    goal: str
    business_metric: str
    predicted: str
    owners: list[str]
    approvers: list[str]
    statement: CardStatement
    trainer: str
    parameters: dict[str, Any]
    data: CardData
    features: dict[str, list[str]] = Field(description="Feature view, or `request`, -> features of the model.")
    evaluation: EvaluationRecord
    decision: GateDecision
    parent: ModelReference | None = Field(description="The champion it was compared with.")
    lineage: CardLineage
    history: list[HistoryEvent]

    @property
    def slices_by_gain(self) -> list[SliceMetrics]:
        """The worst first: the least log loss saved against a constant."""
        return sorted(self.evaluation.slices, key=lambda one: one.log_loss_under_constant)


def card_of(
    usecase: UseCase,
    model: ModelRecord,
    tags: Mapping[str, Any],
    dataset: DatasetRecord,
    evaluation: EvaluationRecord,
    decision: GateDecision,
    events: Iterable[HistoryEvent],
    parameters: Mapping[str, Any] | None = None,
) -> Card:
    """The card of one version. `tags`: the version's; `parameters`: its run's, beside the model's own.

    Raises one line that names all that the declaration leaves out, or what belongs to another version.
    """
    if missing := left_out(usecase.card):
        where = f"usecases/{usecase.name}.yaml leaves {', '.join(missing)} under `card` missing or empty"
        raise ThroughlineError(f"{model.reference} gets no card: {where}; write it there.")
    if foreign := _of_others(model, dataset, evaluation, decision):
        raise ThroughlineError(f"{model.reference} gets no card: {'; '.join(foreign)}. Evaluate and decide it again.")

    def tag(name: str) -> str:
        return tags.get(name) or "unknown"

    return Card(
        model=model.reference,
        goal=usecase.goal,
        business_metric=usecase.business_metric,
        predicted=usecase.label.event,
        owners=usecase.owners,
        approvers=usecase.approvers,
        statement=usecase.card,
        trainer=model.trainer,
        parameters={**(parameters or {}), **model.parameters},
        data=CardData(
            table=dataset.table,
            fingerprint=dataset.fingerprint,
            rows=dataset.rows,
            as_of=dataset.as_of,
            trained_until=model.trained_until,
            holdout_from=evaluation.holdout_from,
            holdout_until=evaluation.holdout_until,
            inputs=dataset.inputs,
        ),
        features=by_view(dataset),
        evaluation=evaluation,
        decision=decision,
        parent=evaluation.champion_model,
        lineage=CardLineage(
            run=model.run_id,
            commit=tag("commit"),
            lock=tag("lock"),
            code=tag("code_fingerprint"),
            sha256=model.sha256,
            feature_service=dataset.service or tag("feature_service"),
            feature_definitions=tag("feature_definitions"),
            orchestrator_run=tag("dagster_run_id"),
            cause=tag("cause"),
        ),
        history=concerning(events, model.reference),
    )


def left_out(statement: CardStatement) -> list[str]:
    """What the declaration's `card` leaves out or empty."""

    def blank(value: Any) -> bool:
        return all(map(blank, value)) if isinstance(value, list) else not str(value).strip()

    return [name for name in CardStatement.model_fields if blank(getattr(statement, name))]


def by_view(dataset: DatasetRecord) -> dict[str, list[str]]:
    """The dataset's features by the view that gives them; what no view has comes with the request."""
    known = {name for features in dataset.views.values() for name in features}
    others = [name for name in (*dataset.numeric, *dataset.categorical) if name not in known]
    return {view: features for view, features in {**dataset.views, REQUEST: others}.items() if features}


def render_markdown(card: Card) -> str:
    """As text. What people wrote cannot become markup in it."""
    return fill("card.md.j2", _values(card), finalize=_plain)


def render_html(card: Card) -> str:
    """As one page that needs nothing else."""
    e = card.evaluation
    pictures = {
        "reliability": plots.reliability_plot(e.reliability) if e.reliability else "",
        "slices": plots.slices_plot(card.slices_by_gain[:SHOWN]) if e.slices else "",
    }
    return fill("card.html.j2", _values(card), pictures)


def _values(card: Card) -> dict[str, Any]:
    return {"c": card, "e": card.evaluation, "slices": card.slices_by_gain[:SHOWN], "what": change}


def _of_others(
    model: ModelRecord, dataset: DatasetRecord, evaluation: EvaluationRecord, decision: GateDecision
) -> list[str]:
    ours = (model.reference, model.sha256, model.dataset_fingerprint)
    problems = []
    if (evaluation.model, evaluation.sha256, evaluation.dataset_fingerprint) != ours:
        problems.append(f"the evaluation is of {evaluation.model}, file {evaluation.sha256[:12]}")
    if (decision.model, decision.sha256) != ours[:2]:
        problems.append(f"the decision is about {decision.model}, file {decision.sha256[:12]}")
    if dataset.fingerprint != model.dataset_fingerprint:
        problems.append(f"the dataset {dataset.table} is another than it was trained on")
    return problems


def _plain(value: Any) -> Any:
    """Text that Markdown takes for nothing but text, also in the cell of a table."""
    if not isinstance(value, str):
        return value
    escaped = "".join(f"\\{letter}" if letter in "\\`*|<>[]" else letter for letter in value)
    return " ".join(escaped.split())
