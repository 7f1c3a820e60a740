"""A use case that only tests declare: orders of a shop, in a few lines, with generated rows.

The clocks go back within its days (27 October 2024 in Berlin has 25 hours).
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from throughline.usecase import UseCase, load_usecases

FIRST, UNTIL = date(2024, 10, 25), date(2024, 10, 29)
BEGAN = datetime(2024, 10, 24, 22, tzinfo=UTC)  # the local midnight of the first day
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
COLUMNS: dict[str, Any] = {
    "order_id": {"type": "string"},
    "items": {"type": "integer", "at_least": 0},
    "amount": {"type": "number"},
    "paid": {"type": "boolean"},
    "note": {"type": "string", "nulls": 0.9},
    "ordered_at": {"type": "timestamp"},
}


def rows(count: int = 97, began: datetime = BEGAN) -> pl.DataFrame:
    """An order an hour, known half an hour later; as a source would have them, with `known_at`."""
    ordered = [began + n * HOUR for n in range(count)]
    return pl.DataFrame(
        {
            "order_id": [f"o{n:04d}" for n in range(count)],
            "items": range(count),
            "amount": [n * 1.25 for n in range(count)],
            "paid": [n % 2 == 0 for n in range(count)],
            "note": [None if n % 5 else f'für "{n}", gerne' for n in range(count)],
            "ordered_at": ordered,
            "known_at": [at + HOUR / 2 for at in ordered],
        },
        schema_overrides={"ordered_at": pl.Datetime("us", "UTC"), "known_at": pl.Datetime("us", "UTC")},
    )


def as_delivered(known: pl.DataFrame) -> pl.DataFrame:
    """The rows that a source must deliver for these."""
    return known.rename({"known_at": "available_at"}).with_columns(event_time="ordered_at").select(*EXPECTED)


EXPECTED = (*COLUMNS, "event_time", "available_at")


def declaration(tables: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "shop",
        "goal": "Predict whether an order will be returned.",
        "business_metric": "Cost of a return.",
        "owners": ["shop"],
        "approvers": ["shop"],
        "timezone": "Europe/Berlin",
        "replay": {"start": FIRST, "until": UNTIL, "end": date(2024, 11, 30)},
        "entities": {"customer": "customer"},
        "sources": {"tables": tables},
        "request": {"customer": {"type": "string"}, "ordered_at": {"type": "timestamp"}},
        "prediction": {
            "time_field": "ordered_at", "lead": "0h", "key": ["customer", "ordered_at"],
            "decision": {
                "negative": "kept", "positive": "returned", "cost_false_positive": 1, "cost_false_negative": 2
            },
        },
        "features": {
            "definitions": "shop.features", "request_features": "shop.features:derive", "service": "shop_v1",
            "spine": "orders", "categories": [],
        },
        "label": {"column": "returned", "known_at": "known_at", "delay": "14d", "event": "returned"},
        "trainer": "own",
        "trainers": {"own": {"module": "shop.train"}},
        "evaluation": {"holdout": "14d"},
        "gate": {"auc": {"at_least": 0.6}},
        "monitoring": {
            "calibration": {"window": "14d", "gap": 0.05, "minimum_outcomes": 100},
            "max_model_age": "56d", "cool_down": "14d",
        },
        "release": {"strategy": "direct"},
        **changes,
    }  # fmt: skip


def table(feed: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    declared = {"key": ["order_id"], "description": "Orders.", "expects": {"columns": COLUMNS}, "from": feed}
    return {name: value for name, value in {**declared, **changes}.items() if value is not None}


def declare(folder: Path, feed: dict[str, Any] | None, **changes: Any) -> UseCase:
    """The use case with one table, `orders`, as a file in a folder of declarations."""
    folder.mkdir(parents=True, exist_ok=True)
    declared = declaration({"orders": table(feed)}, **changes)
    (folder / "shop.yaml").write_text(yaml.safe_dump(declared, sort_keys=False))
    return load_usecases(folder)["shop"]
