"""One prediction, followed back: revision, model version, decision, run, dataset, tables, partitions, code.

Owns: the order of these steps, what each says, and what is said where one cannot be had: a step that is `missing`
names the reason, and the others stand. Does not own: where a value came from (`values.py`), or where anything is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from typing import Any, TypeVar

from pydantic import Field

from throughline.events.log import PredictionLog
from throughline.events.schema import iso
from throughline.foundation.clock import WallClock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.lineage.pinned import PinnedTables
from throughline.lineage.registered import MlflowRegistry, Registered, Registry, TrackedRun
from throughline.lineage.values import PUSHED, ServedRow, ServedValues
from throughline.records import DatasetRecord, GateDecision, HistoryEvent, Record
from throughline.registry import history
from throughline.usecase import UseCase

RAW_ROWS = 20
T = TypeVar("T")


class Step(Record):
    """One step of the thread; `missing` says why it could not be had, and then the rest may be empty."""

    kind: str
    id: str | None = None
    version: int | str | None = None
    missing: str | None = None
    facts: dict[str, Any] = Field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One flat object; instants in UTC with `Z`."""
        said = {"kind": self.kind, "id": self.id, "version": self.version, "missing": self.missing}
        return _jsonable({**said, **self.facts})


class Trace(Record):
    """The steps in order, from the prediction to the code."""

    prediction_id: str
    steps: list[Step]

    @property
    def gaps(self) -> list[str]:
        """What is missing, as KIND: REASON."""
        return [f"{step.kind}: {step.missing}" for step in self.steps if step.missing]

    @property
    def complete(self) -> bool:
        return not self.gaps

    def of(self, kind: str) -> list[Step]:
        return [step for step in self.steps if step.kind == kind]


class Tracer:
    """Traces predictions of one use case. What does not change is remembered, so that the next is quick.

    `raw_rows`: at most so many raw rows are listed per feature view and raw table, the newest first. Not thread-safe.
    """

    def __init__(
        self, settings: Settings, usecase: UseCase, registry: Registry | None = None, raw_rows: int = RAW_ROWS
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
        version = _tried(lambda: self._registry.version(_reference(event)))
        run = _then(version, lambda known: self._registry.run(known.run_id))
        dataset = _then(run, self._registry.dataset)
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
        names = ["time", "wall_time", "row_key", "request", "score", "decision", "flags", "latency_ms"]
        lost = [feature for feature in features if "missing" in feature]
        return Step(
            kind="prediction",
            id=event["id"],
            version=self.log.version,
            missing="; ".join(dict.fromkeys(feature["missing"] for feature in lost)) or None,
            facts={
                "usecase": self._usecase.name,
                **{name: event[name] for name in names},
                "log": {"table": str(self.log.table), "predictions": self.log.predictions, "lost": self.log.lost},
                "features": features,
            },
        )

    def _revision(self, event: Mapping[str, Any], version: Registered | str) -> Step:
        """Its share of the hour's predictions, and since when its model version is champion, where that was told."""
        share = self.log.share(event["revision"], event["time"])
        reference = str(_reference(event))
        told = self._told(event["model_name"], event["wall_time"])
        crowned = [each for each in told if each.action == "champion" and each.new == reference]
        digest = event["revision"].rpartition("-")[2]
        strange = not isinstance(version, str) and not str(version.said.get("sha256", "")).startswith(digest)
        return Step(
            kind="revision",
            id=event["revision"],
            version=event["model_version"],
            missing=f"it is not of the file that {reference} was registered with" if strange else None,
            facts={
                "role": event["role"],
                "share": share.share if share.of else None,
                "share_of": {"hour": share.hour, "predictions": share.of, "log_complete": self.log.lost == 0},
                "champion_since": crowned[-1].at if crowned else None,
                "made_champion_by": crowned[-1].actor if crowned else None,
            },
        )

    def _decision(self, event: Mapping[str, Any]) -> Step:
        """What the gate said of the version, the last time before the prediction, and who approved it."""
        reference = str(_reference(event))
        told = [each for each in self._told(event["model_name"], event["wall_time"]) if each.target == reference]
        decided = [each for each in told if each.action == "decided"]
        if not decided:
            reason = f"the history holds no decision about {reference} from before {iso(event['wall_time'])}"
            return Step(kind="gate_decision", id=reference, missing=reason)
        try:
            decision = GateDecision.model_validate_json(decided[-1].new or "")
        except ValueError:
            reason = f"the history's event {decided[-1].id} holds no readable decision about {reference}"
            return Step(kind="gate_decision", id=reference, missing=reason)
        approvals = [each for each in told if each.action == "approved"]
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

    def _told(self, name: str, until: datetime) -> list[HistoryEvent]:
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
                used.append((each.table, {"used_for": ["serving"], **each.said}))
            else:
                both |= {"used_for": ["training", "serving"], **each.said}
        return [self._feature_table(pinned, facts) for pinned, facts in used]

    def _feature_table(self, pinned: TableReference, facts: dict[str, Any]) -> Step:
        origin, missing = self._tables.made_from(pinned), None
        if origin is None and not pinned.table.endswith(PUSHED):  # what was pushed was made from nothing else
            missing = f"the history of {pinned.table} does not say what version {pinned.version} was made from"
        if facts.get("matches") is False:
            missing = f"{pinned} holds the row, but not the values that were served"
        made_from = [str(each) for each in origin or ()]
        said = {"written_at": self._tables.written_at(pinned), "made_from": made_from, **facts}
        return Step(kind="feature_table", id=pinned.table, version=pinned.version, missing=missing, facts=said)

    def _raw_tables(self, trained: Iterable[TableReference], served: Iterable[ServedRow]) -> list[Step]:
        """One per table and version, with the partitions that were read."""
        read: dict[TableReference, dict[str, set[date]]] = {}
        gone: dict[TableReference, str] = {}
        for pinned in trained:
            for raw in self._tables.made_from(pinned) or ():
                days = _tried(lambda raw=raw: self._tables.days(raw))
                if isinstance(days, str):
                    gone[raw], days = days, []
                read.setdefault(raw, {})["training"] = set(days)
        for each in served:
            for raw in self._tables.made_from(each.table) or ():
                read.setdefault(raw, {}).setdefault("serving", set())
            for part in each.raw:
                read[part.table]["serving"] |= part.days
        if not read:
            return [Step(kind="raw_table", missing="no feature table says which raw tables it was made from")]
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


def _tried(ask: Callable[[], T]) -> T | str:
    """What is asked for, or the reason why it cannot be had."""
    try:
        return ask()
    except ThroughlineError as error:
        return str(error)


def _then(known: Any, ask: Callable[[Any], T]) -> T | str:
    return known if isinstance(known, str) else _tried(lambda: ask(known))


def _reference(event: Mapping[str, Any]) -> ModelReference:
    return ModelReference(event["model_name"], event["model_version"])


def _model_version(event: Mapping[str, Any], version: Registered | str) -> Step:
    name, number = event["model_name"], event["model_version"]
    if isinstance(version, str):
        return Step(kind="model_version", id=name, version=number, missing=version)
    told = ["sha256", "dataset_fingerprint", "trained_until", "trainer", "parameters"]
    facts = {"reference": str(_reference(event)), **{key: version.said.get(key) for key in told}}
    return Step(kind="model_version", id=name, version=number, facts={**facts, "registered_at": version.registered_at})


def _run(run: TrackedRun | str) -> Step:
    if isinstance(run, str):
        return Step(kind="run", missing=run)
    facts = {"status": run.status, "started_at": run.started_at, "ended_at": run.ended_at}
    causes = {name: run.said.get(name) for name in ("dagster_run_id", "cause")}
    return Step(kind="run", id=run.run_id, facts={**facts, **causes})


def _dataset(dataset: DatasetRecord | str, version: Registered | str) -> Step:
    if isinstance(dataset, str):
        return Step(kind="dataset", missing=dataset)
    registered = None if isinstance(version, str) else version.said.get("dataset_fingerprint")
    other = registered not in (None, dataset.fingerprint)
    return Step(
        kind="dataset",
        id=dataset.table.table,
        version=dataset.table.version,
        missing=f"the run kept {dataset.fingerprint[:12]}, the version names {registered[:12]}" if other else None,
        facts={
            "fingerprint": dataset.fingerprint,
            "rows": dataset.rows,
            "as_of": dataset.as_of,
            "holdout_from": dataset.holdout_from,
            "service": dataset.service,
            "made_from": [str(pinned) for pinned in dataset.inputs],
        },
    )


def _code(version: Registered | str) -> Step:
    if isinstance(version, str):
        return Step(kind="code", missing=version)
    commit = version.said.get("commit")
    missing = None if commit else "the version does not name the commit of its code"
    facts = {"trainer": version.said.get("trainer"), "lock": version.said.get("lock")}
    return Step(kind="code", id=commit, version=version.said.get("code_fingerprint"), missing=missing, facts=facts)


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
