"""`throughline approve` on real services: the graph decides again, and what was approved serves. The same services
refuse requests of foreign pages and of another home."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import started
from tests.support.approval_location import released_by_people
from tests.support.fake_store_server import model_bytes
from throughline.cli import main as cli
from throughline.evaluation.card_store import read_card
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.security.home import HEADER, home_id
from throughline.foundation.settings import PROJECT_ROOT, Settings, load_settings
from throughline.graph.client import Graph, RunOutcome
from throughline.mlflow import rest
from throughline.mlflow.tracking import client_of, tracked_run
from throughline.records import DatasetRecord, EvaluationRecord, GateDecision, Metrics, ModelRecord, OnlineStoreRecord
from throughline.records.store import load_record, save_record
from throughline.registry import versions as models
from throughline.registry.history import events
from throughline.rollout import endpoint

pytestmark = pytest.mark.e2e

USECASE = released_by_people()
NAME, ME = USECASE.name, getpass.getuser()
GATE, ENDPOINT = (NAME, "evaluation", "gate"), (NAME, "deployment", "endpoint")
HELD_OUT = datetime(2013, 3, 18, tzinfo=UTC)
GOOD = Metrics(rows=9000, log_loss=0.44, auc=0.76, brier=0.14, ece=0.02)
CONSTANT = Metrics(rows=9000, log_loss=0.52, auc=0.5, brier=0.17, ece=0.0)


@pytest.fixture(scope="module")
def settings(home_that_serves: Settings) -> Iterator[Settings]:
    """A home with MLflow, the model server and a Dagster webserver."""
    settings = home_that_serves
    settings.dagster_home.mkdir(parents=True)
    at_once = {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"}  # no daemon that dequeues
    instance = {"telemetry": {"enabled": False}, "run_coordinator": at_once}
    (settings.dagster_home / "dagster.yaml").write_text(json.dumps(instance))
    workspace = settings.home / "workspace.yaml"
    module = {"module_name": "tests.support.approval_location", "location_name": "throughline"}
    location = {"python_module": {**module, "working_directory": str(PROJECT_ROOT)}}
    workspace.write_text(json.dumps({"load_from": [location]}))
    server = [
        *(sys.executable, "-m", "assets.webserver", "-w", str(workspace)),
        *("--host", "127.0.0.1", "--port", str(settings.port("dagster"))),
    ]
    home = {"DAGSTER_HOME": str(settings.dagster_home), "DAGSTER_DISABLE_TELEMETRY": "yes"}
    with started(settings, "dagster-webserver", server, "dagster", "/server_info", **home):
        yield settings


@pytest.fixture
def candidate(settings: Settings, tmp_path: Path) -> ModelRecord:
    """A version that ada has submitted, evaluated, with all that the gate and the endpoint read."""
    file = tmp_path / "output.onnx"
    file.write_bytes(model_bytes(0.1))
    with tracked_run(client_of(settings), NAME, {}, {}) as run_id:
        pass
    model = models.register(
        settings, name=NAME, run_id=run_id, file=file, dataset_fingerprint="f", trainer="t", parameters={},
        trained_until=HELD_OUT - timedelta(days=1), tags={"submitter": "ada"},
    )  # fmt: skip
    table = TableReference(f"{NAME}/training/dataset", 0)
    dataset = DatasetRecord(
        usecase=NAME, table=table, path="/nowhere", fingerprint="f", as_of=HELD_OUT, rows=9000,
        numeric=["departure_hour", "aircraft_flights"], categorical=["carrier"], inputs=[], holdout_from=HELD_OUT,
    )  # fmt: skip
    champion = models.champion(settings, NAME)
    evaluation = EvaluationRecord(
        model=model.reference, sha256=model.sha256, dataset_fingerprint="f", evaluated_at=datetime.now(UTC),
        holdout_from=HELD_OUT, holdout_until=HELD_OUT + timedelta(days=14), candidate=GOOD, constant=CONSTANT,
        champion=champion and GOOD, champion_model=champion and champion.reference,
    )  # fmt: skip
    kept = {
        ("training", "model"): model,
        ("training", "dataset"): dataset,
        ("evaluation", "evaluation"): evaluation,
        ("features", "online_store"): OnlineStoreRecord(usecase=NAME, until=HELD_OUT, sources=[]),
    }
    for key, record in kept.items():
        save_record(settings, (NAME, *key), record)
    return model


def materialise(settings: Settings, *keys: tuple[str, ...]) -> RunOutcome:
    graph = Graph(settings)
    return graph.follow(graph.launch(keys), lambda _: None, timeout_s=600)


def serving(settings: Settings) -> list[str]:
    served = httpx.get(f"{settings.url('model_http')}/v1/throughline/revisions").json()
    return [f"{one['usecase']}/{one['version']}" for one in served]


def approve(monkeypatch: pytest.MonkeyPatch, settings: Settings, reference: str, *options: str) -> int:
    monkeypatch.setenv("THROUGHLINE_HOME", str(settings.home))
    monkeypatch.setenv("THROUGHLINE_PORT_BASE", str(settings.port_base))
    monkeypatch.setattr("throughline.cli.govern.get_usecase", lambda name: USECASE)
    monkeypatch.setattr(sys, "argv", ["throughline", "approve", reference, *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_a_version_waits_for_its_approval_and_then_serves(settings, candidate, monkeypatch, capsys):
    assert materialise(settings, GATE, ENDPOINT).succeeded
    waiting = load_record(settings, GATE, GateDecision)
    assert (waiting.decision, waiting.failures.partition(" ")[0]) == ("wait", "approval")
    assert serving(settings) == []

    assert approve(monkeypatch, settings, str(candidate.reference), "--reason", "numbers seen", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["approved_by"], result["endpoint"]["model"]) == (ME, str(candidate.reference))
    assert serving(settings) == [str(candidate.reference)]
    assert load_record(settings, GATE, GateDecision).decision == "release"
    assert models.champion(settings, NAME) == candidate

    history = [(event.action, event.actor) for event in events(settings, NAME)]
    assert history == [
        ("registered", "ada"), ("decided", "graph"), ("approved", ME), ("decided", "graph"), ("champion", "graph")
    ]  # fmt: skip
    assert ("approved", "numbers seen") in [
        (event.action, event.reason) for event in read_card(settings, candidate).history
    ]

    assert approve(monkeypatch, settings, str(candidate.reference), "--reason", "again") == 1
    assert "the gate's decision is release" in capsys.readouterr().err


def test_an_approved_version_that_is_refused_is_an_error_with_the_runs_reason(settings, candidate, monkeypatch, capsys):
    """Its file was changed after the registration: the endpoint refuses it, and goes on as it was."""
    before = serving(settings)
    assert materialise(settings, GATE).succeeded
    file = Path(candidate.uri) / "model.onnx"
    file.write_bytes(model_bytes(5.0))
    assert approve(monkeypatch, settings, str(candidate.reference), "--reason", "numbers seen") == 1
    error = capsys.readouterr().err
    assert f"{candidate.reference} is approved and was not released" in error
    assert "changed: model.onnx" in error
    assert serving(settings) == before


FOREIGN_PAGES = (
    {"Origin": "http://evil.example"},
    {"Host": "evil.example"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
)


@pytest.mark.parametrize("headers", FOREIGN_PAGES, ids=lambda headers: next(iter(headers)))
def test_no_service_does_what_a_foreign_web_page_requests(settings, headers):
    launch = {"query": 'mutation { terminateRun(runId: "x") { __typename } }'}
    requests = [
        ("model_http", "POST", f"/v2/repository/models/{NAME}/unload", {}),
        ("mlflow", "GET", "/api/2.0/mlflow/experiments/search?max_results=1", {}),
        ("dagster", "POST", "/graphql", {"json": launch}),
        ("dagster", "GET", "/graphql", {"params": launch}),
    ]
    before = serving(settings)
    for service, method, path, content in requests:
        url = settings.url(service) + path
        answer = httpx.request(method, url, headers=headers, **content)
        assert answer.status_code in (403, 421), (url, answer.text)
        assert next(iter(headers)) in answer.json()["error"]
    assert serving(settings) == before
    for service, path in (("model_http", "/v2/health/live"), ("mlflow", "/health"), ("dagster", "/server_info")):
        own = httpx.get(settings.url(service) + path)
        assert (own.status_code, own.headers[HEADER].partition(" ")[0]) == (200, home_id(settings))


def test_clients_of_another_home_on_these_ports_say_so_and_change_nothing(settings, tmp_path):
    other = load_settings(home=tmp_path, port_base=settings.port_base)
    before = serving(settings)
    for service, call in (
        ("model server", lambda: endpoint.predict(other, USECASE, [{}])),
        ("MLflow", lambda: list(rest.model_versions(other, NAME))),
        ("Dagster webserver", lambda: Graph(other).states()),
    ):
        with pytest.raises(ThroughlineError, match=rf"is answered by the {service} of another home \(id ") as refused:
            call()
        assert "\n" not in str(refused.value)
    assert serving(settings) == before
