"""A model card: what a version is, was judged to be, and must not be used for; from facts and from the declaration.

After Mitchell et al. 2019 (Model Cards for Model Reporting). Pure. Owns: what a card has, and its two forms. Does not
own: where it is kept and its signature (`card_store.py`), the numbers (`evaluation/`), what people say of the model's
use (the declaration's `card`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from importlib import resources
from typing import Any

from pydantic import Field

from throughline.evaluation import plots
from throughline.evaluation.report import number
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
from throughline.registry.history import change
from throughline.usecase import CardStatement, UseCase

REQUEST = "request"  # the group of what comes with the request, beside the feature views
JUDGED = ("candidate", "champion", "simple_rule", "constant")
METRICS = ("log_loss", "auc", "brier", "ece")
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
    """What leads from the version back to its code; `unknown` where its tags do not say it."""

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

    Raises one line that names all that the declaration leaves unsaid, or what belongs to another version.
    """
    if missing := unsaid(usecase.card):
        raise ThroughlineError(
            f"{model.reference} gets no card: usecases/{usecase.name}.yaml leaves {', '.join(missing)} under `card` "
            "missing or empty; say it there."
        )
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
        history=concerning(model.reference, events),
    )


def unsaid(statement: CardStatement) -> list[str]:
    """What the declaration's `card` leaves out or empty."""

    def blank(value: Any) -> bool:
        return all(map(blank, value)) if isinstance(value, list) else not str(value).strip()

    said = {name: getattr(statement, name) for name in CardStatement.model_fields}
    return [name for name, value in said.items() if blank(value)]


def by_view(dataset: DatasetRecord) -> dict[str, list[str]]:
    """The dataset's features by the view that gives them; what no view has comes with the request."""
    known = {name for features in dataset.views.values() for name in features}
    others = [name for name in (*dataset.numeric, *dataset.categorical) if name not in known]
    return {view: features for view, features in {**dataset.views, REQUEST: others}.items() if features}


def concerning(reference: ModelReference, events: Iterable[HistoryEvent]) -> list[HistoryEvent]:
    """The events of one version: its own, notes on the model as a whole, and aliases that came to it or left it."""
    version = str(reference)
    return [
        event
        for event in events
        if event.target == version
        or (event.target == reference.name and (event.action == "note" or version in (event.old, event.new)))
    ]


def what_happened(event: HistoryEvent) -> str:
    """Old and new value as a person reads them; a decision by its reason."""
    return "" if event.action == "decided" else change(event)


def render_markdown(card: Card) -> str:
    """As text. What people wrote cannot become markup in it."""
    return _render(card, "card.md.j2", autoescape=False, finalize=_plain)


def render_html(card: Card) -> str:
    """As one page that needs nothing else."""
    from markupsafe import Markup

    e = card.evaluation
    drawn = {
        "reliability": plots.reliability_plot(e.reliability) if e.reliability else "",
        "slices": plots.slices_plot(card.slices_by_gain[:SHOWN]) if e.slices else "",
    }
    pictures = {name: Markup(svg) for name, svg in drawn.items()}  # our own drawing
    return _render(card, "card.html.j2", autoescape=True, plots=pictures)


def _render(
    card: Card, template: str, *, autoescape: bool, finalize: Callable[[Any], Any] | None = None, **given: Any
) -> str:
    from jinja2 import Environment, StrictUndefined

    text = resources.files("throughline.evaluation").joinpath(template).read_text()
    environment = Environment(
        autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=finalize
    )
    environment.filters |= {"time": _time, "number": number}
    e = card.evaluation
    judged = [(who.replace("_", " "), who, getattr(e, who)) for who in JUDGED]
    return environment.from_string(text).render(
        c=card,
        e=e,
        judged=[one for one in judged if one[2] is not None],
        metrics=METRICS,
        span=lambda who, metric: e.intervals.get(who, {}).get(metric),
        slices=card.slices_by_gain[:SHOWN],
        what=what_happened,
        **given,
    )


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


def _time(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M}"


def _plain(value: Any) -> Any:
    """Text that Markdown takes for nothing but text, also in the cell of a table."""
    if not isinstance(value, str):
        return value
    escaped = "".join(f"\\{letter}" if letter in "\\`*|<>[]" else letter for letter in value)
    return " ".join(escaped.split())
