"""A training dataset holds what was known as of its instant, each label on its own row, and keeps its fingerprint."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FeatureView

from features.flight_delay.definitions import build
from throughline.featurestore import dataset as datasets
from throughline.featurestore import store as feature_store
from throughline.featurestore.dataset import build_dataset, labelled_parts, labelled_rows
from throughline.featurestore.delta_store import DeltaSource
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import pin, read
from throughline.records import DatasetRecord, FeatureStoreRecord
from throughline.usecase import UseCase, get_usecase

START = datetime(2013, 1, 1, 5, tzinfo=UTC)
HOUR, DAY, TICK = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)
TIME = pl.Datetime("us", "UTC")
KEYS = {"origin": "JFK", "carrier": "B6", "destination": "BOS", "aircraft": "N1", "flight": 1}
COUNT = 60


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


def flights() -> pl.DataFrame:
    """A flight every twelve hours; its label, known three hours after departure, is 1 for every third."""
    number = pl.int_range(COUNT, eager=True)
    departure = pl.lit(START) + pl.duration(hours=12 * number)
    announced = pl.DataFrame({"flight": number}).select(
        flight_id=pl.format("F{}", "flight"),
        origin=pl.lit("JFK"),
        carrier=pl.lit("B6"),
        dest=pl.lit("BOS"),
        tailnum=pl.when(number % 5 == 0).then(None).otherwise(pl.lit("N1")),
        flight="flight",
        scheduled_departure=departure.cast(TIME),
        scheduled_arrival=(departure + timedelta(hours=2)).cast(TIME),
        prediction_time=(departure - timedelta(hours=2)).cast(TIME),
        label=pl.when(number % 7 == 6).then(None).otherwise((number % 3 == 0).cast(pl.Int32)),
        label_available_at=pl.when(number % 7 == 6).then(None).otherwise(departure + timedelta(hours=3)).cast(TIME),
    )
    return announced.with_columns(available_at=pl.coalesce("label_available_at", "prediction_time"))


def write(settings: Settings, table: str, frame: pl.DataFrame) -> None:
    write_deltalake(str(settings.lakehouse / table), frame.to_arrow(), mode="overwrite")


@pytest.fixture
def home(tmp_path: Path, usecase: UseCase) -> Settings:
    """Every tick's values are the hour of the tick, so that a joined value identifies its tick."""
    settings = Settings(home=tmp_path)
    for one in build(lambda table: DeltaSource(name=table, path="", version=0, timestamp_field="event_timestamp")):
        if isinstance(one, FeatureView):
            ticks = pl.DataFrame({"hour": pl.int_range(0, 24 * 31, 5, eager=True)}).select(
                *(pl.lit(KEYS[entity]).alias(usecase.entities[entity]) for entity in one.entities),
                (pl.lit(START) + pl.duration(hours="hour")).cast(TIME).alias("event_timestamp"),
                *(pl.col("hour").cast(pl.Float64).alias(field.name) for field in one.features),
            )
            write(settings, f"{usecase.name}/features/{one.name}", ticks)
    write(settings, f"{usecase.name}/features/labelled_flights", flights())
    return settings


def registered(settings: Settings, usecase: UseCase, as_of: datetime) -> FeatureStoreRecord:
    tables = [
        *("origin_ticks", "carrier_ticks", "station_ticks", "destination_ticks", "route_ticks", "flight_ticks"),
        *("aircraft_ticks", "weather_ticks"),
    ]
    sources = [pin(settings, f"{usecase.name}/features/{table}") for table in tables]
    feature_store.register(settings, usecase, sources)
    spine = pin(settings, f"{usecase.name}/features/labelled_flights")
    return FeatureStoreRecord(usecase=usecase.name, as_of=as_of, sources=sources, spine=spine)


def built(settings: Settings, usecase: UseCase, as_of: datetime) -> tuple[DatasetRecord, pl.DataFrame]:
    record = build_dataset(settings, usecase, registered(settings, usecase, as_of), as_of)
    return record, read(settings, record.table).collect()


def test_no_label_known_after_as_of_is_in_it(usecase: UseCase) -> None:
    known_at = START + 36 * HOUR + 3 * HOUR
    spine = flights().lazy()
    assert labelled_rows(usecase, spine, known_at)["flight"].to_list() == [0, 1, 2, 3]
    assert labelled_rows(usecase, spine, known_at - TICK)["flight"].to_list() == [0, 1, 2]


def test_rows_are_in_order_of_prediction_time_with_a_key_each(usecase: UseCase) -> None:
    rows = labelled_rows(usecase, flights().reverse().lazy(), START + 99 * DAY)
    assert rows["prediction_time"].is_sorted()
    assert rows["row_key"].n_unique() == rows.height == COUNT - COUNT // 7
    assert rows["row_key"][0] == "2013-01-01T05:00:00Z|B6|0|JFK"


def test_each_row_has_its_own_label_and_the_newest_tick_before_its_prediction(home: Settings, usecase: UseCase) -> None:
    _, dataset = built(home, usecase, START + 20 * DAY)
    source = {f"{at:%Y-%m-%dT%H:%M:%SZ}|B6|{n}|JFK": row for row in flights().to_dicts()
              for at, n in [(row["scheduled_departure"], row["flight"])]}  # fmt: skip
    assert dataset.height > 30
    for row in dataset.to_dicts():
        origin: dict[str, Any] = source[row["row_key"]]
        assert row["label"] == origin["label"]
        assert row["label_available_at"] == origin["label_available_at"] <= START + 20 * DAY
        hours = (row["prediction_time"] - START) // HOUR
        expected = None if hours < 0 else float(hours // 5 * 5)
        assert row["origin_delay_2h"] == row["weather_temp"] == expected
        assert row["aircraft_seats"] == (None if origin["tailnum"] is None else expected)


def test_the_record_describes_the_table(home: Settings, usecase: UseCase) -> None:
    as_of = START + 20 * DAY
    record, dataset = built(home, usecase, as_of)
    assert record.rows == dataset.height
    assert dataset.columns == [
        "row_key", "prediction_time", "label_available_at", "label", *record.numeric, *record.categorical,
    ]  # fmt: skip
    assert record.categorical == ["origin", "carrier", "dest"]
    assert {"departure_hour", "block_minutes", "aircraft_seats"} <= set(record.numeric)
    assert not {"tailnum", "flight", "label"} & set(record.numeric)
    assert {dataset.schema[name] for name in record.numeric} == {pl.Float64}
    assert set(dataset["label"]) == {0, 1}
    assert record.holdout_from == as_of - usecase.evaluation.holdout
    assert [str(version) for version in record.inputs][-1] == "flight_delay/features/labelled_flights@0"
    assert Path(record.path) == home.lakehouse / record.table.table


def test_built_again_it_has_another_version_and_the_same_fingerprint(home: Settings, usecase: UseCase) -> None:
    first, _ = built(home, usecase, START + 20 * DAY)
    # rewritten in another order: new versions of the same content
    write(home, f"{usecase.name}/features/labelled_flights", flights().reverse())
    again, _ = built(home, usecase, START + 20 * DAY)
    assert again.table.version == first.table.version + 1
    assert again.inputs != first.inputs
    assert again.fingerprint == first.fingerprint
    history = DeltaTable(first.path).history()
    assert [commit["fingerprint"] for commit in history] == [first.fingerprint] * 2


def test_other_rows_other_values_or_another_holdout_are_another_fingerprint(home: Settings, usecase: UseCase) -> None:
    fingerprints = [built(home, usecase, START + 20 * DAY)[0].fingerprint]
    fingerprints.append(built(home, usecase, START + 21 * DAY)[0].fingerprint)
    shorter = usecase.model_copy(update={"evaluation": usecase.evaluation.model_copy(update={"holdout": DAY})})
    fingerprints.append(built(home, shorter, START + 20 * DAY)[0].fingerprint)
    flipped = flights().with_columns(pl.when(pl.col("flight") == 3).then(0).otherwise("label").alias("label"))
    write(home, f"{usecase.name}/features/labelled_flights", flipped)
    fingerprints.append(built(home, usecase, START + 20 * DAY)[0].fingerprint)
    table = f"{usecase.name}/features/weather_ticks"
    changed = read(home, pin(home, table)).collect().with_columns(pl.col("weather_temp") + 0.5)
    write(home, table, changed)
    fingerprints.append(built(home, usecase, START + 20 * DAY)[0].fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_spine_newer_than_the_pinned_one_is_not_seen(home: Settings, usecase: UseCase) -> None:
    store = registered(home, usecase, START + 20 * DAY)
    rows = build_dataset(home, usecase, store, START + 20 * DAY).rows
    write(home, f"{usecase.name}/features/labelled_flights", flights().head(3))
    assert build_dataset(home, usecase, store, START + 20 * DAY).rows == rows


def test_without_a_known_label_there_is_no_dataset(home: Settings, usecase: UseCase) -> None:
    with pytest.raises(ThroughlineError, match=r"No labelled row of flight_delay .*later as-of"):
        built(home, usecase, START)


def test_built_in_parts_it_is_the_same_dataset_in_the_same_order(
    home: Settings, usecase: UseCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = built(home, usecase, START + 20 * DAY)
    monkeypatch.setattr(datasets, "PART_ROWS", 4)
    parts, found = built(home, usecase, START + 20 * DAY)
    assert parts.table.version == whole.table.version + 1
    assert parts.model_copy(update={"table": whole.table}) == whole
    assert found.equals(expected)
    assert found["prediction_time"].is_sorted()
    assert [entry.name for entry in home.home.iterdir() if entry.name.startswith("dataset-")] == []


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_no_part_divides_a_prediction_time_or_changes_which_row_counts(
    usecase: UseCase, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Three flights leave at each time; a corrected label is in the spine twice."""
    once = flights().with_columns(pl.col("label").fill_null(0), pl.col("label_available_at", "available_at"))
    thrice = pl.concat([once.with_columns(pl.col("flight") * 10 + n) for n in range(3)])
    corrected = thrice.with_columns((1 - pl.col("label")).alias("label"), pl.col("available_at") + HOUR).gather_every(4)
    spine = pl.concat([thrice, corrected]).sample(fraction=1, shuffle=True, seed=1).lazy()
    as_of = START + 20 * DAY
    expected = labelled_rows(usecase, spine, as_of)
    monkeypatch.setattr(datasets, "PART_ROWS", size)
    parts = list(labelled_parts(usecase, spine, as_of))
    assert pl.concat(parts).equals(expected)
    assert (len(parts) > 1) == (size < expected.height)
    times = [set(part["prediction_time"]) for part in parts]
    assert sum(map(len, times)) == len(set.union(*times))


def test_rows_are_not_divided_where_a_key_may_change_its_time(
    usecase: UseCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flight that was moved is one row: that of the time known last."""
    monkeypatch.setattr(datasets, "PART_ROWS", 1)
    prediction = usecase.prediction.model_copy(update={"key": ["flight", "origin"]})
    moved = flights().filter(pl.col("label").is_not_null())
    later = moved.with_columns(pl.col("prediction_time", "available_at") + 3 * DAY)
    parts = list(
        labelled_parts(
            usecase.model_copy(update={"prediction": prediction}), pl.concat([moved, later]).lazy(), START + 99 * DAY
        )
    )
    assert [part.height for part in parts] == [moved.height]
    assert sorted(parts[0]["prediction_time"]) == sorted(later["prediction_time"])
