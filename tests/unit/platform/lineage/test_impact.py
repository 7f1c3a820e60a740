"""The impact of a table version: the tables, datasets, models and predictions made from it, and no others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.support import traced_home as home
from tests.support.traced_home import NAME
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import replace_all, replace_days
from throughline.lineage import impact as module
from throughline.lineage.impact import follow, impact
from throughline.lineage.pinned import PinnedTables

RAW, TICKS, DATASET = f"{NAME}/raw/flight_departures", f"{NAME}/features/aircraft_ticks", f"{NAME}/training/dataset"
FIRST, SECOND = ModelReference(NAME, 1), ModelReference(NAME, 2)


@pytest.fixture
def made(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Raw@0 -> ticks@0 -> dataset@0 -> model 1, and raw@1 -> ticks@1 -> dataset@1 -> model 2."""
    raw, ticks, _ = home.make_home(settings)
    replace_days(settings.table_path(NAME, "raw", "flight_departures"), raw, home.FIRST, home.LAST)
    pinned = home.write_ticks(settings, ticks, {"flight_departures": 1, "planes": 0})
    place = settings.table_path(NAME, "training", "dataset")
    replace_all(place, pl.DataFrame({"aircraft_delay_168h": [2.0]}), inputs=[pinned])
    trained = {ModelReference(NAME, n): TableReference(DATASET, n - 1) for n in (1, 2)}
    monkeypatch.setattr(module, "dataset_tables", lambda settings, name: trained)
    return settings


def predict(settings: Settings, model: int, count: int, wall_time: datetime, source: str = "s") -> None:
    row = home.ticks(home.departures()).row(0, named=True)
    home.log(
        settings,
        [
            home.prediction(row, number, wall_time, source=f"{source}{model}", model_version=model)
            for number in range(1, count + 1)
        ],
    )


def test_a_raw_version_reached_what_was_made_from_it_and_nothing_later(made: Settings) -> None:
    predict(made, 1, 3, datetime.now(UTC))
    predict(made, 2, 5, datetime.now(UTC))
    first = impact(made, TableReference(RAW, 0))
    assert (first.feature_tables, first.datasets, first.models) == (
        [TableReference(TICKS, 0)],
        [TableReference(DATASET, 0)],
        [FIRST],
    )
    assert first.predictions == {FIRST: 3}
    second = impact(made, TableReference(RAW, 1))
    assert (second.feature_tables, second.datasets, second.models) == (
        [TableReference(TICKS, 1)],
        [TableReference(DATASET, 1)],
        [SECOND],
    )
    assert second.predictions == {SECOND: 5}
    both = impact(made, TableReference(f"{NAME}/raw/planes", 0))
    assert both.predictions == {FIRST: 3, SECOND: 5}


def test_predictions_served_from_a_version_are_those_made_while_it_was_the_newest(made: Settings) -> None:
    commits = PinnedTables(made).commits(TICKS)
    between = commits[0].at + (commits[1].at - commits[0].at) / 2
    predict(made, 1, 2, commits[0].at - timedelta(hours=1), source="before")
    predict(made, 1, 3, between, source="between")
    predict(made, 1, 4, commits[1].at + timedelta(hours=1), source="after")
    assert [impact(made, TableReference(TICKS, version)).served_from for version in (0, 1)] == [3, 4]


def test_a_dataset_reached_its_models_and_is_not_in_its_own_list(made: Settings) -> None:
    found = impact(made, TableReference(DATASET, 1))
    assert (found.feature_tables, found.datasets, found.models) == ([], [], [SECOND])


def test_versions_that_only_maintenance_made_count_as_the_one_before(made: Settings) -> None:
    path = made.table_path(NAME, "raw", "flight_departures")
    day = pl.DataFrame({name: [value] for name, value in home.departures().row(0, named=True).items()})
    write_deltalake(str(path), day.to_arrow(), mode="append")  # version 2: two small files in a day
    DeltaTable(str(path)).optimize.compact()
    pinned = home.write_ticks(made, home.ticks(home.departures()), {"flight_departures": 3, "planes": 0})
    assert [impact(made, TableReference(RAW, version)).feature_tables for version in (2, 3)] == [[pinned]] * 2


def test_without_mlflow_the_models_are_unknown_and_the_tables_are_known(made: Settings, monkeypatch) -> None:
    def down(settings: Settings, name: str) -> dict[str, TableReference]:
        raise ThroughlineError("MLflow does not answer")

    monkeypatch.setattr(module, "dataset_tables", down)
    found = impact(made, TableReference(RAW, 0))
    assert (found.models, found.models_unknown, found.predictions) == (None, "MLflow does not answer", {})
    assert found.datasets == [TableReference(DATASET, 0)]
    assert (found.log, found.served_from) == (None, 0)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (TableReference(RAW, 7), "not in the history of this home: its versions are 0 to 1"),
        (TableReference(f"{NAME}/raw/nothing", 0), "there is no such table"),
    ],
)
def test_an_unknown_table_or_version_is_one_line(made: Settings, table: TableReference, problem: str) -> None:
    with pytest.raises(ThroughlineError, match=problem) as refused:
        impact(made, table)
    assert "\n" not in str(refused.value)


def at(name: str, version: int = 0) -> TableReference:
    return TableReference(f"u/x/{name}", version)


def test_a_thread_is_followed_through_every_step_once() -> None:
    made = {
        at("f"): [at("r")],
        at("f", 1): [at("r", 1)],
        at("g"): [at("r"), at("r", 1)],
        at("d"): [at("f"), at("g")],
        at("d", 1): [at("f", 1), at("g")],
    }
    assert follow(at("r"), made) == [at("r"), at("f"), at("g"), at("d"), at("d", 1)]
    assert follow(at("f", 1), made) == [at("f", 1), at("d", 1)]
    assert follow(at("q"), made) == [at("q")]
