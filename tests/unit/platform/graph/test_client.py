"""Answers of the webserver as people read them: causes without class names, each event once, errors of one line."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import graphql
import pytest
from dagster import DagsterInstance, asset, materialize
from dagster._utils.error import SerializableErrorInfo
from dagster_graphql.schema import create_schema

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.home import HEADER, home_id
from throughline.foundation.security.principal import current_principal
from throughline.foundation.settings import DEFAULT_PORTS, Settings, load_settings
from throughline.graph import client
from throughline.graph.client import Graph, JobRun, RunEvent, RunOutcome, _cause, _event, _partitions
from throughline.services.ports import take_ports

Answer = Callable[[str, dict[str, Any]], Any]


@pytest.fixture
def webserver(tmp_path: Path) -> Iterator[Callable[[Answer], Graph]]:
    """Starts a server that answers each GraphQL query by `answer`; returns its client."""
    started: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> Graph:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                content = answer(request["query"], request["variables"])
                status, body = content if isinstance(content, tuple) else (200, json.dumps(content).encode())
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header(HEADER, home_id(Settings(home=tmp_path)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(server)
        base = server.server_port - list(DEFAULT_PORTS).index("dagster")
        return Graph(Settings(home=tmp_path, port_base=base))

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


# Causes


def as_graphql(error: SerializableErrorInfo) -> dict[str, Any]:
    """What GraphQL makes of an error: its own message, and the chain of causes without itself."""
    chain, inner = [], error
    while inner := inner.cause or inner.context:
        chain.append({"error": {"message": inner.message}})
    return {"message": error.message, "errorChain": chain}


def failed(body: Callable[[], None]) -> dict[str, Any]:
    """The error that Dagster really makes of a step that does this."""

    @asset(name="step")
    def step() -> None:
        body()

    with DagsterInstance.ephemeral() as instance:
        result = materialize([step], instance=instance, raise_on_error=False)
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    return as_graphql(failure.step_failure_data.error)


def ours() -> None:
    raise ThroughlineError("u/raw/t does not exist: materialise it first.")


def ours_because_of_another() -> None:
    try:
        socket.create_connection(("127.0.0.1", 1), timeout=1)
    except OSError as error:
        raise ThroughlineError("No Spark Connect server answers: start it with `throughline up`.") from error


def ours_while_handling_another() -> None:
    try:
        {}["x"]
    except KeyError:
        raise ThroughlineError("Nothing of that name: see `throughline models`.")  # noqa: B904


def builtin() -> None:
    raise ValueError("a: b is not c")


def without_words() -> None:
    raise TimeoutError


def of_many_lines() -> None:
    raise RuntimeError("first line\n\nsecond line")


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (ours, "u/raw/t does not exist: materialise it first."),
        (ours_because_of_another, "No Spark Connect server answers: start it with `throughline up`."),
        (ours_while_handling_another, "Nothing of that name: see `throughline models`."),
        (builtin, "a: b is not c"),
        (without_words, "TimeoutError"),
        (of_many_lines, "first line"),
    ],
)
def test_the_cause_of_a_failed_step_is_its_message(body: Callable[[], None], cause: str) -> None:
    assert _cause(failed(body)) == cause


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("subprocess.SubprocessError\n", "subprocess.SubprocessError"),
        ("subprocess.TimeoutExpired: Command 'x' timed out\n", "Command 'x' timed out"),
        ("the disk: is full", "the disk: is full"),
        ("see http://127.0.0.1:3000/runs", "see http://127.0.0.1:3000/runs"),
        ("", "unknown error"),
        ("\n  \n", "unknown error"),
        ("KeyError: 'x'\n", "'x'"),
        ("ValueError: \n", "ValueError:"),
    ],
)
def test_a_message_loses_its_class_and_is_never_empty(message: str, cause: str) -> None:
    assert _cause({"message": message}) == cause
    assert _cause({"message": "DagsterError: wrapper", "errorChain": [{"error": {"message": message}}]}) == cause


# Events

AT = {"timestamp": "1364788800000", "stepKey": "step", "level": "DEBUG", "message": ""}


def shown(event: dict[str, Any], outcome: RunOutcome | None = None) -> RunEvent | None:
    return _event({**AT, **event}, outcome or RunOutcome("r", "STARTED"))


def test_what_a_run_makes_and_how_it_fails_is_shown_and_kept() -> None:
    outcome = RunOutcome("r", "FAILURE")
    assert outcome.cause == "the run ended as FAILURE"
    made = shown({"__typename": "MaterializationEvent", "assetKey": {"path": ["u", "raw", "t"]}}, outcome)
    assert made == RunEvent("materialised", "step", "u/raw/t", 1364788800.0)
    error = {"message": "ValueError: no", "errorChain": []}
    failed = shown({"__typename": "ExecutionStepFailureEvent", "error": error}, outcome)
    assert failed == RunEvent("failed", "step", "step: no", 1364788800.0)
    assert outcome.materialised == ["u/raw/t"]
    assert outcome.errors == ["step: no"]
    assert (outcome.succeeded, outcome.cause) == (False, "step: no")


def test_a_run_that_fails_outside_its_steps_has_a_cause_but_does_not_repeat_a_step() -> None:
    failure = {"__typename": "RunFailureEvent", "stepKey": None, "error": {"message": "OSError: killed"}}
    outcome = RunOutcome("r", "STARTED")
    event = shown(failure, outcome)
    assert event is not None
    assert (event.type, event.message, outcome.errors) == ("failed", "killed", ["killed"])
    assert shown(failure, outcome) is None
    assert shown({**failure, "error": None}) is None


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"__typename": "ExecutionStepStartEvent"}, RunEvent("started", "step", "step started", 1364788800.0)),
        ({"__typename": "ExecutionStepSuccessEvent"}, RunEvent("finished", "step", "step finished", 1364788800.0)),
        ({"__typename": "LogMessageEvent", "level": "WARNING"}, RunEvent("log", "step", "", 1364788800.0)),
        ({"__typename": "LogMessageEvent", "level": "DEBUG"}, None),
        ({"__typename": "EngineEvent"}, None),
    ],
)
def test_of_other_events_only_steps_and_messages_are_shown(event: dict[str, Any], expected: RunEvent | None) -> None:
    assert shown(event) == expected


def test_a_run_is_followed_to_its_end_with_each_event_once(webserver: Callable[[Answer], Graph]) -> None:
    pages = {  # cursor: events, the next cursor, whether there are more
        None: (["ExecutionStepStartEvent"], "1", True),
        "1": ([], "2", False),
        "2": (["ExecutionStepSuccessEvent"], "3", False),  # written after the status was read
        "3": ([], "3", False),
    }
    statuses = iter(["STARTED", "SUCCESS", "SUCCESS"])

    def answer(query: str, variables: dict[str, Any]) -> Any:
        kinds, cursor, more = pages[variables["cursor"]]
        events = [{**AT, "__typename": kind} for kind in kinds]
        log = {"events": events, "cursor": cursor, "hasMore": more}
        return {"data": {"runOrError": {"status": next(statuses)}, "logsForRun": log}}

    seen: list[RunEvent] = []
    outcome = webserver(answer).follow("r", seen.append)
    assert outcome.succeeded
    assert [event.type for event in seen] == ["started", "finished"]


def test_a_run_that_outlives_the_deadline_is_an_error_with_its_address(webserver: Callable[[Answer], Graph]) -> None:
    log = {"events": [], "cursor": "", "hasMore": False}
    answer: Answer = lambda *_: {"data": {"runOrError": {"status": "STARTED"}, "logsForRun": log}}  # noqa: E731
    with pytest.raises(ThroughlineError, match=r"Run r did not end within 0 s: see http://.*/runs/r"):
        webserver(answer).follow("r", lambda _: None, timeout_s=0)


# States


def node(name: str, status: str | None, *upstream: str, **more: Any) -> dict[str, Any]:
    return {
        "assetKey": {"path": ["u", name]},
        "groupName": "g",
        "isMaterializable": True,
        "staleStatus": status,
        "staleCauses": [{"category": "DATA"}] if status == "STALE" else [],
        "isPartitioned": False,
        "dependencies": [{"asset": {"assetKey": {"path": ["u", above]}}} for above in upstream],
        "partitionKeysByDimension": [],
        "assetPartitionStatuses": {},
        **more,
    }


def daily(name: str, days: list[str], *ranges: tuple[str, str, str]) -> dict[str, Any]:
    return node(
        name,
        "FRESH",  # as Dagster reports every partitioned asset
        isPartitioned=True,
        partitionKeysByDimension=[{"partitionKeys": days}],
        assetPartitionStatuses={"ranges": [{"startKey": a, "endKey": b, "status": s} for a, b, s in ranges]},
    )


DAYS = [f"2013-01-{n:02}" for n in range(1, 11)]


def graph_of(*nodes: dict[str, Any], stale_since: dict[str, str] | None = None) -> Answer:
    """A location with these assets; the days of an asset before `stale_since` were made by older code."""

    def answer(query: str, variables: dict[str, Any]) -> Any:
        if "workspaceOrError" in query:
            entries = [{"locationOrLoadError": {"__typename": "RepositoryLocation"}}]
            return {"data": {"workspaceOrError": {"locationEntries": entries}, "assetNodes": list(nodes)}}
        parts = [part.split('"') for part in query.split("assetNodeOrError")[1:]]
        found = [(stale_since or {}).get(name, "") > day for _, _, _, name, _, day, *_ in parts]
        return {"data": {f"a{n}": {"staleStatus": "STALE" if old else "FRESH"} for n, old in enumerate(found)}}

    return answer


def test_assets_come_with_what_they_hold_and_depend_on(webserver: Callable[[Answer], Graph]) -> None:
    ranges = [(0, 2, "MATERIALIZED"), (3, 3, "FAILED"), (5, 5, "MATERIALIZED")]
    raw = daily("raw", DAYS, *((DAYS[first], DAYS[last], status) for first, last, status in ranges))
    states = webserver(graph_of(raw, node("model", None, "raw"))).states()
    assert states[0].partitions == frozenset([*DAYS[:3], DAYS[5]])
    assert (states[1].status, states[1].upstream, states[1].partitions) == ("MISSING", frozenset({("u", "raw")}), None)


def test_a_daily_asset_of_changed_code_is_stale_though_dagster_reports_it_fresh(
    webserver: Callable[[Answer], Graph],
) -> None:
    held = (DAYS[0], DAYS[3], "MATERIALIZED")
    nodes = daily("raw", DAYS, held), daily("other", DAYS, held), daily("new", DAYS)
    answer = graph_of(*nodes, stale_since={"raw": DAYS[3]})
    assert {state.key[1]: state.status for state in webserver(answer).states()} == {
        "raw": "STALE",
        "other": "FRESH",
        "new": "FRESH",
    }


def test_a_daily_asset_without_any_day_holds_nothing() -> None:
    assert _partitions(daily("raw", DAYS)) == frozenset()


def test_a_graph_that_does_not_load_is_refused_with_the_cause(webserver: Callable[[Answer], Graph]) -> None:
    broken = {
        "__typename": "PythonError",
        "message": "dagster._core.errors.DagsterUserCodeLoadError: Error occurred during the loading",
        "errorChain": [{"error": {"message": "ModuleNotFoundError: No module named 'x'\n"}}],
    }
    entries = {"locationEntries": [{"locationOrLoadError": broken}]}
    graph = webserver(lambda *_: {"data": {"workspaceOrError": entries, "assetNodes": []}})
    with pytest.raises(ThroughlineError, match=r"^The graph does not load: No module named 'x'$"):
        graph.states()


# Launching


def test_a_launch_names_its_assets_and_its_range_of_days(webserver: Callable[[Answer], Graph]) -> None:
    sent: list[dict[str, Any]] = []

    def answer(query: str, variables: dict[str, Any]) -> Any:
        sent.append(variables["params"])
        return {"data": {"launchPipelineExecution": {"__typename": "LaunchRunSuccess", "run": {"runId": "r1"}}}}

    run = webserver(answer).launch([("u", "raw")], partitions=("2013-01-01", "2013-01-05"), tags={"a": "b"})
    assert run == "r1"
    assert sent[0]["selector"]["assetSelection"] == [{"path": ["u", "raw"]}]
    tags = {tag["key"]: tag["value"] for tag in sent[0]["executionMetadata"]["tags"]}
    assert tags.pop("throughline/request")
    assert tags.pop("throughline/submitter") == current_principal(load_settings()).name
    assert tags == {
        "a": "b",
        "dagster/asset_partition_range_start": "2013-01-01",
        "dagster/asset_partition_range_end": "2013-01-05",
    }


def test_a_refused_launch_is_an_error_with_the_reason(webserver: Callable[[Answer], Graph]) -> None:
    refused = {"__typename": "PipelineNotFoundError", "message": "Could not find job x"}
    graph = webserver(lambda *_: {"data": {"launchPipelineExecution": refused}})
    with pytest.raises(ThroughlineError, match="Dagster refused the run: Could not find job x"):
        graph.launch(job="x")


# A webserver that is slow, broken or not there


class Slow:
    """Answers the first `late` requests of a kind after the client's timeout."""

    def __init__(self, late: int, answers: dict[str, Any]) -> None:
        self.late, self.answers, self.requests = late, answers, []

    def __call__(self, query: str, variables: dict[str, Any]) -> Any:
        kind = next(kind for kind in self.answers if kind in query)
        self.requests.append(kind)
        if self.requests.count(kind) <= self.late:
            time.sleep(1.5)
        return {"data": self.answers[kind]}


NO_RUNS = {"runsOrError": {"results": []}}
A_RUN = {
    "runId": "r", "jobName": "u_train", "status": "STARTED", "creationTime": 3.0, "startTime": 4.0, "endTime": None,
    "tags": [{"key": "a", "value": "b"}], "assetMaterializations": [],
}  # fmt: skip
RUNS = {"runsOrError": {"results": [A_RUN]}}


@pytest.fixture
def impatient(webserver: Callable[[Answer], Graph], monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], Graph]:
    monkeypatch.setattr(client, "ANSWER_S", 1.0)
    return webserver


def test_a_query_is_sent_again_when_the_answer_is_late(impatient: Callable[[Answer], Graph]) -> None:
    slow = Slow(2, {"runsOrError": RUNS})
    assert [run.run_id for run in impatient(slow).runs({"a": "b"}, 20)] == ["r"]
    assert len(slow.requests) == 3


def test_a_launch_whose_answer_is_late_is_looked_up_and_not_launched_again(
    impatient: Callable[[Answer], Graph],
) -> None:
    launched = {"launchPipelineExecution": {"__typename": "LaunchRunSuccess", "run": {"runId": "other"}}}
    slow = Slow(1, {"launchPipelineExecution": launched, "runsOrError": RUNS})
    assert impatient(slow).launch(job="x") == "r"
    assert slow.requests.count("launchPipelineExecution") == 1
    nowhere = Slow(1, {"launchPipelineExecution": launched, "runsOrError": NO_RUNS})
    with pytest.raises(ThroughlineError, match="does not answer"):
        impatient(nowhere).launch(job="x")
    assert nowhere.requests.count("launchPipelineExecution") == 1


def test_without_a_webserver_the_error_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, port_base=take_ports())
    closed, graph = settings.port("dagster"), Graph(settings)
    with pytest.raises(ThroughlineError, match=rf":{closed} does not answer .*throughline status") as caught:
        graph.states()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [(500, b"oops"), (200, b"<html>"), {"errors": [{"message": "Cannot query field 'x'\nmore"}]}]
)
def test_an_unusable_answer_is_an_error_of_one_line(webserver: Callable[[Answer], Graph], content: Any) -> None:
    with pytest.raises(ThroughlineError, match=r"does not answer|Cannot query field 'x'$") as caught:
        webserver(lambda *_: content).runs({"a": "b"}, 20)
    assert "\n" not in str(caught.value)


def test_a_run_comes_with_its_tags_times_and_results(webserver: Callable[[Answer], Graph]) -> None:
    entries = [{"label": "model", "text": "u/1"}, {"label": "auc", "floatValue": 0.0}, {"label": "rows", "intValue": 3}]
    run = {**A_RUN, "status": "SUCCESS", "endTime": 9.0, "assetMaterializations": [{"metadataEntries": entries}]}
    graph = webserver(lambda *_: {"data": {"runsOrError": {"results": [run]}}})
    (found,) = graph.runs({"a": "b"}, 20)
    assert found == JobRun(
        "r", "u_train", "SUCCESS", 3.0, 4.0, 9.0, {"a": "b"}, {"model": "u/1", "auc": 0.0, "rows": 3}
    )
    assert (found.has_ended, graph.job("r")) == (True, found)
    with pytest.raises(ThroughlineError, match="There is no run r: `throughline jobs`"):
        webserver(lambda *_: {"data": NO_RUNS}).job("r")


def test_the_newest_runs_of_several_jobs_come_first(webserver: Callable[[Answer], Graph]) -> None:
    def answer(query: str, variables: dict[str, Any]) -> Any:
        name = variables["filter"]["pipelineName"]
        runs = [{**A_RUN, "runId": f"{name}{at}", "creationTime": at} for at in {"a": (5, 1), "b": (3, 2)}[name]]
        return {"data": {"runsOrError": {"results": runs[: variables["limit"]]}}}

    assert [run.run_id for run in webserver(answer).jobs(["a", "b"], 3)] == ["a5", "b3", "b2"]


def test_the_cursor_of_a_sensor_is_none_before_its_first_tick(webserver: Callable[[Answer], Graph]) -> None:
    for state, cursor in [
        (None, None),
        ({"typeSpecificData": None}, None),
        ({"typeSpecificData": {"lastCursor": "r7"}}, "r7"),
    ]:
        graph = webserver(lambda *_, state=state: {"data": {"sensorOrError": {"sensorState": state}}})
        assert graph.sensor_cursor("drift") == cursor


DOCUMENTS = [name for name, value in vars(client).items() if name.isupper() and isinstance(value, str) and "{" in value]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_fits_the_schema_of_the_webserver(name: str) -> None:
    schema = create_schema().graphql_schema
    assert graphql.validate(schema, graphql.parse(getattr(client, name))) == []
