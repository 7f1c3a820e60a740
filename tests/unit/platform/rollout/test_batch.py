"""Batch scores are those of an online prediction with the same features, and a day written twice is the same day."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from benchmarks.serving_home import model_bytes
from tests.unit.platform.featurestore.test_dataset import START, flights, home, registered, usecase  # noqa: F401
from throughline.events.schema import LOG_SCHEMA
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import pin, read, replace_all
from throughline.models.served_model import ServedModel, sha256_of
from throughline.records import ModelRecord
from throughline.rollout.batch import TOLERANCE, score_days
from throughline.usecase import UseCase

NOW = START + timedelta(days=20)
FIRST, LAST = date(2013, 1, 2), date(2013, 1, 4)


@pytest.fixture
def served(home: Settings, usecase: UseCase) -> tuple[ModelRecord, ServedModel]:  # noqa: F811
    registered(home, usecase, NOW)
    numeric = ["origin_delay_2h", "weather_temp", "aircraft_seats", "departure_hour", "block_minutes"]
    seen = pl.DataFrame(
        {name: np.arange(9.0) for name in numeric} | {name: ["B6"] * 9 for name in usecase.features.categories}
    )
    file = home.home / "model.onnx"
    file.write_bytes(model_bytes(seen, numeric, usecase.features.categories))
    model = ModelRecord(
        name=usecase.name, version=7, uri=str(home.home), run_id="r", sha256=sha256_of(file), dataset_fingerprint="f",
        trained_until=START, trainer="t", parameters={},
    )  # fmt: skip
    return model, ServedModel.load(file, model.sha256)


def scored(home: Settings, usecase: UseCase, served, run: str = "run"):  # noqa: F811
    model, loaded = served
    record = score_days(home, usecase, model, loaded, FIRST, LAST, NOW, run)
    return record, read(home, record.table).collect().sort("prediction_time")


def test_each_row_that_falls_due_on_the_days_is_scored_with_what_was_known(home, usecase, served) -> None:  # noqa: F811
    record, rows = scored(home, usecase, served)
    local = flights()["prediction_time"].dt.convert_time_zone(usecase.timezone).dt.date()
    due = flights().filter(local.is_between(FIRST, LAST))
    assert rows["prediction_time"].to_list() == due["prediction_time"].to_list()
    assert record.rows == rows.height > 3
    assert rows["score"].n_unique() > 1
    assert set(rows["model_version"]) == {7}
    assert set(rows["model_sha256"]) == {served[0].sha256}
    assert (rows["event_time"] == rows["prediction_time"]).all()
    assert set(rows["available_at"]) == {NOW}
    assert rows["decision"].to_list() == [usecase.prediction.decision.decide(score) for score in rows["score"]]
    assert (record.compared, record.differing) == (0, 0)


def test_a_day_scored_twice_is_the_same_and_other_days_stay(home, usecase, served) -> None:  # noqa: F811
    _, before = scored(home, usecase, served)
    model, loaded = served
    score_days(home, usecase, model, loaded, date(2013, 1, 8), date(2013, 1, 8), NOW, "other")
    record, after = scored(home, usecase, served)
    assert after.filter(pl.col("day") <= LAST).equals(before)
    assert after["day"].max() == date(2013, 1, 8)
    assert record.rows == before.height


def log(home: Settings, usecase: UseCase, rows: list[dict]) -> None:  # noqa: F811
    blank = dict.fromkeys(LOG_SCHEMA)
    frame = pl.DataFrame([blank | row for row in rows], schema=LOG_SCHEMA)
    replace_all(home.table_path(usecase.name, "monitoring", "inference_log"), frame)


@pytest.mark.parametrize(("off", "differing"), [(0.0, 0), (TOLERANCE / 2, 0), (2 * TOLERANCE, 1)])
def test_predictions_of_the_same_rows_by_the_same_version_are_compared(home, usecase, served, off, differing) -> None:  # noqa: F811
    _, rows = scored(home, usecase, served)
    model, loaded = served
    from throughline.featurestore.request_features import add_request_features
    from throughline.featurestore.store import historical_features
    from throughline.rollout.endpoint import requests_between

    asked = requests_between(home, usecase, datetime.fromisoformat("2013-01-02T00:00:00-05:00"), NOW).head(3)
    features = add_request_features(usecase, historical_features(home, usecase, asked, "prediction_time"))
    made = [
        {
            "row_key": rows["row_key"][n],
            "features": json.dumps({name: features[name][n] for name in (*loaded.numeric, *loaded.categorical)}),
            "score": float(loaded.score(features[n])[0]),
            "model_name": model.name,
            "model_version": 7,
            "traffic": "production",
        }
        for n in range(3)
    ]
    made[0]["score"] += off
    others = [made[1] | {"model_version": 6}, made[1] | {"traffic": "load_test"}]
    changed = made[2] | {"features": json.dumps(json.loads(made[2]["features"]) | {"weather_temp": -99.0})}
    log(home, usecase, [made[0], made[1], changed, *(other | {"score": 0.0} for other in others)])
    record, _ = scored(home, usecase, served)
    assert (record.compared, record.differing) == (2, differing)
    assert pin(home, f"{usecase.name}/batch/scores") == record.table
