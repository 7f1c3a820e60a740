"""What the registry promises, over SQLite and a folder and over PostgreSQL and S3: real servers, started by `up`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import postgres_server, s3_server, shop
from throughline import services
from throughline.evaluation.card import render_markdown
from throughline.evaluation.card_store import current_card, publish_card, read_card
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.security.home import FILE as HOME_ID
from throughline.foundation.settings import Settings, load_settings
from throughline.mlflow.rest import model_versions
from throughline.mlflow.tracking import client_of
from throughline.models.description import set_tags, summaries
from throughline.models.onnx_graph import compose, learn_preprocessing
from throughline.models.served_model import ServedModel, sha256_of
from throughline.models.signing import PUBLIC, TRUSTED
from throughline.records import DatasetRecord, EvaluationRecord, GateDecision, Metrics, ModelRecord, RuleVerdict
from throughline.registry import history
from throughline.registry import versions as models
from throughline.retention.models import apply
from throughline.services.daemon import Supervisor
from throughline.services.ports import take_ports
from throughline.usecase import CardStatement, UseCase

PASSWORD = "s3cret-of-the-registry"
STORES = ["sqlite and a folder", "postgresql and s3"]
NAME = "shop"
NOW, DAY = datetime(2024, 11, 20, tzinfo=UTC), timedelta(days=1)


@dataclass(frozen=True)
class Registry:
    settings: Settings
    database: postgres_server.Postgres | None
    bucket: Path | None

    def restart(self) -> None:
        services.down(self.settings)
        services.up(self.settings, ["mlflow"])


@pytest.fixture(scope="module", params=STORES)
def registry(request, tmp_path_factory) -> Iterator[Registry]:
    """A home with an MLflow server on one of the pairs of stores."""
    home, ports = tmp_path_factory.mktemp("home"), take_ports()
    if request.param == STORES[0]:
        yield from started(Registry(load_settings(home=home, port_base=ports), None, None))
        return
    programs = postgres_server.binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (initdb)")
    folder = tmp_path_factory.mktemp("s3") / "buckets"
    with (
        postgres_server.serve(programs, "mlflow", PASSWORD) as database,
        s3_server.serve(s3_server.needed(), folder, ["registry"]) as address,
        pytest.MonkeyPatch.context() as environment,
    ):
        for name, value in s3_server.environment(address).items():
            environment.setenv(name, value)
        store = f"postgresql://mlflow:{PASSWORD}@127.0.0.1:{database.port}/postgres"
        settings = load_settings(
            home=home, port_base=ports, mlflow_store=store, mlflow_artifacts="s3://registry/of/models/"
        )
        yield from started(Registry(settings, database, folder / "registry"))


def started(registry: Registry) -> Iterator[Registry]:
    try:
        services.up(registry.settings, ["mlflow"])
        yield registry
    finally:
        services.down(registry.settings)


def write_model(folder: Path, weight: float) -> Path:
    """A model that can be served: the sigmoid of one weighted feature."""
    rows = pl.DataFrame({"amount": [1.0, 2.0, 4.0, 8.0]})
    learned = learn_preprocessing(rows, ["amount"], [])
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["numbers", "weights"], ["total"]),
            helper.make_node("Sigmoid", ["total"], ["score"]),
        ],
        "core",
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", learned.width])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.full((learned.width, 1), weight, np.float32), "weights")],
    )
    core = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(compose(learned, core).SerializeToString())
    onnx.checker.check_model(str(path))
    return path


def register(settings: Settings, folder: Path, weight: float) -> ModelRecord:
    client = client_of(settings)
    experiment = client.get_experiment_by_name(NAME)
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment(NAME))
    return models.register(
        settings, name=NAME, run_id=run.info.run_id, file=write_model(folder, weight), dataset_fingerprint="f" * 64,
        trained_until=NOW, trainer="own", parameters={"weight": weight},
        tags={"dataset_table": TableReference("shop/training/dataset", 1)},
    )  # fmt: skip


def test_a_version_its_file_and_its_alias_survive_a_restart_of_the_server(registry: Registry, tmp_path: Path) -> None:
    settings = registry.settings
    record = register(settings, tmp_path, 0.5)
    models.set_alias(settings, record.reference)
    registry.restart()
    assert models.alias(settings, NAME) == record.reference
    assert models.get(settings, record.reference) == record
    shutil.rmtree(tmp_path / "got", ignore_errors=True)
    file = models.fetch(settings, record, tmp_path / "got")
    assert sha256_of(file) == record.sha256 == sha256_of(tmp_path / "model.onnx")
    scores = ServedModel.load(file, record.sha256).score(pl.DataFrame({"amount": [3.0, None]}))
    assert scores.shape == (2,)


def test_runs_and_files_are_where_the_settings_say(registry: Registry, tmp_path: Path) -> None:
    record = register(registry.settings, tmp_path, 0.75)
    root = registry.settings.mlflow_home
    if registry.database is None:
        assert Path(record.uri).is_dir()
        assert (root / "mlflow.db").exists()
        return
    assert f"{record.version}|" in registry.database.run("SELECT version, source FROM model_versions ORDER BY version")
    (stored,) = [path for path in registry.bucket.rglob("model.onnx") if sha256_of(path) == record.sha256]
    assert stored.is_relative_to(registry.bucket / "of" / "models")
    assert not [path for path in root.rglob("*") if path.is_file()]
    assert record.uri == f"s3://registry/{stored.parent.relative_to(registry.bucket).as_posix()}"


def test_the_password_of_the_store_is_in_no_command_line_and_in_no_file(registry: Registry) -> None:
    if registry.database is None:
        pytest.skip("SQLite has no password")
    ours = psutil.Process(Supervisor(registry.settings).pid())
    lines = [" ".join(process.cmdline()) for process in (ours, *ours.children(recursive=True))]
    assert any("mlflow_server" in line for line in lines)
    assert not [line for line in lines if PASSWORD in line]
    files = [path for path in registry.settings.home.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.log" for path in files)
    assert any(path.name == "supervisord.conf" for path in files)
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]


def test_the_list_of_versions_has_alias_trainer_dataset_and_decision(registry: Registry, tmp_path: Path) -> None:
    settings = registry.settings
    record = register(settings, tmp_path, 1.5)
    models.set_alias(settings, record.reference)
    set_tags(settings, record, {"holdout_auc": 0.75, "gate": "release"})
    newest, *others = summaries(settings, NAME)
    assert (newest.model, newest.aliases, newest.trainer) == (record.reference, ["champion"], "own")
    assert (newest.dataset, newest.auc, newest.decision) == ("f" * 64, 0.75, "release")
    assert newest.dataset_table == TableReference("shop/training/dataset", 1)
    assert not [one for one in others if one.aliases]
    assert summaries(settings, "nobody") == []


def test_retention_removes_versions_with_their_files_and_leaves_what_is_pinned(
    registry: Registry, tmp_path: Path
) -> None:
    settings = registry.settings.model_copy(update={"keep_models": 1})
    for version in model_versions(settings, NAME):
        client_of(settings).delete_model_version(NAME, version["version"])
    made = [register(settings, tmp_path, weight) for weight in (2.0, 3.0, 4.0)]
    models.set_alias(settings, made[0].reference)
    (line,) = apply(settings, NAME, datetime.now(UTC) + timedelta(minutes=1))
    assert str(made[1].reference) in line
    left = {int(version["version"]) for version in model_versions(settings, NAME)}
    assert left == {made[0].version, made[2].version}
    for kept in (made[0], made[2]):
        models.fetch(settings, kept, tmp_path / "kept")
    with pytest.raises(ThroughlineError, match="is not registered"):
        models.get(settings, made[1].reference)
    stored = (registry.bucket or settings.mlflow_home).rglob("model.onnx")
    assert made[1].sha256 not in {sha256_of(path) for path in stored}
    assert client_of(settings).get_run(made[1].run_id).info.status  # the run stays
    (event,) = [e for e in history.events(settings, NAME, target=made[1].reference) if e.action == "note"]
    assert "nothing pins it" in event.reason
    assert apply(settings, NAME, datetime.now(UTC)) == []


# Model cards


def facts(record: ModelRecord) -> dict[str, Any]:
    """All that a card of the version is made from, beside the registry."""
    sha256, fingerprint = record.sha256, record.dataset_fingerprint
    metrics = Metrics(rows=100, log_loss=0.5, auc=0.7654, brier=0.2, ece=0.1)
    dataset = DatasetRecord(
        usecase=NAME, table=TableReference("shop/training/dataset", 1), path="/p",
        fingerprint=fingerprint,
        as_of=NOW, rows=1000, numeric=["amount"], categorical=[], service="shop_v1",
        inputs=[TableReference("shop/raw/orders", 7)], holdout_from=NOW + DAY,
    )  # fmt: skip
    evaluation = EvaluationRecord(
        model=record.reference, sha256=sha256, dataset_fingerprint=fingerprint, evaluated_at=NOW,
        holdout_from=NOW + DAY, holdout_until=NOW + 2 * DAY, candidate=metrics, constant=metrics, champion=metrics,
        champion_model="shop/1",
    )  # fmt: skip
    rule = RuleVerdict(rule="auc", verdict="fail", value=0.7654, bound="at least 0.8")
    decision = GateDecision(
        model=record.reference, sha256=sha256, decision="reject", decided_at=NOW, rules=[rule], compared_with="shop/1"
    )
    return {"model": record, "dataset": dataset, "evaluation": evaluation, "decision": decision}


@pytest.fixture
def usecase(tmp_path: Path) -> UseCase:
    """The shop, with feature definitions that are code of this repository."""
    statement = {
        "intended_use": "Packing.", "affected_people": "Customers.", "forbidden_use": "Refusing.", "limits": ["2024"],
        "sign_off": [{"name": "Ada", "role": "owner", "signed": date(2024, 11, 1)}],
    }  # fmt: skip
    features = {
        "definitions": "throughline.foundation.days", "request_features": "throughline.foundation.tags:x",
        "service": "shop_v1", "spine": "orders", "categories": [],
    }  # fmt: skip
    feed = {"push": "order_id", "event_time": "ordered_at"}
    return shop.declare(tmp_path / "usecases", feed, card=statement, features=features)


def test_a_published_card_is_read_back_with_the_notes_of_today(
    registry: Registry, usecase: UseCase, tmp_path: Path
) -> None:
    settings, record = registry.settings, register(registry.settings, tmp_path, 5.0)
    published = publish_card(settings, usecase, **facts(record))
    assert read_card(settings, record).model_dump_json() == published.model_dump_json()
    tags = models.tags_of(settings, record.reference)
    assert tags["table_versions"] == [TableReference("shop/raw/orders", 7)]
    found = {name: tags[name] for name in ("gate", "parent", "feature_service", "holdout_auc", "card")}
    assert found == {
        "gate": "reject", "parent": ModelReference("shop", 1), "feature_service": "shop_v1", "holdout_auc": 0.7654,
        "card": f"runs:/{record.run_id}/card",
    }  # fmt: skip
    assert "auc fail" in tags["gate_failures"]
    assert len(tags["feature_definitions"]) == 64
    assert published.lineage.feature_definitions == tags["feature_definitions"]
    history.append(settings, NAME, history.event_of("note", record.reference, "ada", reason="Mind the holidays."))
    assert "Mind the holidays." not in render_markdown(read_card(settings, record))
    assert "Mind the holidays." in render_markdown(current_card(settings, record))
    publish_card(settings, usecase, **facts(record))
    page = Path(client_of(settings).download_artifacts(record.run_id, "card/card.html", str(tmp_path)))
    assert "Mind the holidays." in page.read_text()
    assert read_card(settings, record).decision == published.decision


def swap_files(settings: Settings, record: ModelRecord, other: ModelRecord, scratch: Path) -> None:
    """The page for people is edited."""
    (scratch / "card.html").write_text("<h1>release</h1>")
    client_of(settings).log_artifact(record.run_id, str(scratch / "card.html"), "card")


def swap_verdict(settings: Settings, record: ModelRecord, other: ModelRecord, scratch: Path) -> None:
    """The decision is reversed."""
    file = Path(client_of(settings).download_artifacts(record.run_id, "card/card.json", str(scratch)))
    copy = scratch / "changed" / "card.json"
    copy.parent.mkdir()
    copy.write_text(file.read_text().replace('"reject"', '"release"'))
    client_of(settings).log_artifact(record.run_id, str(copy), "card")


def swap_cards(settings: Settings, record: ModelRecord, other: ModelRecord, scratch: Path) -> None:
    """The card of another version is put in its place, with its signature."""
    folder = client_of(settings).download_artifacts(other.run_id, "card", str(scratch))
    client_of(settings).log_artifacts(record.run_id, folder, "card")


def add_file(settings: Settings, record: ModelRecord, other: ModelRecord, scratch: Path) -> None:
    (scratch / "evil.pkl").write_bytes(b"cos\nsystem\n.")
    client_of(settings).log_artifact(record.run_id, str(scratch / "evil.pkl"), "card")


@pytest.mark.parametrize(
    ("swap", "problem"),
    [
        (swap_files, "changed: card.html"),
        (swap_verdict, "changed: card.json"),
        (swap_cards, "it is the card of"),
        (add_file, "added: evil.pkl"),
    ],
)
def test_a_swapped_card_is_refused_in_one_line_and_recorded_as_refused(
    registry: Registry, usecase: UseCase, tmp_path: Path, swap, problem: str
) -> None:
    settings = registry.settings
    (tmp_path / "scratch").mkdir()
    record, other = (register(settings, tmp_path, weight) for weight in (6.0, 7.0))
    for one in (record, other):
        publish_card(settings, usecase, **facts(one))
    swap(settings, record, other, tmp_path / "scratch")
    with pytest.raises(ThroughlineError, match=problem) as refused:
        current_card(settings, record)
    assert f"The card of {record.reference} is refused" in str(refused.value)
    assert "\n" not in str(refused.value)
    (event,) = history.events(settings, NAME, target=record.reference, action="refused")
    assert problem in event.reason
    read_card(settings, other)


def test_a_card_signed_by_an_unknown_key_is_refused(registry: Registry, usecase: UseCase, tmp_path: Path) -> None:
    """The other home trusts our key and has our id, so that our MLflow answers it; this one does not trust its key."""
    record = register(registry.settings, tmp_path, 8.0)
    other = registry.settings.model_copy(update={"home": tmp_path / "another home"})
    (other.keys / TRUSTED).mkdir(parents=True)
    shutil.copy(registry.settings.home / HOME_ID, other.home / HOME_ID)
    shutil.copy(registry.settings.keys / PUBLIC, other.keys / TRUSTED / "us.pub")
    publish_card(other, usecase, **facts(record))
    with pytest.raises(ThroughlineError, match="not trusted"):
        read_card(registry.settings, record)


def test_a_version_without_a_card_is_an_error_and_no_refusal(
    registry: Registry, usecase: UseCase, tmp_path: Path
) -> None:
    record = register(registry.settings, tmp_path, 9.0)
    with pytest.raises(ThroughlineError, match="has no card") as missing:
        read_card(registry.settings, record)
    assert "\n" not in str(missing.value)
    assert history.events(registry.settings, NAME, target=record.reference, action="refused") == []


def test_a_card_that_fails_leaves_the_version_described(registry: Registry, usecase: UseCase, tmp_path: Path) -> None:
    record = register(registry.settings, tmp_path, 10.0)
    undeclared = usecase.model_copy(update={"card": CardStatement()})
    with pytest.raises(ThroughlineError, match="intended_use, affected_people, forbidden_use, limits, sign_off"):
        publish_card(registry.settings, undeclared, **facts(record))
    assert models.tags_of(registry.settings, record.reference)["gate"] == "reject"
    with pytest.raises(ThroughlineError, match="has no card"):
        read_card(registry.settings, record)


def test_a_store_that_refuses_the_password_is_named_without_it(tmp_path: Path) -> None:
    programs = postgres_server.binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (initdb)")
    with postgres_server.serve(programs, "mlflow", "another") as database:
        store = f"postgresql://mlflow:{PASSWORD}@127.0.0.1:{database.port}/postgres"
        settings = load_settings(home=tmp_path / "home", port_base=take_ports(), mlflow_store=store)
        try:
            with pytest.raises(services.ServiceFailed, match="mlflow died") as refused:
                services.up(settings, ["mlflow"])
        finally:
            services.down(settings)
    (line,) = refused.value.tail
    assert "password authentication failed" in line
    assert "correct THROUGHLINE_MLFLOW_STORE" in line
    assert PASSWORD not in (settings.logs / "mlflow.log").read_text()
