"""One prediction, followed back: revision, model version, decision, run, dataset, tables, partitions, code.

Owns: the steps, their order and their fields. A step that cannot be had gives the reason under `missing`; the others
are given all the same. Does not own: where a feature value came from (`values.py`), or how anything is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from typing import Any, TypeVar

from pydantic import Field

from throughline.events.log import PredictionLog
from throughline.events.schema import iso
from throughline.featurestore.layout import PUSHED
from throughline.foundation.clock import WallClock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.lineage.pinned import PinnedTables
from throughline.lineage.registered import MlflowRegistry, RegisteredVersion, TrackedRun
from throughline.lineage.values import ServedRow, ServedValues
from throughline.records import DatasetRecord, GateDecision, HistoryEvent, Record
from throughline.registry import history
from throughline.usecase import UseCase

RAW_ROWS = 20
T = TypeVar("T")


class Step(Record):
    """One step of the thread; `missing` is why it could not be had, and then the rest may be empty."""

    kind: str
    id: str | None = None
    version: int | str | None = None
    missing: str | None = None
    facts: dict[str, Any] = Field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One flat object; instants in UTC with `Z`."""
        return _jsonable({**self.model_dump(exclude={"facts"}), **self.facts})


class Trace(Record):
    """The steps in order, from the prediction to the code."""

    prediction_id: str
    steps: list[Step]

    @property
    def gaps(self) -> list[str]:
        """What is missing, as KIND: REASON."""
        return [f"{step.kind}: {step.missing}" for step in self.steps if step.missing]

    def of(self, kind: str) -> list[Step]:
        return [step for step in self.steps if step.kind == kind]


class Tracer:
    """Traces predictions of one use case; keeps what does not change in memory. Not thread-safe.

    `raw_rows`: how many raw rows are listed at most per feature view and raw table, the newest first.
    """

    def __init__(
        self, settings: Settings, usecase: UseCase, registry: MlflowRegistry | None = None, raw_rows: int = RAW_ROWS
    ) -> None:
        self._settings = settings
        self._usecase = usecase
        self._registry = registry or MlflowRegistry(settings)
        self._tables = PinnedTables(settings)
        self._values = ServedValues(settings, usecase, self._tables, raw_rows)
        self._history: tuple[datetime, list[HistoryEvent]] | None = None
        self.log = PredictionLog(settings, usecase.name)

    def trace(self, prediction_id: str) -> Trace:
        """The thread of one prediction. Raises one line when it is not logged."""
        event = self.log.find(prediction_id)
        version = _or_reason(lambda: self._registry.version(_reference(event)))
        run = version if isinstance(version, str) else _or_reason(lambda: self._registry.run(version.run_id))
        dataset = run if isinstance(run, str) else _or_reason(lambda: self._registry.dataset(run.run_id))
        served, features = self._values.of(event)
        trained = [] if isinstance(dataset, str) else dataset.inputs
        steps = [
            self._prediction(event, features),
            self._revision(event, version),
            _model_version(event, version),
            self._decision(event),
            _run(run),
            _dataset(dataset, version),
            *self._feature_tables(trained, served),
            *self._raw_tables(trained, served),
            _code(version),
        ]
        return Trace(prediction_id=event["id"], steps=steps)

    def _prediction(self, event: Mapping[str, Any], features: list[dict[str, Any]]) -> Step:
        names = ["time", "wall_time", "row_key", "request", "score", "decision", "flags", "latency_ms", "traffic"]
        missing = [feature["missing"] for feature in features if "missing" in feature]
        return Step(
            kind="prediction",
            id=event["id"],
            version=self.log.version,
            missing="; ".join(dict.fromkeys(missing)) or None,
            facts={
                "usecase": self._usecase.name,
                **{name: event[name] for name in names},
                "log": {"table": str(self.log.table), "predictions": self.log.predictions, "lost": self.log.lost},
                "features": features,
            },
        )

    def _revision(self, event: Mapping[str, Any], version: RegisteredVersion | str) -> Step:
        """With its share of the hour's predictions, and since when its model version was champion, if it ever was."""
        share = self.log.share(event["revision"], event["time"])
        reference = str(_reference(event))
        events = self._events(event["model_name"], event["wall_time"])
        promoted = [each for each in events if each.action == "champion" and each.new == reference]
        digest = event["model_sha256"] or event["revision"].rpartition("-")[2]  # of older events, its beginning
        other = not isinstance(version, str) and not str(version.tags.get("sha256", "")).startswith(digest)
        return Step(
            kind="revision",
            id=event["revision"],
            version=event["model_version"],
            missing=f"its file is not the one that {reference} was registered with" if other else None,
            facts={
                "role": event["role"],
                "model_sha256": event["model_sha256"],
                "share": share.share if share.of else None,
                "share_of": {"hour": share.hour, "predictions": share.of, "log_complete": self.log.lost == 0},
                "champion_since": promoted[-1].at if promoted else None,
                "made_champion_by": promoted[-1].actor if promoted else None,
            },
        )

    def _decision(self, event: Mapping[str, Any]) -> Step:
        """The gate's last decision about the version before the prediction, and who approved it."""
        reference = str(_reference(event))
        events = [each for each in self._events(event["model_name"], event["wall_time"]) if each.target == reference]
        decided = [each for each in events if each.action == "decided"]
        if not decided:
            reason = f"the history holds no decision about {reference} from before {iso(event['wall_time'])}"
            return Step(kind="gate_decision", id=reference, missing=reason)
        try:
            decision = GateDecision.model_validate_json(decided[-1].new or "")
        except ValueError:
            reason = f"the history's event {decided[-1].id} holds no readable decision about {reference}"
            return Step(kind="gate_decision", id=reference, missing=reason)
        approvals = [each for each in events if each.action == "approved"]
        return Step(
            kind="gate_decision",
            id=reference,
            version=decided[-1].id,
            facts={
                "decision": decision.decision,
                "decided_at": decision.decided_at,
                "sha256": decision.sha256,
                "rules": [str(rule) for rule in decision.rules],
                "actor": decided[-1].actor,
                "approved_by": [{"actor": each.actor, "at": each.at, "reason": each.reason} for each in approvals],
            },
        )

    def _events(self, name: str, until: datetime) -> list[HistoryEvent]:
        """The history of a model up to an instant (wall clock), oldest first; what is past does not change."""
        if self._history is None or until >= self._history[0]:
            now = WallClock().now()
            self._history = now, history.events(self._settings, self._usecase.name, target=name)
        return [event for event in self._history[1] if event.at <= until]

    def _feature_tables(self, trained: Iterable[TableReference], served: Iterable[ServedRow]) -> list[Step]:
        """One per table and version, and view where several read it: what the training and the prediction used."""
        used: list[tuple[TableReference, dict[str, Any]]] = [(pinned, {"used_for": ["training"]}) for pinned in trained]
        for each in served:
            both = next((facts for pinned, facts in used if pinned == each.table and "view" not in facts), None)
            if both is None:
                used.append((each.table, {"used_for": ["serving"], **each.facts}))
            else:
                both |= {"used_for": ["training", "serving"], **each.facts}
        return [self._feature_table(pinned, facts) for pinned, facts in used]

    def _feature_table(self, pinned: TableReference, facts: dict[str, Any]) -> Step:
        origin, missing = self._tables.made_from(pinned), None
        if origin is None and not pinned.table.endswith(PUSHED):  # pushed rows are made from no table
            missing = f"the history of {pinned.table} does not name what version {pinned.version} was made from"
        if facts.get("matches") is False:
            missing = f"{pinned} holds the row, but not the values that were served"
        made_from = [str(each) for each in origin or ()]
        facts = {"written_at": self._tables.written_at(pinned), "made_from": made_from, **facts}
        return Step(kind="feature_table", id=pinned.table, version=pinned.version, missing=missing, facts=facts)

    def _raw_tables(self, trained: Iterable[TableReference], served: Iterable[ServedRow]) -> list[Step]:
        """One per table and version, with the partitions that were read."""
        read: dict[TableReference, dict[str, set[date]]] = {}
        gone: dict[TableReference, str] = {}
        for pinned in trained:
            for raw in self._tables.made_from(pinned) or ():
                days = _or_reason(lambda raw=raw: self._tables.days(raw))
                if isinstance(days, str):
                    gone[raw], days = days, []
                read.setdefault(raw, {})["training"] = set(days)
        for each in served:
            for raw in self._tables.made_from(each.table) or ():
                read.setdefault(raw, {}).setdefault("serving", set())
            for part in each.raw:
                read[part.table]["serving"] |= part.days
        if not read:
            return [Step(kind="raw_table", missing="no feature table names the raw tables it was made from")]
        return [
            Step(
                kind="raw_table",
                id=raw.table,
                version=raw.version,
                missing=gone.get(raw),
                facts={"used_for": list(uses), "partitions": {use: _span(days) for use, days in uses.items()}},
            )
            for raw, uses in sorted(read.items(), key=lambda item: (item[0].table, item[0].version))
        ]


def _or_reason(fetch: Callable[[], T]) -> T | str:
    """What `fetch` returns, or the reason why it cannot be had."""
    try:
        return fetch()
    except ThroughlineError as error:
        return str(error)


def _reference(event: Mapping[str, Any]) -> ModelReference:
    return ModelReference(event["model_name"], event["model_version"])


def _model_version(event: Mapping[str, Any], version: RegisteredVersion | str) -> Step:
    name, number = event["model_name"], event["model_version"]
    if isinstance(version, str):
        return Step(kind="model_version", id=name, version=number, missing=version)
    shown = ("sha256", "dataset_fingerprint", "trained_until", "trainer", "parameters")
    facts = {"reference": str(_reference(event)), **{tag: version.tags.get(tag) for tag in shown}}
    return Step(kind="model_version", id=name, version=number, facts={**facts, "registered_at": version.registered_at})


def _run(run: TrackedRun | str) -> Step:
    if isinstance(run, str):
        return Step(kind="run", missing=run)
    facts = {"status": run.status, "started_at": run.started_at, "ended_at": run.ended_at}
    causes = {tag: run.tags.get(tag) for tag in ("dagster_run_id", "cause")}
    return Step(kind="run", id=run.run_id, facts={**facts, **causes})


def _dataset(dataset: DatasetRecord | str, version: RegisteredVersion | str) -> Step:
    if isinstance(dataset, str):
        return Step(kind="dataset", missing=dataset)
    registered = None if isinstance(version, str) else version.tags.get("dataset_fingerprint")
    other = registered not in (None, dataset.fingerprint)
    return Step(
        kind="dataset",
        id=dataset.table.table,
        version=dataset.table.version,
        missing=f"the run kept {dataset.fingerprint[:12]}, the version names {registered[:12]}" if other else None,
        facts={
            **{name: getattr(dataset, name) for name in ("fingerprint", "rows", "as_of", "holdout_from", "service")},
            "made_from": [str(pinned) for pinned in dataset.inputs],
        },
    )


def _code(version: RegisteredVersion | str) -> Step:
    if isinstance(version, str):
        return Step(kind="code", missing=version)
    commit = version.tags.get("commit")
    missing = None if commit else "the version does not name the commit of its code"
    facts = {tag: version.tags.get(tag) for tag in ("trainer", "lock")}
    return Step(kind="code", id=commit, version=version.tags.get("code_fingerprint"), missing=missing, facts=facts)


def _span(days: set[date]) -> dict[str, Any] | None:
    """First, last and number of partitions; None of a table without."""
    return {"first": min(days), "last": max(days), "count": len(days)} if days else None


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _jsonable(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_jsonable(part) for part in value]
    if isinstance(value, datetime):
        return iso(value)
    return value.isoformat() if isinstance(value, date) else value
