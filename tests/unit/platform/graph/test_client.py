"""What the webserver answers is told in a person's words: causes without class names, each event once, short errors."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, asset, materialize
from dagster._utils.error import SerializableErrorInfo

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.principal import current_principal
from throughline.foundation.settings import DEFAULT_PORTS, Settings, load_settings
from throughline.foundation.tags import CODE
from throughline.graph.client import Graph, RunEvent, RunOutcome, _cause, _events, _partitions
from throughline.services.ports import take_ports

Answer = Callable[[str, dict[str, Any]], Any]


@pytest.fixture
def webserver(tmp_path: Path) -> Iterator[Callable[[Answer], Graph]]:
    """Starts a server that answers each GraphQL question as told, and gives the client of it."""
    started: list[ThreadingHTTPServer] = []

    def start(answer: Answer, **more: Any) -> Graph:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                content = answer(asked["query"], asked["variables"])
                status, body = content if isinstance(content, tuple) else (200, json.dumps(content).encode())
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(server)
        base = server.server_port - list(DEFAULT_PORTS).index("dagster")
        return Graph(Settings(home=tmp_path, port_base=base), **more)

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
    ("body", "told"),
    [
        (ours, "u/raw/t does not exist: materialise it first."),
        (ours_because_of_another, "No Spark Connect server answers: start it with `throughline up`."),
        (ours_while_handling_another, "Nothing of that name: see `throughline models`."),
        (builtin, "a: b is not c"),
        (without_words, "TimeoutError"),
        (of_many_lines, "first line"),
    ],
)
def test_the_cause_of_a_failed_step_is_its_own_words(body: Callable[[], None], told: str) -> None:
    assert _cause(failed(body)) == told


@pytest.mark.parametrize(
    ("message", "told"),
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
def test_a_message_loses_its_class_and_never_everything(message: str, told: str) -> None:
    assert _cause({"message": message}) == told
    assert _cause({"message": "DagsterError: wrapper", "errorChain": [{"error": {"message": message}}]}) == told


# Events

AT = {"timestamp": "1364788800000", "stepKey": "step", "level": "DEBUG", "message": ""}


def told(event: dict[str, Any], outcome: RunOutcome | None = None) -> list[RunEvent]:
    return list(_events({**AT, **event}, outcome or RunOutcome("r", "STARTED")))


def test_what_a_run_makes_and_how_it_fails_is_told_and_kept() -> None:
    outcome = RunOutcome("r", "STARTED")
    told({"__typename": "MaterializationEvent", "assetKey": {"path": ["u", "raw", "t"]}}, outcome)
    told({"__typename": "ExecutionStepFailureEvent", "error": {"message": "ValueError: no", "errorChain": []}}, outcome)
    check = {"success": False, "checkName": "fresh", "assetKey": {"path": ["u", "raw", "t"]}}
    assert told({"__typename": "AssetCheckEvaluationEvent", "evaluation": check}, outcome) == []
    assert told({"__typename": "AssetCheckEvaluationEvent", "evaluation": {**check, "success": True}}, outcome) == []
    assert outcome.materialised == ["u/raw/t"]
    assert outcome.errors == ["step: no"]
    assert outcome.failed_checks == ["u/raw/t: fresh"]
    assert not outcome.succeeded


def test_a_run_that_fails_outside_its_steps_says_why_but_does_not_repeat_a_step() -> None:
    failure = {"__typename": "RunFailureEvent", "stepKey": None, "error": {"message": "OSError: killed"}}
    outcome = RunOutcome("r", "STARTED")
    assert [event.type for event in told(failure, outcome)] == ["failed"]
    assert outcome.errors == ["killed"]
    assert told(failure, outcome) == []
    assert told({**failure, "error": None}) == []


@pytest.mark.parametrize(
    ("event", "types"),
    [
        ({"__typename": "ExecutionStepStartEvent"}, ["started"]),
        ({"__typename": "ExecutionStepSuccessEvent"}, ["finished"]),
        ({"__typename": "LogMessageEvent", "level": "WARNING"}, ["log"]),
        ({"__typename": "LogMessageEvent", "level": "DEBUG"}, []),
        ({"__typename": "EngineEvent"}, []),
    ],
)
def test_of_the_rest_only_what_a_person_wants_is_told(event: dict[str, Any], types: list[str]) -> None:
    assert [one.type for one in told(event)] == types
    assert all(one.seconds == 1364788800.0 for one in told(event))


def test_a_run_is_followed_to_its_end_with_each_event_once(webserver: Callable[[Answer], Graph]) -> None:
    pages = {
        None: (["ExecutionStepStartEvent"], "1", True),
        "1": (["ExecutionStepSuccessEvent"], "2", False),
        "2": ([], "2", False),
    }
    statuses = iter(["STARTED", "SUCCESS"])

    def answer(query: str, variables: dict[str, Any]) -> Any:
        if "runOrError" in query:
            return {"data": {"runOrError": {"status": next(statuses)}}}
        kinds, cursor, more = pages[variables["cursor"]]
        events = [{**AT, "__typename": kind} for kind in kinds]
        return {"data": {"logsForRun": {"events": events, "cursor": cursor, "hasMore": more}}}

    seen: list[RunEvent] = []
    outcome = webserver(answer).follow("r", seen.append)
    assert outcome.succeeded
    assert [event.type for event in seen] == ["started", "finished"]


def test_a_run_without_end_is_given_up_with_its_address(webserver: Callable[[Answer], Graph]) -> None:
    def answer(query: str, variables: dict[str, Any]) -> Any:
        if "runOrError" in query:
            return {"data": {"runOrError": {"status": "STARTED"}}}
        return {"data": {"logsForRun": {"events": [], "cursor": "", "hasMore": False}}}

    with pytest.raises(ThroughlineError, match=r"Run r did not end within 0 s: see http://.*/runs/r"):
        webserver(answer).follow("r", lambda _: None, timeout_s=0)


# States


def node(name: str, status: str | None, *upstream: str, **more: Any) -> dict[str, Any]:
    return {
        "assetKey": {"path": ["u", name]},
        "groupName": "g",
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
        "FRESH",  # what Dagster says of every partitioned asset
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
        asked = [part.split('"') for part in query.split("assetNodeOrError")[1:]]
        found = [(stale_since or {}).get(name, "") > day for _, _, _, name, _, day, *_ in asked]
        return {"data": {f"a{n}": {"staleStatus": "STALE" if old else "FRESH"} for n, old in enumerate(found)}}

    return answer


def test_assets_come_with_what_they_hold_and_depend_on(webserver: Callable[[Answer], Graph]) -> None:
    ranges = [(0, 2, "MATERIALIZED"), (3, 3, "FAILED"), (5, 5, "MATERIALIZED")]
    raw = daily("raw", DAYS, *((DAYS[first], DAYS[last], status) for first, last, status in ranges))
    states = webserver(graph_of(raw, node("model", None, "raw"))).states()
    assert states[0].partitions == frozenset([*DAYS[:3], DAYS[5]])
    assert (states[1].status, states[1].upstream, states[1].partitions) == ("MISSING", frozenset({("u", "raw")}), None)


def test_a_daily_asset_of_changed_code_is_stale_though_dagster_says_fresh(
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
    asked: list[dict[str, Any]] = []

    def answer(query: str, variables: dict[str, Any]) -> Any:
        asked.append(variables["params"])
        return {"data": {"launchPipelineExecution": {"__typename": "LaunchRunSuccess", "run": {"runId": "r1"}}}}

    run = webserver(answer).launch([("u", "raw")], partitions=("2013-01-01", "2013-01-05"), tags={"a": "b"})
    assert run == "r1"
    assert asked[0]["selector"]["assetSelection"] == [{"path": ["u", "raw"]}]
    tags = {tag["key"]: tag["value"] for tag in asked[0]["executionMetadata"]["tags"]}
    assert tags.pop("throughline/request")
    assert tags.pop("throughline/submitter") == current_principal(load_settings()).name
    assert tags == {
        "a": "b",
        "dagster/asset_partition_range_start": "2013-01-01",
        "dagster/asset_partition_range_end": "2013-01-05",
    }


def test_a_refused_launch_says_why(webserver: Callable[[Answer], Graph]) -> None:
    refused = {"__typename": "PipelineNotFoundError", "message": "Could not find job x"}
    graph = webserver(lambda *_: {"data": {"launchPipelineExecution": refused}})
    with pytest.raises(ThroughlineError, match="Dagster refused the run: Could not find job x"):
        graph.launch(job="x")


# A webserver that is not well


class Slow:
    """Answers the first `late` questions of a kind only when nobody waits any more."""

    def __init__(self, late: int, answers: dict[str, Any]) -> None:
        self.late, self.answers, self.asked = late, answers, []

    def __call__(self, query: str, variables: dict[str, Any]) -> Any:
        kind = next(kind for kind in self.answers if kind in query)
        self.asked.append(kind)
        if self.asked.count(kind) <= self.late:
            time.sleep(0.5)
        return {"data": self.answers[kind]}


NO_RUNS = {"runsOrError": {"results": []}}
A_RUN = {"runsOrError": {"results": [{"runId": "r", "status": "STARTED", "tags": []}]}}


def test_a_question_is_asked_again_when_the_answer_is_late(webserver: Callable[..., Graph]) -> None:
    slow = Slow(2, {"runsOrError": A_RUN})
    assert [run["run_id"] for run in webserver(slow, answer_s=0.2).runs({"a": "b"})] == ["r"]
    assert len(slow.asked) == 3


def test_a_launch_whose_answer_is_late_is_looked_for_and_not_launched_again(webserver: Callable[..., Graph]) -> None:
    launched = {"launchPipelineExecution": {"__typename": "LaunchRunSuccess", "run": {"runId": "other"}}}
    slow = Slow(1, {"launchPipelineExecution": launched, "runsOrError": A_RUN})
    assert webserver(slow, answer_s=0.2).launch(job="x") == "r"
    assert slow.asked.count("launchPipelineExecution") == 1
    nowhere = Slow(1, {"launchPipelineExecution": launched, "runsOrError": NO_RUNS})
    with pytest.raises(ThroughlineError, match="does not answer"):
        webserver(nowhere, answer_s=0.2).launch(job="x")
    assert nowhere.asked.count("launchPipelineExecution") == 1


def test_nobody_at_the_port_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, port_base=take_ports())
    closed, graph = settings.port("dagster"), Graph(settings)
    with pytest.raises(ThroughlineError, match=rf":{closed} does not answer .*throughline status") as caught:
        graph.states()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [(500, b"oops"), (200, b"<html>"), {"errors": [{"message": "Cannot query field 'x'\nmore"}]}]
)
def test_an_answer_that_is_none_is_one_line(webserver: Callable[[Answer], Graph], content: Any) -> None:
    with pytest.raises(ThroughlineError, match=r"does not answer|Cannot query field 'x'$") as caught:
        webserver(lambda *_: content).runs({"a": "b"})
    assert "\n" not in str(caught.value)


def test_runs_and_cursors_come_in_plain_words(webserver: Callable[[Answer], Graph]) -> None:
    run = {"runId": "r", "status": "SUCCESS", "tags": [{"key": "a", "value": "b"}]}
    graph = webserver(lambda *_: {"data": {"runsOrError": {"results": [run]}}})
    assert graph.runs({"a": "b"}) == [{"run_id": "r", "status": "SUCCESS", "tags": {"a": "b"}}]
    for state, cursor in [
        (None, None),
        ({"typeSpecificData": None}, None),
        ({"typeSpecificData": {"lastCursor": "r7"}}, "r7"),
    ]:
        graph = webserver(lambda *_, state=state: {"data": {"sensorOrError": {"sensorState": state}}})
        assert graph.sensor_cursor("drift") == cursor


# Changed code


@pytest.mark.parametrize(
    ("loaded", "reloads"),
    [
        ({"__typename": "Repository", "jobs": [{"tags": [{"key": CODE, "value": "as on disk"}]}]}, 0),
        ({"__typename": "Repository", "jobs": [{"tags": [{"key": CODE, "value": "before"}]}]}, 1),
        ({"__typename": "Repository", "jobs": [{"tags": [{"key": "other", "value": "as on disk"}]}]}, 1),
        ({"__typename": "PythonError"}, 1),  # what does not load may load by now
    ],
)
def test_the_graph_is_loaded_again_only_when_its_code_is_not_what_is_on_disk(webserver, loaded, reloads) -> None:
    asked: list[str] = []

    def answer(query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "reloadRepositoryLocation" in query:
            asked.append(variables["name"])
            return {"data": {"reloadRepositoryLocation": {"__typename": "WorkspaceLocationEntry"}}}
        return {"data": {"repositoryOrError": loaded}}

    webserver(answer).reload_if_changed("as on disk")
    assert asked == ["throughline"] * reloads
