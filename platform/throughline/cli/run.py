"""`throughline run`: brings services and graph up to date, doing only what changed, and sends a prediction."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from rich.markup import escape

from throughline import services
from throughline.cli.arguments import AsJson
from throughline.cli.output import console, emit, fields, follow_run, out
from throughline.cli.rollout import follow_rollout
from throughline.cli.services import progress
from throughline.foundation.clock import data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.graph.client import Graph
from throughline.graph.plan import plan_run
from throughline.records import DatasetRecord, EndpointRecord, EvaluationRecord, FeatureStoreRecord, GateDecision
from throughline.records.store import find_record, load_record
from throughline.rollout.endpoint import example_request, predict
from throughline.rollout.picture import fields_of
from throughline.rollout.promotion import restore
from throughline.services import doctor
from throughline.usecase import UseCase, load_usecases


def run(as_json: AsJson = False) -> None:
    """Start the services, bring the graph up to date, and send one real prediction."""
    started = time.monotonic()
    settings = load_settings()
    doctor.require(settings)
    with progress() as report:
        services.up(settings, report=report)
    up_s = time.monotonic() - started
    unserved = services.load_deployed(settings, services.served_models(settings))
    results = [_run_usecase(settings, usecase, unserved.get(usecase.name)) for usecase in load_usecases().values()]
    result = {"seconds": {"services": round(up_s, 1), "all": round(time.monotonic() - started, 1)}, "usecases": results}
    emit(as_json, result, lambda: _show(settings, results))


def _run_usecase(settings: Settings, usecase: UseCase, unserved: services.Trouble | None) -> dict[str, Any]:
    """`unserved`: what was deployed and the model server does not load."""
    name, now = usecase.name, data_clock(settings, usecase.clock_start(settings)).now()
    if unserved is not None:
        console.print(f"[bold]{name}[/]: {escape(unserved.what)}; its champion is deployed again")
        restore(settings, usecase, again=True)
    graph = Graph(settings)
    graph.reload()
    states = [state for state in graph.states() if state.key[0] == name]
    features = find_record(settings, (name, "features", "feature_store"), FeatureStoreRecord)
    late = features is not None and usecase.local_day(features.as_of) < usecase.local_day(now)
    behind = frozenset({"features"} if late else ())
    plan = plan_run(states, usecase.first_day(settings), usecase.local_day(now), behind)
    materialised: list[str] = []
    started = time.monotonic()
    if plan:
        days = (plan.days[0].isoformat(), plan.days[1].isoformat()) if plan.days else None
        span = f", days {days[0]} to {days[1]}" if days else ""
        console.print(f"[bold]{name}[/]: {len(plan.assets)} of {len(states)} assets to materialise{span}")
        run_id = graph.launch(plan.assets, partitions=days)
        outcome = follow_run(graph, settings, run_id)
        materialised = outcome.materialised
        if not outcome.succeeded:
            raise ThroughlineError(
                f"{name} was not brought up to date: {outcome.cause} "
                f"(details: {settings.url('dagster')}/runs/{run_id}; `make run` goes on from here)."
            )
    else:
        console.print(f"[bold]{name}[/]: nothing changed, nothing to materialise")

    rollout = follow_rollout(settings, usecase)
    endpoint = find_record(settings, (name, "deployment", "endpoint"), EndpointRecord)
    gate = find_record(settings, (name, "evaluation", "gate"), GateDecision)
    if endpoint is None or gate is None:
        reasons = f"{gate.model}: {gate.failures}" if gate else "no candidate was judged"
        raise ThroughlineError(f"{name} has no live endpoint: the gate released nothing yet ({reasons}).")
    dataset = load_record(settings, (name, "training", "dataset"), DatasetRecord)
    evaluation = load_record(settings, (name, "evaluation", "evaluation"), EvaluationRecord)
    prediction = predict(settings, usecase, [example_request(settings, usecase, now)])[0]
    return {
        "usecase": name,
        "materialised": materialised,
        "seconds": round(time.monotonic() - started, 1),
        "data_clock": now.isoformat(),
        "days": [usecase.first_day(settings).isoformat(), (usecase.local_day(now) - timedelta(days=1)).isoformat()],
        "dataset": {"version": dataset.table.version, "fingerprint": dataset.fingerprint, "rows": dataset.rows},
        "model": str(endpoint.model),
        "rollout": rollout and fields_of(rollout),
        "gate": gate.decision,
        "auc": evaluation.candidate.auc,
        "log_loss": evaluation.candidate.log_loss,
        "endpoint": f"{settings.url('model_http')}/v1/models/{name}:predict",
        "prediction": prediction,
    }


def _show(settings: Settings, results: list[dict[str, Any]]) -> None:
    for done in results:
        data, prediction, rollout = done["dataset"], done["prediction"], done["rollout"]
        lines = {
            "materialised": f"{len(set(done['materialised']))} assets in {done['seconds']} s",
            "data": f"{done['days'][0]} to {done['days'][1]}, data clock {done['data_clock']}",
            "dataset": f"{data['rows']:,} rows, version {data['version']}, {data['fingerprint'][:12]}",
            "model": f"{done['model']} (gate: {done['gate']})",
            "rollout": rollout and f"{rollout['candidate']}: {rollout['state']}: {rollout['why']}",
            "held-out weeks": f"AUC {done['auc']:.4f}, log loss {done['log_loss']:.4f}",
            "endpoint": done["endpoint"],
            "gRPC": f"127.0.0.1:{settings.port('model_grpc')}",
            "a prediction": f"{prediction['decision']}, score {prediction['score']:.4f}",
            "prediction_id": prediction["prediction_id"],
        }
        out().print(f"[bold]{escape(done['usecase'])}[/]")
        out().print(fields(lines))
    places = {"Dagster": settings.url("dagster"), "MLflow": settings.url("mlflow"), "logs": str(settings.logs)}
    out().print(fields({**places, "stop": "make stop"}))
