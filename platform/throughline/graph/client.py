"""The graph as seen from outside: what is stale, launching a run, following it. Dagster's GraphQL, no Dagster import.

Owns: the queries to the webserver and the shape of its answers. Does not own: which assets should run
(`plan.py`), or how progress is shown.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.principal import current_principal
from throughline.foundation.settings import Settings
from throughline.foundation.tags import CODE, RANGE_END, RANGE_START, REQUEST, SUBMITTER
from throughline.services.declared import LOCATION

REPOSITORY, IMPLICIT_JOB = "__repository__", "__ASSET_JOB"

Key = tuple[str, ...]


@dataclass(frozen=True)
class AssetState:
    """How one asset stands. `partitions` are the materialised ones; None for an unpartitioned asset.

    `causes`: why it is stale: CODE (its own or one above it), DATA or DEPENDENCIES.
    """

    key: Key
    status: Literal["MISSING", "STALE", "FRESH"]
    upstream: frozenset[Key]
    group: str
    partitions: frozenset[str] | None = None
    causes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RunEvent:
    """One line of a run's log that a person may want to see."""

    type: str
    step: str | None
    message: str
    seconds: float  # Unix time


@dataclass
class RunOutcome:
    """How a run ended; `errors` are one line per failed step, the cause first."""

    run_id: str
    status: str
    materialised: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    failed_checks: list[str] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        return self.status == "SUCCESS"

    @property
    def cause(self) -> str:
        """Why it did not succeed, in one line."""
        return self.errors[0] if self.errors else f"the run ended as {self.status}"


@dataclass(frozen=True)
class JobRun:
    """One run of a job; times are Unix seconds, None while there is none. `results`: metadata of what it made."""

    run_id: str
    job: str
    status: str
    created: float
    started: float | None
    ended: float | None
    config: Mapping[str, Any]
    results: Mapping[str, Any]

    @property
    def ended_somehow(self) -> bool:
        return self.status in ENDED


ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
ANSWER_S, ATTEMPTS = 60.0, 5  # a busy machine's webserver takes its time; one that is down refuses at once


LOAD_S = 300.0  # importing the graph took 60 s on a machine with 20 processes per core


class NoAnswerYet(ThroughlineError):
    """The webserver took the request and did not answer in time: it may or may not have been carried out."""


class Graph:
    """The webserver of this home. Each method raises `ThroughlineError` when it does not answer."""

    def __init__(self, settings: Settings, answer_s: float = ANSWER_S) -> None:
        self._settings = settings
        self._url = settings.url("dagster")
        self._answer_s = answer_s
        self._client = httpx.Client(timeout=answer_s)

    def states(self) -> list[AssetState]:
        """Every asset of the location, with the partitions it has."""
        answer = self._request(_STATES)
        for entry in answer["workspaceOrError"]["locationEntries"]:
            if entry["locationOrLoadError"]["__typename"] == "PythonError":
                raise ThroughlineError(f"The graph does not load: {_cause(entry['locationOrLoadError'])}")
        outdated = self._outdated(answer["assetNodes"])
        return [
            AssetState(
                key=tuple(node["assetKey"]["path"]),
                status="STALE" if tuple(node["assetKey"]["path"]) in outdated else node["staleStatus"] or "MISSING",
                upstream=frozenset(tuple(d["asset"]["assetKey"]["path"]) for d in node["dependencies"]),
                group=node["groupName"],
                partitions=_partitions(node),
                causes=frozenset(cause["category"] for cause in node["staleCauses"]),
            )
            for node in answer["assetNodes"]
        ]

    def reload_if_changed(self, fingerprint: str) -> None:
        """Have the code location load the code again unless `fingerprint` is that of what it loaded."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY}
        jobs = self._request(_LOADED, selector=selector)["repositoryOrError"].get("jobs", [])
        if fingerprint not in {tag["value"] for job in jobs for tag in job["tags"] if tag["key"] == CODE}:
            self._request(_RELOAD, name=LOCATION)

    def _outdated(self, nodes: Sequence[Mapping[str, Any]]) -> set[Key]:
        """The daily assets whose oldest day is stale: of the asset as a whole, Dagster always reports FRESH."""
        oldest = {tuple(n["assetKey"]["path"]): min(days) for n in nodes if (days := _partitions(n))}
        if not oldest:
            return set()
        fields = [
            f"a{n}: assetNodeOrError(assetKey: {{path: {json.dumps(key)}}}) "
            f"{{ ... on AssetNode {{ staleStatus(partition: {json.dumps(day)}) }} }}"
            for n, (key, day) in enumerate(oldest.items())
        ]
        answer = self._request(f"query {{ {' '.join(fields)} }}")
        return {key for n, key in enumerate(oldest) if answer[f"a{n}"].get("staleStatus") == "STALE"}

    def launch(
        self,
        assets: Sequence[Key] = (),
        *,
        job: str = IMPLICIT_JOB,
        partitions: tuple[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> str:
        """Start a run of some assets, or of a named job, over a range of partitions (inclusive); returns its id.

        `config`: of the run, as in the launchpad.
        """
        request = uuid.uuid4().hex
        all_tags = {**(tags or {}), REQUEST: request}
        with contextlib.suppress(ThroughlineError):  # with an unknown token the run has no submitter
            all_tags[SUBMITTER] = current_principal(self._settings).name
        if partitions:
            all_tags[RANGE_START], all_tags[RANGE_END] = partitions
        selector: dict[str, Any] = {
            "repositoryLocationName": LOCATION,
            "repositoryName": REPOSITORY,
            "pipelineName": job,
        }
        if assets:
            selector["assetSelection"] = [{"path": list(key)} for key in assets]
        params = {
            "selector": selector,
            "mode": "default",
            "runConfigData": config or {},
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in sorted(all_tags.items())]},
        }
        try:
            answer = self._request(_LAUNCH, params=params)["launchPipelineExecution"]
        except NoAnswerYet:
            # Launched a second time it might run twice: the run that there may be is looked for instead.
            for _ in range(ATTEMPTS):
                if started := self.runs({REQUEST: request}, limit=1):
                    return started[0]["run_id"]
                time.sleep(self._answer_s / ATTEMPTS)
            raise
        if answer["__typename"] != "LaunchRunSuccess":
            raise ThroughlineError(f"Dagster refused the run: {answer.get('message') or answer['__typename']}")
        return answer["run"]["runId"]

    def follow(self, run_id: str, on_event: Callable[[RunEvent], None], timeout_s: float = 3600) -> RunOutcome:
        """Wait for a run; `on_event` gets each event once. Raises when the run outlives the deadline."""
        outcome = RunOutcome(run_id, "STARTING")
        deadline = time.monotonic() + timeout_s
        cursor = None
        while True:
            status = self._request(_STATUS, runId=run_id)["runOrError"]["status"]
            cursor = self._report(run_id, cursor, outcome, on_event)
            if status in ENDED:
                outcome.status = status
                return outcome
            if time.monotonic() > deadline:
                raise ThroughlineError(
                    f"Run {run_id} did not end within {timeout_s:.0f} s: see {self._url}/runs/{run_id}"
                )
            time.sleep(0.5)

    def runs(self, tags: Mapping[str, str], limit: int = 20) -> list[dict[str, Any]]:
        """The newest runs that carry all of the tags: id, status, tags."""
        answer = self._request(_RUNS, filter={"tags": [{"key": k, "value": v} for k, v in tags.items()]}, limit=limit)
        return [
            {"run_id": r["runId"], "status": r["status"], "tags": {t["key"]: t["value"] for t in r["tags"]}}
            for r in answer["runsOrError"]["results"]
        ]

    def jobs(self, names: Sequence[str], limit: int = 20) -> list[JobRun]:
        """The newest runs of the named jobs, newest first."""
        found = [run for name in names for run in self._request(_JOBS, job=name, limit=limit)["runsOrError"]["results"]]
        newest = sorted(found, key=lambda run: run["creationTime"], reverse=True)[:limit]
        return [_job_run(run) for run in newest]

    def job(self, run_id: str) -> JobRun:
        """One run. Raises when there is none."""
        run = self._request(_JOB, runId=run_id)["runOrError"]
        if "runId" not in run:
            raise ThroughlineError(f"There is no run {run_id}: `throughline jobs` lists what is.")
        return _job_run(run)

    def cancel(self, run_id: str) -> None:
        """Ask a run to end. Raises when it is not under way."""
        answer = self._request(_CANCEL, runId=run_id)["terminateRun"]
        if answer["__typename"] != "TerminateRunSuccess":
            raise ThroughlineError(f"Run {run_id} was not cancelled: {answer.get('message') or answer['__typename']}")

    def sensor_cursor(self, sensor: str) -> str | None:
        """Where a running sensor stands; None before its first tick."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY, "sensorName": sensor}
        state = self._request(_SENSOR, selector=selector)["sensorOrError"].get("sensorState") or {}
        return (state.get("typeSpecificData") or {}).get("lastCursor")

    def _report(
        self, run_id: str, cursor: str | None, outcome: RunOutcome, on_event: Callable[[RunEvent], None]
    ) -> str | None:
        more = True
        while more:
            log = self._request(_LOGS, runId=run_id, cursor=cursor)["logsForRun"]
            for event in log["events"]:
                for shown in _events(event, outcome):
                    on_event(shown)
            more, cursor = log["hasMore"], log["cursor"]
        return cursor

    def _request(self, query: str, **variables: Any) -> dict[str, Any]:
        """The answer's data. A query is sent again when no answer comes in time, a mutation is not."""
        body = {"query": query, "variables": variables}
        for left in reversed(range(1 if query.lstrip().startswith("mutation") else ATTEMPTS)):
            try:
                limit = LOAD_S if query is _RELOAD else self._answer_s
                answer = self._client.post(f"{self._url}/graphql", json=body, timeout=limit)
                content = answer.raise_for_status().json()
                break
            except (httpx.HTTPError, ValueError) as error:
                late = isinstance(error, httpx.ReadTimeout)
                if not (late and left):
                    problem = _first_line(str(error))
                    raise (NoAnswerYet if late else ThroughlineError)(
                        f"The Dagster webserver at {self._url} does not answer ({problem}): see `throughline status`."
                    ) from error
        if content.get("errors"):
            raise ThroughlineError(f"Dagster refused a query: {content['errors'][0]['message'].splitlines()[0]}")
        return content["data"]


def _job_run(run: Mapping[str, Any]) -> JobRun:
    results: dict[str, Any] = {}
    for made in run["assetMaterializations"]:
        for entry in made["metadataEntries"]:
            values = [entry.get(name) for name in ("text", "floatValue", "intValue")]
            results[entry["label"]] = next((value for value in values if value is not None), None)
    return JobRun(
        run_id=run["runId"],
        job=run["jobName"],
        status=run["status"],
        created=run["creationTime"],
        started=run["startTime"],
        ended=run["endTime"],
        config=run["runConfig"],
        results=results,
    )


def _partitions(node: Mapping[str, Any]) -> frozenset[str] | None:
    if not node["isPartitioned"]:
        return None
    missing = frozenset(node["partitionKeysByDimension"][0]["partitionKeys"])
    held = node["assetPartitionStatuses"]
    return frozenset(_within(sorted(missing), held.get("ranges", [])))


def _within(keys: Sequence[str], ranges: Sequence[Mapping[str, str]]) -> Iterator[str]:
    held = [(r["startKey"], r["endKey"]) for r in ranges if r["status"] == "MATERIALIZED"]
    return (key for key in keys if any(start <= key <= end for start, end in held))


def _events(event: Mapping[str, Any], outcome: RunOutcome) -> Iterator[RunEvent]:
    kind, step = event["__typename"], event.get("stepKey")
    seconds = float(event["timestamp"]) / 1000
    if kind == "MaterializationEvent":
        outcome.materialised.append("/".join(event["assetKey"]["path"]))
        yield RunEvent("materialised", step, outcome.materialised[-1], seconds)
    elif kind == "ExecutionStepFailureEvent":
        outcome.errors.append(f"{step}: {_cause(event['error'])}")
        yield RunEvent("failed", step, outcome.errors[-1], seconds)
    elif kind == "RunFailureEvent" and event.get("error") and not outcome.errors:
        outcome.errors.append(_cause(event["error"]))
        yield RunEvent("failed", None, outcome.errors[-1], seconds)
    elif kind == "AssetCheckEvaluationEvent" and not event["evaluation"]["success"]:
        check = event["evaluation"]
        outcome.failed_checks.append(f"{'/'.join(check['assetKey']['path'])}: {check['checkName']}")
    elif kind == "ExecutionStepStartEvent":
        yield RunEvent("started", step, f"{step} started", seconds)
    elif kind == "ExecutionStepSuccessEvent":
        yield RunEvent("finished", step, f"{step} finished", seconds)
    elif kind == "LogMessageEvent" and event["level"] in {"INFO", "WARNING", "ERROR", "CRITICAL"}:
        yield RunEvent("log", step, event["message"], seconds)


def _cause(error: Mapping[str, Any]) -> str:
    """What a person should read, without the class in front: our own one line, else the innermost error's words.

    Our own error often has a cause further in (a refused connection, a validation); its line already names the remedy.
    """
    chain = [error, *(link["error"] for link in error.get("errorChain") or [])]
    lines = [_first_line(link["message"]) for link in chain]
    line = next((line for line in lines if line.startswith("throughline.")), lines[-1])
    name, _, rest = line.partition(": ")
    return rest if rest and re.fullmatch(r"[A-Za-z_][\w.]*", name) else line


def _first_line(message: str) -> str:
    return next((line.strip() for line in message.splitlines() if line.strip()), "unknown error")


_LOADED = """
query($selector: RepositorySelector!) { repositoryOrError(repositorySelector: $selector) {
  ... on Repository { jobs { tags { key value } } }
} }
"""

_RELOAD = """
mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }
"""

_STATES = """
query {
workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError {
  __typename ... on PythonError { message errorChain { error { message } } }
} } } }
assetNodes(loadMaterializations: false) {
  assetKey { path } groupName staleStatus staleCauses { category } isPartitioned
  dependencies { asset { assetKey { path } } }
  partitionKeysByDimension { partitionKeys }
  assetPartitionStatuses { ... on TimePartitionStatuses { ranges { startKey endKey status } } }
} }
"""

_LAUNCH = """
mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
  __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on Error { message }
} }
"""

_STATUS = "query($runId: ID!) { runOrError(runId: $runId) { ... on Run { status } } }"

_LOGS = """
query($runId: ID!, $cursor: String) { logsForRun(runId: $runId, afterCursor: $cursor, limit: 500) {
  ... on EventConnection { cursor hasMore events {
    __typename
    ... on MessageEvent { message timestamp stepKey level }
    ... on MaterializationEvent { assetKey { path } }
    ... on ExecutionStepFailureEvent { error { message errorChain { error { message } } } }
    ... on RunFailureEvent { error { message errorChain { error { message } } } }
    ... on AssetCheckEvaluationEvent { evaluation { checkName success assetKey { path } } }
  } }
} }
"""

_RUNS = """
query($filter: RunsFilter!, $limit: Int) { runsOrError(filter: $filter, limit: $limit) {
  ... on Runs { results { runId status tags { key value } } }
} }
"""

_SENSOR = """
query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {
  ... on Sensor { sensorState { typeSpecificData { ... on SensorData { lastCursor lastRunKey } } } }
} }
"""

_RUN_FIELDS = """
  runId jobName status creationTime startTime endTime runConfig
  assetMaterializations { metadataEntries {
    label
    ... on TextMetadataEntry { text }
    ... on FloatMetadataEntry { floatValue }
    ... on IntMetadataEntry { intValue }
  } }
"""

_JOBS = f"""
query($job: String!, $limit: Int) {{ runsOrError(filter: {{pipelineName: $job}}, limit: $limit) {{
  ... on Runs {{ results {{ {_RUN_FIELDS} }} }}
}} }}
"""

_JOB = f"query($runId: ID!) {{ runOrError(runId: $runId) {{ ... on Run {{ {_RUN_FIELDS} }} }} }}"

_CANCEL = """
mutation($runId: String!) { terminateRun(runId: $runId) { __typename ... on Error { message } } }
"""
