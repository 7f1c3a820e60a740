"""Client of Dagster's webserver: the state of the assets, launching runs, following them. Imports no Dagster.

Owns: the GraphQL documents and the shape of the answers. Does not own: which assets should run (`plan.py`), or how
progress is shown.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of
from throughline.foundation.security.principal import current_principal
from throughline.foundation.settings import Settings
from throughline.foundation.tags import RANGE_END, RANGE_START, REQUEST, SUBMITTER
from throughline.services.declared import LOCATION

REPOSITORY, IMPLICIT_JOB = "__repository__", "__ASSET_JOB"
_SELECTOR = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY}

Key = tuple[str, ...]


@dataclass(frozen=True)
class AssetState:
    """The state of one asset. `partitions` are the materialised ones; None for an unpartitioned asset.

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
    """One line of a run's log for people."""

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

    @property
    def succeeded(self) -> bool:
        return self.status == "SUCCESS"

    @property
    def cause(self) -> str:
        """Why it did not succeed, in one line."""
        return self.errors[0] if self.errors else f"the run ended as {self.status}"


@dataclass(frozen=True)
class JobRun:
    """One run; times are Unix seconds, None while there is none. `results`: metadata of what it materialised."""

    run_id: str
    job: str
    status: str
    created: float
    started: float | None
    ended: float | None
    tags: Mapping[str, str]
    results: Mapping[str, Any]

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
ANSWER_S, ATTEMPTS = 60.0, 5  # the webserver of a busy machine is slow; one that is down refuses at once


class NoAnswerYet(ThroughlineError):
    """The webserver took the request and did not answer in time: it may or may not have been carried out."""


class Graph:
    """The webserver of this home. Each method raises `ThroughlineError` when it does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.url("dagster")
        self._client = client_of(settings, "dagster", ANSWER_S)

    def states(self) -> list[AssetState]:
        """Every asset of the location that runs materialise, with the partitions it has."""
        answer = self._request(_STATES)
        for entry in answer["workspaceOrError"]["locationEntries"]:
            if entry["locationOrLoadError"]["__typename"] == "PythonError":
                raise ThroughlineError(f"The graph does not load: {_cause(entry['locationOrLoadError'])}")
        outdated = self._outdated(answer["assetNodes"])
        return [
            AssetState(
                key=key,
                status="STALE" if key in outdated else node["staleStatus"] or "MISSING",
                upstream=frozenset(tuple(d["asset"]["assetKey"]["path"]) for d in node["dependencies"]),
                group=node["groupName"],
                partitions=_partitions(node),
                causes=frozenset(cause["category"] for cause in node["staleCauses"]),
            )
            for node in answer["assetNodes"]
            if node["isMaterializable"]
            for key in [tuple(node["assetKey"]["path"])]
        ]

    def reload(self) -> None:
        """Have the webserver fetch the graph again: the code location may have been restarted with other code."""
        self._request(_RELOAD, name=LOCATION)

    def _outdated(self, nodes: Sequence[Mapping[str, Any]]) -> set[Key]:
        """The daily assets whose oldest day is stale: of the asset as a whole, Dagster always reports FRESH."""
        oldest = {tuple(node["assetKey"]["path"]): min(days) for node in nodes if (days := _partitions(node))}
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
        selection = {"assetSelection": [{"path": list(key)} for key in assets]} if assets else {}
        params = {
            "selector": {**_SELECTOR, "pipelineName": job, **selection},
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
                    return started[0].run_id
                time.sleep(ANSWER_S / ATTEMPTS)
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
            ended = outcome.status in ENDED  # before this request, so that the log it brings is complete
            answer = self._request(_PROGRESS, runId=run_id, cursor=cursor)
            outcome.status, log = answer["runOrError"]["status"], answer["logsForRun"]
            for event in log["events"]:
                if shown := _event(event, outcome):
                    on_event(shown)
            cursor = log["cursor"]
            if ended and not log["hasMore"]:
                return outcome
            if log["hasMore"] or outcome.status in ENDED:
                continue
            if time.monotonic() > deadline:
                raise ThroughlineError(
                    f"Run {run_id} did not end within {timeout_s:.0f} s: see {self._url}/runs/{run_id}"
                )
            time.sleep(0.5)

    def runs(self, tags: Mapping[str, str], limit: int) -> list[JobRun]:
        """The newest runs that carry all of the tags."""
        return self._runs({"tags": [{"key": key, "value": value} for key, value in tags.items()]}, limit)

    def jobs(self, names: Sequence[str], limit: int) -> list[JobRun]:
        """The newest runs of the named jobs, newest first."""
        found = [run for name in names for run in self._runs({"pipelineName": name}, limit)]
        return sorted(found, key=lambda run: run.created, reverse=True)[:limit]

    def job(self, run_id: str) -> JobRun:
        """One run. Raises when there is none."""
        if found := self._runs({"runIds": [run_id]}, 1):
            return found[0]
        raise ThroughlineError(f"There is no run {run_id}: `throughline jobs` lists the trainings.")

    def cancel(self, run_id: str) -> None:
        """Request the end of a run. Raises when it is not under way."""
        answer = self._request(_CANCEL, runId=run_id)["terminateRun"]
        if answer["__typename"] != "TerminateRunSuccess":
            raise ThroughlineError(f"Run {run_id} was not cancelled: {answer.get('message') or answer['__typename']}")

    def sensor_cursor(self, sensor: str) -> str | None:
        """The cursor that a running sensor set last; None before its first tick."""
        answer = self._request(_SENSOR, selector={**_SELECTOR, "sensorName": sensor})
        state = answer["sensorOrError"].get("sensorState") or {}
        return (state.get("typeSpecificData") or {}).get("lastCursor")

    def _runs(self, only: Mapping[str, Any], limit: int) -> list[JobRun]:
        found = self._request(_RUNS, filter=only, limit=limit)["runsOrError"]
        return [_job_run(run) for run in found.get("results", [])]

    def _request(self, query: str, **variables: Any) -> dict[str, Any]:
        """The answer's data. A query is sent again when no answer comes in time, a mutation is not."""
        body = {"query": query, "variables": variables}
        for left in reversed(range(1 if query.lstrip().startswith("mutation") else ATTEMPTS)):
            try:
                answer = self._client.post("/graphql", json=body)
                content = answer.raise_for_status().json()
                break
            except (httpx.HTTPError, ValueError) as error:
                late = isinstance(error, httpx.ReadTimeout)
                if late and left:
                    continue
                raise (NoAnswerYet if late else ThroughlineError)(
                    f"The Dagster webserver at {self._url} does not answer ({_first_line(str(error))}): "
                    "see `throughline status`."
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
        tags={tag["key"]: tag["value"] for tag in run["tags"]},
        results=results,
    )


def _partitions(node: Mapping[str, Any]) -> frozenset[str] | None:
    if not node["isPartitioned"]:
        return None
    ranges = node["assetPartitionStatuses"].get("ranges", [])
    held = [(each["startKey"], each["endKey"]) for each in ranges if each["status"] == "MATERIALIZED"]
    keys = node["partitionKeysByDimension"][0]["partitionKeys"]
    return frozenset(key for key in keys if any(start <= key <= end for start, end in held))


def _event(event: Mapping[str, Any], outcome: RunOutcome) -> RunEvent | None:
    """The event as people see it, if they do; what was made and what failed is added to `outcome`."""
    kind, step = event["__typename"], event.get("stepKey")
    if kind == "MaterializationEvent":
        outcome.materialised.append("/".join(event["assetKey"]["path"]))
        shown = "materialised", outcome.materialised[-1]
    elif kind == "ExecutionStepFailureEvent" or (
        kind == "RunFailureEvent" and event.get("error") and not outcome.errors
    ):
        cause = _cause(event["error"])
        outcome.errors.append(f"{step}: {cause}" if step else cause)
        shown = "failed", outcome.errors[-1]
    elif kind in _STEP_EVENTS:
        shown = _STEP_EVENTS[kind], f"{step} {_STEP_EVENTS[kind]}"
    elif kind == "LogMessageEvent" and event["level"] in {"INFO", "WARNING", "ERROR", "CRITICAL"}:
        shown = "log", event["message"]
    else:
        return None
    return RunEvent(shown[0], step, shown[1], seconds=float(event["timestamp"]) / 1000)


_STEP_EVENTS = {"ExecutionStepStartEvent": "started", "ExecutionStepSuccessEvent": "finished"}


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


_RELOAD = """
mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }
"""

_STATES = """
query {
workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError {
  __typename ... on PythonError { message errorChain { error { message } } }
} } } }
assetNodes(loadMaterializations: false) {
  assetKey { path } isMaterializable groupName staleStatus staleCauses { category } isPartitioned
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

_PROGRESS = """
query($runId: ID!, $cursor: String) {
runOrError(runId: $runId) { ... on Run { status } }
logsForRun(runId: $runId, afterCursor: $cursor, limit: 500) { ... on EventConnection { cursor hasMore events {
  __typename
  ... on MessageEvent { message timestamp stepKey level }
  ... on MaterializationEvent { assetKey { path } }
  ... on ExecutionStepFailureEvent { error { message errorChain { error { message } } } }
  ... on RunFailureEvent { error { message errorChain { error { message } } } }
} } } }
"""

_RUNS = """
query($filter: RunsFilter!, $limit: Int) { runsOrError(filter: $filter, limit: $limit) {
  ... on Runs { results {
    runId jobName status creationTime startTime endTime tags { key value }
    assetMaterializations { metadataEntries {
      label
      ... on TextMetadataEntry { text }
      ... on FloatMetadataEntry { floatValue }
      ... on IntMetadataEntry { intValue }
    } }
  } }
} }
"""

_SENSOR = """
query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {
  ... on Sensor { sensorState { typeSpecificData { ... on SensorData { lastCursor lastRunKey } } } }
} }
"""

_CANCEL = """
mutation($runId: String!) { terminateRun(runId: $runId) { __typename ... on Error { message } } }
"""
