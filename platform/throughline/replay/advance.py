"""Replays recorded days: ingests a day's rows, sends its requests hour by hour, waits for monitoring and sensors.

Owns: the order of steps within a replayed day. Does not own: any decision; the graph and its sensors make them.

The rows and features of a day are made in one run before its hours are replayed, as a run per hour would cost more than
the day. No reader sees the future all the same: each filters by knowledge time, and an hour's ticks go to the online
store when the data clock is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from throughline.foundation import tags
from throughline.foundation.clock import ReplayClock, data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.graph.client import Graph, RunOutcome
from throughline.records import CalibrationRecord, OutcomesRecord
from throughline.records.store import load_record
from throughline.rollout import controller
from throughline.rollout.endpoint import as_instances, predict, requests_between
from throughline.usecase import UseCase

HOUR = timedelta(hours=1)
SENSOR_DEADLINE_S = 120


def advance_day(
    settings: Settings,
    usecase: UseCase,
    graph: Graph,
    follow: Callable[[str], RunOutcome],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Move the data clock by one local day; what happened, as `throughline advance --json` prints it.

    Interrupted, it goes on within the day when called again. `follow` waits for a run by its id; `report` gets a line
    per stage. Raises `ThroughlineError` when the data, the predictions or the monitoring of the day fail.
    """
    started = time.monotonic()
    clock = data_clock(settings, usecase.clock_start(settings))
    if not isinstance(clock, ReplayClock):
        raise ThroughlineError("This home's data clock is the wall clock, which cannot be advanced.")
    day = usecase.local_day(clock.now())
    if day >= usecase.replay.end:
        raise ThroughlineError(f"The recording of {usecase.name} ends before {day}: there is nothing to advance to.")
    end = usecase.day_start(day + timedelta(days=1))
    clock.advance_to(clock.now())

    report(f"{day}: ingesting the day's rows")
    key = day.isoformat()
    ingest = graph.launch(job=f"{usecase.name}_ingest", partitions=(key, key), tags={tags.AS_OF: end.isoformat()})
    _require(follow(ingest), f"the data of {day}")

    predictions = _replay_hours(settings, usecase, clock, end, report)

    monitor = graph.launch(job=f"{usecase.name}_monitor")
    _require(follow(monitor), f"the monitoring of {day}")
    outcomes = load_record(settings, (usecase.name, "monitoring", "outcomes"), OutcomesRecord)
    judged = load_record(settings, (usecase.name, "monitoring", "calibration"), CalibrationRecord)

    _wait_for_sensor(graph, f"{usecase.name}_drift", monitor)
    retrainings = graph.runs({tags.RETRAIN: usecase.name, tags.CLOCK: judged.window_until.isoformat()}, limit=1)
    cause = status = None
    if retrainings:
        cause = retrainings[0].tags[tags.CAUSE]
        report(f"{day}: retraining, {cause}")
        status = follow(retrainings[0].run_id).status
    rollout = controller.follow(settings, usecase, lambda state: None)
    if rollout is not None:
        report(f"{day}: rollout of {rollout.model.reference}: {rollout.outcome}, {rollout.why}")
    return {
        "usecase": usecase.name,
        "day": day.isoformat(),
        "predictions": predictions,
        **outcomes.model_dump(include={"labelled", "never_labelled"}),
        **judged.model_dump(mode="json", include={"model", "verdict", "reason"}),
        "gap": judged.gap,
        "retraining": cause,
        "retraining_status": status,
        "rollout": rollout and {"model": str(rollout.model.reference), "outcome": rollout.outcome, "why": rollout.why},
        "seconds": round(time.monotonic() - started, 1),
    }


def _replay_hours(
    settings: Settings, usecase: UseCase, clock: ReplayClock, end: datetime, report: Callable[[str], None]
) -> int:
    """Hour by hour to `end`: ticks go online, then every request due within the hour is sent. Returns how many."""
    from throughline.featurestore.materialise import materialise_until  # postpones feast (4 s)

    sent = 0
    while (now := clock.now()) < end:
        hour_end = min(now.replace(minute=0, second=0, microsecond=0) + HOUR, end)
        materialise_until(settings, usecase, now)
        due = requests_between(settings, usecase, now, hour_end)
        if due.height:
            predict(settings, usecase, as_instances(usecase, due))
            sent += due.height
        clock.advance_to(hour_end)
    report(f"{usecase.local_day(end - HOUR)}: {sent} predictions")
    return sent


def _require(outcome: RunOutcome, what: str) -> None:
    if not outcome.succeeded:
        raise ThroughlineError(f"The replay stopped at {what}: {outcome.cause}. `throughline advance` goes on there.")


def _wait_for_sensor(graph: Graph, sensor: str, run_id: str) -> None:
    """Until the sensor's cursor is that run: it has evaluated what the run materialised."""
    deadline = time.monotonic() + SENSOR_DEADLINE_S
    while graph.sensor_cursor(sensor) != run_id:
        if time.monotonic() > deadline:
            raise ThroughlineError(
                f"The sensor {sensor} had no tick within {SENSOR_DEADLINE_S} s: is the Dagster daemon running "
                "(`throughline status`), and the sensor switched on?"
            )
        time.sleep(0.5)
