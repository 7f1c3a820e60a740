"""A card has every field, of one version only, and is refused when the declaration leaves something out."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import shop
from throughline.evaluation.card import Card, by_view, card_of, left_out, render_html, render_markdown
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.records import (
    BehaviourCheck,
    DatasetRecord,
    EvaluationRecord,
    GateDecision,
    HistoryEvent,
    Interval,
    Metrics,
    ModelRecord,
    ReliabilityBin,
    RuleVerdict,
    ServingCost,
    SliceMetrics,
)
from throughline.registry.history import concerning
from throughline.usecase import CardStatement, UseCase, load_usecases

NOW = datetime(2024, 11, 20, 8, 30, tzinfo=UTC)
DAY = timedelta(days=1)
FEED = {"push": "order_id", "event_time": "ordered_at"}
MINE = Metrics(rows=9000, log_loss=0.4321, auc=0.7654, brier=0.1234, ece=0.0234)
THEIRS = MINE.model_copy(update={"log_loss": 0.4444})
STATEMENT: dict[str, Any] = {
    "intended_use": "Telling the packers which orders come back.",
    "affected_people": "Customers of the shop.",
    "forbidden_use": "Refusing customers.",
    "limits": ["Orders of 2024 only."],
    "sign_off": [{"name": "Ada", "role": "owner", "signed": date(2024, 11, 1)}],
}
TAGS = {
    "commit": "c0ffee" * 6, "lock": "10c", "code_fingerprint": "c0de",
    "feature_definitions": "def1", "dagster_run_id": "run-of-dagster", "cause": "drift",
}  # fmt: skip


@pytest.fixture
def usecase(tmp_path: Path) -> UseCase:
    return shop.declare(tmp_path, FEED, card=STATEMENT)


def model(**changes: Any) -> ModelRecord:
    fields = {
        "name": "shop", "version": 2, "run_id": "run7", "sha256": "d" * 64, "uri": "/somewhere",
        "dataset_fingerprint": "f" * 64, "trained_until": NOW - 15 * DAY, "trainer": "own", "parameters": {"depth": 3},
    }  # fmt: skip
    return ModelRecord(**{**fields, **changes})


def dataset(**changes: Any) -> DatasetRecord:
    fields = {
        "usecase": "shop", "table": TableReference("shop/training/dataset", 4), "path": "/secret/place",
        "fingerprint": "f" * 64, "as_of": NOW, "rows": 123456, "numeric": ["amount_7d", "items"],
        "categorical": ["customer"], "service": "shop_v1",
        "inputs": [TableReference("shop/raw/orders", 11)], "views": {"order_ticks": ["amount_7d"]},
        "holdout_from": NOW - 14 * DAY,
    }  # fmt: skip
    return DatasetRecord(**{**fields, **changes})


def a_slice(value: str, gain: float) -> SliceMetrics:
    return SliceMetrics(
        column="country", value=value, metrics=MINE, base_rate=0.2, mean_score=0.2, log_loss_under_constant=gain,
        log_loss_over_champion=-0.01, over_champion_interval=Interval(low=-0.02, high=0.0), caught=0.5,
    )  # fmt: skip


def evaluation(**changes: Any) -> EvaluationRecord:
    fields = {
        "model": "shop/2", "sha256": "d" * 64, "dataset_fingerprint": "f" * 64, "evaluated_at": NOW,
        "holdout_from": NOW - 14 * DAY, "holdout_until": NOW, "candidate": MINE, "constant": THEIRS, "champion": THEIRS,
        "champion_model": "shop/1", "days": 14, "slices": [a_slice("AT", 0.05), a_slice("CH", 0.0123)],
        "intervals": {
            "candidate": {"auc": Interval(low=0.7111, high=0.8222)},
            "over_champion": {"log_loss": Interval(low=-0.0333, high=-0.0111)},
        },
        "reliability": {"candidate": [ReliabilityBin(mean_score=0.2, outcome_rate=0.25, rows=900)]},
        "disparity": {"country": {"calibration": 0.0345, "opportunity": float("nan")}},
        "behaviour": [BehaviourCheck(name="more items", rows=10, broken=0.0678, mean_change=0.1)],
        "outside_domain": 0.0099, "cost": ServingCost(latency_p50_ms=0.1, latency_p95_ms=0.2, size_bytes=1_500_000),
    }  # fmt: skip
    return EvaluationRecord(**{**fields, **changes})


def decision(**changes: Any) -> GateDecision:
    rules = [RuleVerdict(rule="auc", verdict="fail", value=0.7654, bound="below 0.75", where="here")]
    fields = {"model": "shop/2", "sha256": "d" * 64, "decision": "reject", "decided_at": NOW, "rules": rules}
    return GateDecision(**{**fields, **changes})


def event(number: int, action: str, target: str, **values: Any) -> HistoryEvent:
    return HistoryEvent(id=f"{number}", at=NOW + number * DAY, actor="ada", action=action, target=target, **values)


EVENTS = [
    event(0, "registered", "shop/1", new="1" * 64),
    event(1, "registered", "shop/2", new="d" * 64),
    event(2, "note", "shop", reason="Returns are free since Monday."),
    event(3, "champion", "shop", old="shop/1", new="shop/2", reason="it is better"),
    event(4, "champion", "shop", old=None, new="shop/1"),
    event(5, "note", "shop/1", reason="not of this one"),
    event(6, "note", "shop/21", reason="nor this"),
]


def card(usecase: UseCase, **changes: Any) -> Card:
    parts = {
        "model": model(), "tags": TAGS, "dataset": dataset(), "evaluation": evaluation(), "decision": decision(),
        "events": EVENTS, "parameters": {"depth": "3", "member.epochs": "8"},
    }  # fmt: skip
    return card_of(usecase, **{**parts, **changes})


@pytest.mark.parametrize("render", [render_markdown, render_html])
def test_both_forms_have_all_fields(usecase: UseCase, render) -> None:
    text = render(card(usecase))
    of_data = ["2024-11-05 08:30", "2024-11-06 08:30", "123,456 rows", "f" * 64, "shop/raw/orders@11"]
    of_model = ["own", "depth", "member.epochs", "order_ticks", "amount_7d", "items, customer", "shop_v1"]
    of_numbers = ["0.4321", "0.4444", "0.7111 to 0.8222", "-0.0333 to -0.0111", "0.0345", "0.0678", "0.0099"]
    of_people = [STATEMENT[word] for word in ("intended_use", "affected_people", "forbidden_use")]
    of_lineage = ["run7", "run-of-dagster", "c0ffee" * 6, "10c", "d" * 64, "def1", "shop/1", "drift"]
    of_history = ["Returns are free since Monday.", "it is better", "shop/1 → shop/2"]
    others = [
        "Ada, owner, 2024-11-01",
        "cannot be computed",
        "reject",
        "below 0.75",
        "Orders of 2024 only.",
        "country=CH",
        "Predict whether an order will be returned.",
    ]
    assert "replacement. Log loss over" in text
    assert "0.0099. One prediction" in text
    for expected in (*of_data, *of_model, *of_numbers, *of_people, *of_lineage, *of_history, *others):
        assert expected in text, expected


def test_the_worst_slice_is_named(usecase: UseCase) -> None:
    assert "The worst is country=CH." in render_markdown(card(usecase))


def test_a_card_is_the_same_after_it_was_written_and_read(usecase: UseCase) -> None:
    made = card(usecase)
    read = Card.model_validate_json(made.model_dump_json())
    assert (render_markdown(read), render_html(read)) == (render_markdown(made), render_html(made))
    assert "/secret/place" not in made.model_dump_json()


def test_all_that_the_declaration_leaves_out_is_named_at_once(tmp_path: Path) -> None:
    empty = shop.declare(tmp_path / "1", FEED)
    with pytest.raises(ThroughlineError) as refused:
        card(empty)
    assert all(word in str(refused.value) for word in STATEMENT)
    assert "usecases/shop.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)
    blank = shop.declare(tmp_path / "2", FEED, card={**STATEMENT, "forbidden_use": "  ", "limits": [" "]})
    with pytest.raises(ThroughlineError, match="leaves forbidden_use, limits under"):
        card(blank)


def test_the_built_in_use_cases_declare_what_a_card_needs() -> None:
    assert {name: left_out(usecase.card) for name, usecase in load_usecases().items() if left_out(usecase.card)} == {}
    assert left_out(CardStatement()) == list(STATEMENT)


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"evaluation": evaluation(model="shop/1")}, "the evaluation is of shop/1"),
        ({"evaluation": evaluation(sha256="e" * 64)}, "the evaluation is of shop/2, file eeeeeeeeeeee"),
        ({"evaluation": evaluation(dataset_fingerprint="0" * 64)}, "the evaluation is of"),
        ({"decision": decision(model="shop/3")}, "the decision is about shop/3"),
        ({"decision": decision(sha256="e" * 64)}, "the decision is about shop/2, file eeeeeeeeeeee"),
        ({"dataset": dataset(fingerprint="0" * 64)}, "another than it was trained on"),
    ],
)
def test_records_of_another_version_are_refused(usecase: UseCase, part, problem) -> None:
    with pytest.raises(ThroughlineError, match=problem):
        card(usecase, **part)


def test_the_history_of_a_version_has_its_own_events_and_notes_on_the_model() -> None:
    assert [event.id for event in concerning(EVENTS, ModelReference("shop", 2))] == ["1", "2", "3"]
    assert [event.id for event in concerning(EVENTS, ModelReference("shop", 1))] == ["0", "2", "3", "4", "5"]


def test_a_feature_of_no_view_comes_with_the_request() -> None:
    assert by_view(dataset()) == {"order_ticks": ["amount_7d"], "request": ["items", "customer"]}
    assert by_view(dataset(views={})) == {"request": ["amount_7d", "items", "customer"]}


MARKUP = "<script>alert(1)</script> | `x` [a](http://b) *c*\n# d"


def test_texts_of_people_are_escaped(usecase: UseCase) -> None:
    made = card(usecase, events=[event(1, "note", "shop/2", reason=MARKUP)], tags={**TAGS, "cause": MARKUP})
    assert "<script>" not in render_html(made)
    text = render_markdown(made)
    (line,) = [line for line in text.splitlines() if "note" in line and "alert" in line]
    assert line.endswith(r"\<script\>alert(1)\</script\> \| \`x\` \[a\](http://b) \*c\* # d |")
    assert "\n# d" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"champion": None, "champion_model": None, "slices": [], "disparity": {}, "behaviour": [], "reliability": {}},
        {"candidate": MINE.model_copy(update={"auc": float("nan")}), "intervals": {}, "cost": None},
    ],
)
def test_missing_numbers_are_left_out_and_the_card_is_complete(usecase: UseCase, changes) -> None:
    made = card(usecase, evaluation=evaluation(**changes), events=[], tags={})
    assert render_html(made).rstrip().endswith("</html>")
    assert render_markdown(made).rstrip().endswith("Nothing yet.")
    assert made.lineage.commit == "unknown"


def test_every_table_in_markdown_has_a_head_and_rows_of_its_width(usecase: UseCase) -> None:
    lines = [*render_markdown(card(usecase)).splitlines(), ""]
    widths = [line.replace("\\|", "").count("|") for line in lines]
    tables = [number for number, line in enumerate(lines) if line.startswith("|---")]
    assert len(tables) == 10
    for number in tables:
        assert lines[number - 2] == ""
        end = next(row for row in range(number, len(lines)) if not lines[row].startswith("|"))
        assert len(set(widths[number - 1 : end])) == 1
        assert end > number + 1
        assert lines[end] == ""
    headings = [number for number, line in enumerate(lines) if line.startswith("##")]
    assert len(headings) == 11
    assert not [lines[number] for number in headings if lines[number - 1]]
