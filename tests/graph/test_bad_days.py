"""A bad day stops what depends on it, other days are written, no row is lost, and a corrected day needs no command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest
from dagster import AssetKey, BackfillPolicy, DagsterInstance, ExecuteInProcessResult, asset, materialize
from dagster._core.storage.partition_status_cache import AssetPartitionStatus

from assets.features import feature_assets
from assets.raw import daily, raw_assets
from assets.resources import RecordIOManager, resources
from features.flight_delay import sources
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import pin, read
from throughline.records import DatasetRecord
from throughline.records.store import save_record
from throughline.usecase import UseCase, get_usecase
from throughline.validation.findings import read_statistics, refused_days, require_good_days

RAW = "flight_delay/raw/weather"
QUARANTINE = "flight_delay/quarantine/weather"
KEY = AssetKey(RAW.split("/"))
BAD, GOOD = date(2013, 1, 3), [date(2013, 1, 2), date(2013, 1, 4)]

Change = Callable[[pl.DataFrame], pl.DataFrame]


class Source:
    """The recorded weather, of which a test may change one day on its way."""

    def __init__(self, usecase: UseCase) -> None:
        self._read, self._usecase, self.change = sources.read, usecase, _as_it_is

    def read(self, table: str, start: datetime | None, end: datetime) -> pl.DataFrame:
        rows = self._read(table, start, end)
        if table == "planes":
            return self.change(rows)
        here = pl.col("available_at").dt.convert_time_zone(self._usecase.timezone).dt.date() == BAD
        parts = [rows.filter(~here), self.change(rows.filter(here))]
        return pl.concat([part for part in parts if part.height] or parts[:1], how="diagonal_relaxed")


def _as_it_is(rows: pl.DataFrame) -> pl.DataFrame:
    return rows


@pytest.fixture
def usecase() -> UseCase:
    return get_usecase("flight_delay")


@pytest.fixture
def source(usecase: UseCase, monkeypatch: pytest.MonkeyPatch) -> Source:
    changed = Source(usecase)
    monkeypatch.setattr(sources, "read", changed.read)
    return changed


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def bring(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, first: date = GOOD[0], last: date = GOOD[1]
) -> tuple[ExecuteInProcessResult, list[str]]:
    """The weather of some days and an asset that depends on it; which of the two materialised."""

    @asset(deps=[KEY], partitions_def=daily(usecase), backfill_policy=BackfillPolicy.single_run())
    def depends_on_weather() -> None: ...

    done = materialize(
        [*raw_assets(usecase).assets, depends_on_weather],
        selection=[KEY, depends_on_weather.key],
        instance=instance,
        resources={"settings": settings, "io_manager": RecordIOManager(settings)},
        tags={
            "dagster/asset_partition_range_start": first.isoformat(),
            "dagster/asset_partition_range_end": last.isoformat(),
        },
        raise_on_error=False,
    )
    materialised = {event.asset_key.path[-1] for event in done.get_asset_materialization_events()}
    return done, sorted(materialised)


def checks(done: ExecuteInProcessResult) -> dict[str, Any]:
    return {found.check_name: found for found in done.get_asset_check_evaluations()}


def content(settings: Settings, table: str) -> pl.DataFrame:
    return read(settings, pin(settings, table)).collect()


def half(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.head(20)


def too_fast(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(wind_speed=pl.when(pl.int_range(pl.len()) < 10).then(1048.36).otherwise("wind_speed"))


def one_too_fast(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(wind_speed=pl.when(pl.int_range(pl.len()) < 1).then(1048.36).otherwise("wind_speed"))


def doubled(rows: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([rows, rows.head(3)])


@pytest.mark.parametrize(("change", "check"), [(half, "volume"), (too_fast, "rows"), (doubled, "unique_key")])
def test_a_bad_day_stops_what_depends_on_it_and_other_days_are_written(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, source: Source, change: Change, check: str
) -> None:
    source.change = change
    done, materialised = bring(settings, usecase, instance)
    assert not done.success
    assert materialised == ["weather"]
    assert sorted(content(settings, RAW)["day"].unique()) == GOOD
    found = checks(done)
    assert {name for name, one in found.items() if not one.passed} == {check}
    assert found[check].severity.value == "ERROR"
    assert "2013-01-03" in found[check].description
    delivered = source.read("weather", usecase.day_start(BAD), usecase.day_start(GOOD[1]))
    held = content(settings, QUARANTINE)
    assert held["day"].unique().to_list() == [BAD]
    assert held.height == delivered.height
    assert all(any(f"day refused: {check}" in reason for reason in reasons) for reasons in held["reasons"])
    assert held["available_at"].sort().equals(delivered["available_at"].sort())


def test_dagster_shows_which_days_are_materialised_and_which_failed(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, source: Source
) -> None:
    """`throughline run` brings again what is not there: the bad day, and it alone."""

    def states() -> dict[str, Any]:
        keys = [day.isoformat() for day in (GOOD[0], BAD, GOOD[1])]
        return instance.get_status_by_partition(KEY, keys, daily(usecase)) or {}

    there, failed = AssetPartitionStatus.MATERIALIZED, AssetPartitionStatus.FAILED
    source.change = half
    bring(settings, usecase, instance)
    assert list(states().values()) == [there, failed, there]
    source.change = _as_it_is
    bring(settings, usecase, instance, BAD, BAD)
    assert list(states().values()) == [there, there, there]
    # a day that was there and is brought again as a bad one is no longer taken for granted
    source.change = half
    bring(settings, usecase, instance, BAD, BAD)
    assert list(states().values()) == [there, failed, there]


def test_the_good_days_of_a_failed_run_have_the_versions_that_a_good_run_gives(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, source: Source
) -> None:
    def versions(day: date) -> dict[str, str]:
        events = instance.fetch_materializations(KEY, limit=100).records
        (newest,) = [one for one in events if one.partition_key == day.isoformat()][:1]
        tags = newest.asset_materialization.tags
        return {name: tags[f"dagster/{name}"] for name in ("code_version", "data_version")}

    bring(settings, usecase, instance, GOOD[0], GOOD[0])
    alone = versions(GOOD[0])
    source.change = half
    bring(settings, usecase, instance)
    assert versions(GOOD[0]) == alone


def test_the_error_names_the_reason_the_quarantine_and_what_to_do(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, source: Source
) -> None:
    source.change = half
    done, _ = bring(settings, usecase, instance)
    (failure,) = done.get_step_failure_events()
    line = failure.step_failure_data.error.cause.message
    assert line.count("\n") <= 1
    for part in (f"{RAW} 2013-01-03", "volume: 20 rows, 48 to 75 expected", f"{QUARANTINE}@0", "materialise"):
        assert part in line


@pytest.mark.parametrize("mend", ["source", "expectation"])
def test_a_mended_day_comes_in_and_its_quarantine_is_emptied(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, source: Source, mend: str
) -> None:
    source.change = half
    bring(settings, usecase, instance)
    with pytest.raises(ThroughlineError, match=f"{RAW} 2013-01-03 was refused"):
        require_good_days(settings, usecase)
    if mend == "source":
        source.change = _as_it_is
    else:
        usecase = with_volume(usecase, at_least=10)
    done, materialised = bring(settings, usecase, instance)
    assert done.success
    assert materialised == ["depends_on_weather", "weather"]
    assert content(settings, QUARANTINE).height == 0
    assert content(settings, RAW).filter(pl.col("day") == BAD).height == (72 if mend == "source" else 20)
    assert refused_days(settings, usecase, "weather") == {}
    require_good_days(settings, usecase)


def with_volume(usecase: UseCase, at_least: int) -> UseCase:
    table = usecase.sources.tables["weather"]
    assert table.expects is not None
    rows = table.expects.rows.model_copy(update={"at_least": at_least})
    expects = table.expects.model_copy(update={"rows": rows})
    tables = {**usecase.sources.tables, "weather": table.model_copy(update={"expects": expects})}
    return usecase.model_copy(update={"sources": usecase.sources.model_copy(update={"tables": tables})})


def test_a_bad_redelivery_leaves_what_was_there(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, source: Source
) -> None:
    bring(settings, usecase, instance)
    before, statistics = content(settings, RAW), read_statistics(settings, usecase, "weather").collect()
    source.change = half
    done, _ = bring(settings, usecase, instance, BAD, BAD)
    assert not done.success
    assert content(settings, RAW).equals(before)
    assert read_statistics(settings, usecase, "weather").collect().equals(statistics)


def test_a_bad_row_is_quarantined_and_its_day_comes_in(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, source: Source
) -> None:
    source.change = one_too_fast
    done, materialised = bring(settings, usecase, instance)
    assert done.success
    assert materialised == ["depends_on_weather", "weather"]
    assert content(settings, RAW).filter(pl.col("day") == BAD).height == 71
    (held,) = content(settings, QUARANTINE).to_dicts()
    assert held["reasons"] == ["wind_speed: above 250"]
    assert '"wind_speed": 1048.36' in held["row"]
    assert held["available_at"].astimezone(UTC).tzinfo is not None
    found = checks(done)["rows"]
    assert found.passed
    assert found.metadata["rows_bad"].value == 1
    assert found.metadata["worst"].value == "wind_speed: above 250 (1)"


def test_a_changed_schema_is_refused_and_the_other_checks_cannot_say(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, source: Source
) -> None:
    source.change = lambda rows: rows.rename({"temp": "temperature"})
    done, materialised = bring(settings, usecase, instance, BAD, BAD)
    assert not done.success
    assert materialised == []
    found = checks(done)
    assert "temp is missing" in found["schema"].description
    assert found["schema"].severity.value == "ERROR"
    for other in ("rows", "unique_key", "volume"):
        assert "cannot say" in found[other].description
    assert found["distribution"].passed  # another verdict, about other days
    assert content(settings, QUARANTINE).height == 72


def test_a_drift_warns_and_stops_nothing(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the days that the newest dataset trained on are the reference; the newest fortnight is held to them."""
    reference, newest = (date(2013, 1, 1), date(2013, 1, 14)), (date(2013, 1, 15), date(2013, 1, 28))
    before, _ = bring(settings, usecase, instance, *reference)
    assert checks(before)["distribution"].description == (
        "cannot say: there is no training dataset to compare with yet"
    )
    save_record(settings, ("flight_delay", "training", "dataset"), dataset(usecase, trained_until=newest[0]))
    # the instrument was changed for one that counts in kilometres
    monkeypatch.setattr(
        sources,
        "read",
        lambda table, start, end: source.read(table, start, end).with_columns(pl.col("visib") * 1.609),
    )
    after, materialised = bring(settings, usecase, instance, *newest)
    assert after.success
    assert materialised == ["depends_on_weather", "weather"]
    found = checks(after)["distribution"]
    assert (found.passed, found.severity.value) == (False, "WARN")
    assert "visib" in found.description
    assert "| visib |" in found.metadata["columns"].value
    assert all(one.passed for name, one in checks(after).items() if name != "distribution")


def dataset(usecase: UseCase, trained_until: date) -> DatasetRecord:
    table = TableReference("flight_delay/training/dataset", 0)
    until = usecase.day_start(trained_until)
    return DatasetRecord(
        usecase=usecase.name, table=table, path="", fingerprint="f", as_of=until, rows=1, numeric=[], categorical=[],
        inputs=[], holdout_from=until,
    )  # fmt: skip


def test_days_ingested_twice_leave_the_same_quarantine_statistics_and_verdicts(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, source: Source
) -> None:
    def kept() -> list[pl.DataFrame]:
        tables = ["quarantine", "statistics", "verdicts"]
        frames = [content(settings, f"flight_delay/{layer}/weather") for layer in tables]
        return [frame.drop("ingestion_run_id").sort(pl.all().exclude(pl.List)) for frame in frames]

    source.change = too_fast
    bring(settings, usecase, instance)
    once = kept()
    bring(settings, usecase, instance)
    bring(settings, usecase, instance, BAD, BAD)
    assert all(again.equals(first) for again, first in zip(kept(), once, strict=True))


def test_a_bad_register_is_refused_whole_and_the_old_one_stays(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, source: Source
) -> None:
    def register() -> bool:
        return materialize(
            list(raw_assets(usecase).assets),
            selection=[AssetKey(["flight_delay", "raw", "planes"])],
            instance=instance,
            resources={"settings": settings, "io_manager": RecordIOManager(settings)},
            raise_on_error=False,
        ).success

    assert register()
    before = content(settings, "flight_delay/raw/planes")
    source.change = lambda rows: rows.with_columns(seats=pl.lit(0, pl.Int64))
    assert not register()
    assert content(settings, "flight_delay/raw/planes").equals(before)
    assert content(settings, "flight_delay/quarantine/planes").height == before.height
    source.change = _as_it_is
    assert register()
    require_good_days(settings, usecase)


def test_a_changed_rule_of_rows_is_changed_code_and_a_changed_bound_of_days_is_not(usecase: UseCase) -> None:
    def code(declared: UseCase) -> dict[str, str]:
        return {
            key.path[-1]: version
            for definition in raw_assets(declared).assets
            for key, version in definition.code_versions_by_key.items()
        }

    assert code(with_volume(usecase, at_least=1)) == code(usecase)
    table = usecase.sources.tables["weather"]
    assert table.expects is not None
    columns = {**table.expects.columns}
    columns["wind_speed"] = columns["wind_speed"].model_copy(update={"at_most": 100})
    changed = table.model_copy(update={"expects": table.expects.model_copy(update={"columns": columns})})
    tables = {**usecase.sources.tables, "weather": changed}
    stricter = usecase.model_copy(update={"sources": usecase.sources.model_copy(update={"tables": tables})})
    differing = {name for name, version in code(stricter).items() if version != code(usecase)[name]}
    assert differing == {"weather"}


def test_features_launched_on_their_own_are_not_built_while_a_day_is_refused(
    settings: Settings, usecase: UseCase, instance: DagsterInstance, source: Source
) -> None:
    """The run that brought the bad day has failed; a later one that does not select the raw tables must not forget."""
    source.change = half
    bring(settings, usecase, instance)
    features = feature_assets(usecase, settings)
    models = next(one for one in features.assets if AssetKey(["flight_delay", "features", "weather_ticks"]) in one.keys)
    day = GOOD[1].isoformat()
    done = materialize(
        [*raw_assets(usecase).assets, models],
        selection=[models],
        instance=instance,
        resources=resources(settings),
        tags={"dagster/asset_partition_range_start": day, "dagster/asset_partition_range_end": day},
        raise_on_error=False,
    )
    assert not done.success
    (failure,) = done.get_step_failure_events()
    assert f"{RAW} {BAD} was refused" in failure.step_failure_data.error.cause.message
