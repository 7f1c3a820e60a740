"""Nothing goes live that the gate did not release: the deployment asset on a real ephemeral instance."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from dagster import AssetKey, AssetSpec, Definitions, ExecuteInProcessResult, materialize

from assets.deployment import deployment_assets
from assets.evaluation import evaluation_assets
from assets.resources import RecordIOManager
from throughline import recordstore
from throughline.records import EvaluationRecord, GateDecision, Metrics, ModelRecord, OnlineStoreRecord, RuleVerdict
from throughline.settings import Settings
from throughline.usecase import UseCase, get_usecase

NOW = datetime(2013, 4, 1, 4, tzinfo=UTC)
GOOD = Metrics(rows=9000, log_loss=0.44, auc=0.76, brier=0.14, ece=0.02)
CONSTANT = Metrics(rows=9000, log_loss=0.52, auc=0.5, brier=0.17, ece=0.0)


@pytest.fixture
def usecase() -> UseCase:
    return get_usecase("flight_delay")


def model(version: int = 1) -> ModelRecord:
    return ModelRecord(
        name="flight_delay",
        version=version,
        run_id="r",
        sha256=f"{version:064d}",
        uri="/nowhere",
        dataset_fingerprint="f" * 16,
        trained_until=NOW,
        trainer="mlp",
        parameters={},
    )


def evaluation(of: ModelRecord, candidate: Metrics = GOOD) -> EvaluationRecord:
    return EvaluationRecord(
        model=of.reference,
        sha256=of.sha256,
        dataset_fingerprint=of.dataset_fingerprint,
        evaluated_at=datetime.now(UTC),
        holdout_from=NOW,
        holdout_until=NOW,
        candidate=candidate,
        constant=CONSTANT,
        champion=None,
        champion_model=None,
    )


def launch(settings: Settings, usecase: UseCase, *selected: tuple[str, str]) -> ExecuteInProcessResult:
    """Materialise some assets alone, as somebody would from the UI."""
    both = Definitions.merge(evaluation_assets(usecase), deployment_assets(usecase))
    upstream = [("training", "dataset"), ("training", "model"), ("features", "online_store")]
    return materialize(
        [*both.assets, *(AssetSpec([usecase.name, *key]) for key in upstream)],
        selection=[AssetKey([usecase.name, *key]) for key in selected],
        resources={"settings": settings, "io_manager": RecordIOManager(settings)},
        raise_on_error=False,
    )


def keep(settings: Settings, usecase: UseCase, **records: Any) -> None:
    places = {
        "model": ("training", "model"),
        "evaluation": ("evaluation", "evaluation"),
        "gate": ("evaluation", "gate"),
        "online_store": ("features", "online_store"),
    }
    for name, record in records.items():
        recordstore.save(settings, (usecase.name, *places[name]), record)


def error_of(result: ExecuteInProcessResult) -> str:
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    error = failure.step_failure_data.error
    while error.cause:
        error = error.cause
    return error.message


PASSED = [RuleVerdict(rule="auc", verdict="pass", value=0.76, bound="at least 0.72")]
ONLINE = OnlineStoreRecord(usecase="flight_delay", until=NOW, sources=[])


def test_a_rejected_candidate_leaves_the_endpoint_as_it_is(settings: Settings, usecase: UseCase) -> None:
    too_good = GOOD.model_copy(update={"auc": 0.85})
    keep(settings, usecase, model=model(), evaluation=evaluation(model(), too_good), online_store=ONLINE)
    result = launch(settings, usecase, ("evaluation", "gate"), ("deployment", "endpoint"))
    assert result.success
    gate = recordstore.load(settings, (usecase.name, "evaluation", "gate"), GateDecision)
    assert gate.decision == "reject"
    assert "auc fail (0.8500" in gate.reasons
    assert not result.asset_materializations_for_node("flight_delay__deployment__endpoint")
    assert not settings.serving_home.exists()


def test_deployment_launched_alone_without_a_decision_fails_closed(settings: Settings, usecase: UseCase) -> None:
    keep(settings, usecase, model=model(), online_store=ONLINE)
    result = launch(settings, usecase, ("deployment", "endpoint"))
    assert not result.success
    assert "No record of flight_delay/evaluation/gate" in error_of(result)


def test_a_decision_about_another_version_releases_nothing(settings: Settings, usecase: UseCase) -> None:
    decision = GateDecision(
        model="flight_delay/1", sha256=model(1).sha256, decision="release", decided_at=NOW, rules=PASSED
    )
    keep(settings, usecase, model=model(2), gate=decision, online_store=ONLINE)
    result = launch(settings, usecase, ("deployment", "endpoint"))
    assert not result.success
    assert "flight_delay/1" in error_of(result)
    assert "flight_delay/2" in error_of(result)
    assert not settings.serving_home.exists()


def test_a_decision_about_other_bytes_releases_nothing(settings: Settings, usecase: UseCase) -> None:
    decision = GateDecision(model="flight_delay/1", sha256="e" * 64, decision="release", decided_at=NOW, rules=PASSED)
    keep(settings, usecase, model=model(1), gate=decision, online_store=ONLINE)
    result = launch(settings, usecase, ("deployment", "endpoint"))
    assert not result.success
    assert "flight_delay/1" in error_of(result)
    assert not settings.serving_home.exists()


def test_an_evaluation_of_another_version_is_no_reason_to_release(settings: Settings, usecase: UseCase) -> None:
    keep(settings, usecase, model=model(2), evaluation=evaluation(model(1)), online_store=ONLINE)
    result = launch(settings, usecase, ("evaluation", "gate"))
    assert result.success
    gate = recordstore.load(settings, (usecase.name, "evaluation", "gate"), GateDecision)
    assert gate.decision == "reject"
