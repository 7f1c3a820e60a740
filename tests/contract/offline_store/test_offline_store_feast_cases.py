"""The cases of Feast's own universal offline store tests, for both engines.

Feast's wheel ships no tests; these are written to the cases of `sdk/python/tests/integration/offline_store` at 0.67.
What writes (pushes, write batches, logs) does not pass through an engine and is tested once.

Cases that apply, by Feast's module:
- test_universal_historical_retrieval: main (several views, two keys, no key, field mapping, join key map, on-demand
  view, full names), shared batch source, missing request data, entities from a query, persisting, no ttl, backfills,
  field mapping of a join key, non-entity retrieval, on-demand projection, filter by created timestamp.
- test_non_entity_mode: basic, several times of one entity kept apart.
- test_offline_write: reordered columns, incorrect schema, consecutive writes. test_push_features_to_offline_store.
  Both read their own writes after pinning the version that holds them: here a store reads what was registered.
- test_persist: no overwriting unasked. test_feature_logging: from a table and from a folder.
- test_universal_materialization: online equals offline, pulling the latest or all. test_universal_types.

Cases that do not apply: test_dqm_validation (Great Expectations is not a dependency), test_s3_custom_endpoint (an
option of Feast's file source; the lakehouse has its own S3 tests), and the variants over Feast's remote server.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    OnDemandFeatureView,
    PushSource,
    RequestSource,
)
from feast.data_source import PushMode
from feast.errors import RequestDataNotFoundInEntityDfException, SavedDatasetLocationAlreadyExists
from feast.feature_logging import FeatureServiceLoggingSource, LoggingConfig
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType

from throughline.featurestore.delta_source import DeltaLoggingDestination, DeltaSource, SavedDatasetDeltaStorage
from throughline.featurestore.delta_store import DeltaOfflineStore, from_code
from throughline.foundation.errors import ThroughlineError

NOW = datetime(2024, 3, 31, 12, tzinfo=UTC)  # the day the clocks change in Europe
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TIME = pl.Datetime("us", "UTC")
Source = Callable[..., DeltaSource]

CODE = """
import pandas as pd

def plus_100(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({
        "conv_rate_plus_100": rows["conv_rate"] + 100,
        "conv_rate_plus_val": rows["conv_rate"] + rows["val_to_add"],
    })
"""


def table(rows: list[dict[str, Any]], **types: Any) -> pl.DataFrame:
    overrides = {"event_timestamp": TIME, "created": TIME, **types}
    return pl.DataFrame(rows, schema_overrides={n: t for n, t in overrides.items() if n in rows[0]})


def entity(name: str, value_type: ValueType = ValueType.INT64) -> Entity:
    return Entity(name=name, join_keys=[f"{name}_id"], value_type=value_type)


DRIVER, CUSTOMER, LOCATION = (entity(name) for name in ("driver", "customer", "location"))
DRIVERS = table(
    [
        {"driver_id": 5000 + n % 3, "event_timestamp": NOW - n * HOUR, "created": NOW - n * HOUR, "conv_rate": n / 10}
        for n in range(60)
    ],
    conv_rate=pl.Float32,
)
CUSTOMERS = table(
    [
        {"customer_id": 1000 + n % 2, "event_timestamp": NOW - n * DAY, "created": NOW, "current_balance": float(n)}
        for n in range(6)
    ]
)
ORDERS = table(
    [
        {
            "order_id": n,
            "driver_id": 5000 + n % 4,
            "customer_id": 1000 + n % 3,
            "origin_id": n % 2,
            "destination_id": 1 + n % 2,
            "order_is_success": n % 2,
            "event_timestamp": NOW - n * 5 * HOUR,
        }
        for n in range(12)
    ],
    order_is_success=pl.Int32,
)
LOCATIONS = table(
    [
        {"location_id": n % 3, "event_timestamp": NOW - n * 7 * HOUR, "created": NOW, "temperature": 10 + n}
        for n in range(9)
    ]
)
GLOBAL = table([{"event_timestamp": NOW - n * DAY, "created": NOW, "num_rides": 100 - n} for n in range(4)])
MAPPED = table([{"ts": NOW - n * DAY, "made": NOW, "column_name": n} for n in range(4)], ts=TIME, made=TIME)


def view(
    name: str, entities: list[Entity], source: DeltaSource, ttl: timedelta | None = None, **types: Any
) -> FeatureView:
    fields = [Field(name=feature, dtype=dtype) for feature, dtype in types.items()]
    return FeatureView(name=name, entities=entities, schema=fields, source=source, ttl=ttl)


@pytest.fixture(scope="module")
def world(
    engine: dict[str, str], make_store: Callable[..., FeatureStore], as_source: Source, tmp_path_factory: Any
) -> SimpleNamespace:
    """Feast's universal world: drivers, customers, orders, locations, one view of everything, one of mapped columns."""
    home = tmp_path_factory.mktemp("world")
    (home / "offline_cases_code.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home)
        store = make_store(home, on_demand={"plus_100": "offline_cases_code:plus_100"}, **engine)
        created = {"created_timestamp_column": "created"}
        driver = view("driver", [DRIVER], as_source(home / "drivers", DRIVERS, **created), 5 * HOUR, conv_rate=Float32)
        customers = as_source(home / "customers", CUSTOMERS, **created)
        locations = as_source(home / "locations", LOCATIONS, **created)
        mapping = {"column_name": "feature_name", "ts": "event_timestamp", "made": "created"}
        mapped = as_source(home / "mapped", MAPPED, field_mapping=mapping, **created)
        location = view("location", [LOCATION], locations, temperature=Int64)
        on_demand = OnDemandFeatureView(
            name="plus_100",
            sources=[
                driver[["conv_rate"]],
                RequestSource(name="request", schema=[Field(name="val_to_add", dtype=Int32)]),
            ],
            schema=[Field(name=f"conv_rate_plus_{what}", dtype=Float64) for what in ("100", "val")],
            feature_transformation=from_code("offline_cases_code:plus_100"),
            mode="pandas",
        )
        store.apply(
            [
                *(DRIVER, CUSTOMER, LOCATION, driver, location, on_demand),
                view("customer", [CUSTOMER], customers, 2 * DAY, current_balance=Float64),
                view("order", [DRIVER, CUSTOMER], as_source(home / "orders", ORDERS), order_is_success=Int32),
                view("global", [], as_source(home / "global", GLOBAL, **created), num_rides=Int64),
                view("mapped", [], mapped, feature_name=Int64),
                FeatureService(
                    name="ends",
                    features=[
                        location.with_name(end).with_join_key_map({"location_id": f"{end}_id"})
                        for end in ("origin", "destination")
                    ],
                ),
            ]
        )
        yield SimpleNamespace(store=store, home=home, engine=engine)


def latest(rows: pl.DataFrame, feature: str, entity: dict[str, Any], ttl: timedelta | None = None, **keys: str) -> Any:
    """Feast's own oracle: the newest record with these keys in [time - ttl, time]."""
    time = "event_timestamp" if "event_timestamp" in rows.columns else "ts"
    found = [
        row
        for row in rows.to_dicts()
        if all(row[key] == entity[name] for key, name in keys.items())
        and (not ttl or entity["event_timestamp"] - ttl <= row[time])
        and row[time] <= entity["event_timestamp"]
    ]
    return max(found, key=lambda row: row[time])[feature] if found else None


SPINE = ORDERS.select("customer_id", "driver_id", "order_id", "origin_id", "destination_id", "event_timestamp")
STORED = [
    "driver:conv_rate",
    "customer:current_balance",
    "order:order_is_success",
    "global:num_rides",
    "mapped:feature_name",
]


def expected(entity: dict[str, Any]) -> dict[str, Any]:
    return {
        "driver:conv_rate": latest(DRIVERS, "conv_rate", entity, 5 * HOUR, driver_id="driver_id"),
        "customer:current_balance": latest(CUSTOMERS, "current_balance", entity, 2 * DAY, customer_id="customer_id"),
        "order:order_is_success": latest(
            ORDERS, "order_is_success", entity, driver_id="driver_id", customer_id="customer_id"
        ),
        "global:num_rides": latest(GLOBAL, "num_rides", entity),
        "mapped:feature_name": latest(MAPPED, "column_name", entity),
    }


def nulls(values: Any) -> list[Any]:
    return [None if pd.isna(value) else value for value in values]


def named(reference: str, full: bool) -> str:
    return reference.replace(":", "__") if full else reference.partition(":")[2]


@pytest.mark.parametrize("full", [True, False])
def test_features_of_every_kind_of_view_with_what_is_computed_on_demand(world: SimpleNamespace, full: bool) -> None:
    spine = SPINE.to_pandas().assign(val_to_add=range(SPINE.height))
    computed = ["plus_100:conv_rate_plus_100", "plus_100:conv_rate_plus_val"]
    got = world.store.get_historical_features(spine, [*STORED, *computed], full_feature_names=full).to_df()
    assert sorted(got.columns) == sorted([*spine.columns, *(named(ref, full) for ref in [*STORED, *computed])])
    pd.testing.assert_frame_equal(got[list(spine.columns)], spine, check_dtype=False)
    for place, row in enumerate(SPINE.to_dicts()):
        wanted = expected(row)
        assert nulls(got.loc[place, [named(ref, full) for ref in STORED]]) == list(wanted.values()), row
        rate = wanted["driver:conv_rate"]
        assert nulls(got.loc[place, [named(ref, full) for ref in computed]]) == (
            [None, None] if rate is None else pytest.approx([rate + 100, rate + place], rel=1e-6)
        )


def test_one_view_under_two_names_with_a_key_of_its_own_each(world: SimpleNamespace) -> None:
    service = world.store.get_feature_service("ends")
    got = world.store.get_historical_features(SPINE.to_pandas(), service, full_feature_names=True).to_df()
    for end in ("origin", "destination"):
        wanted = [latest(LOCATIONS, "temperature", row, location_id=f"{end}_id") for row in SPINE.to_dicts()]
        assert nulls(got[f"{end}__temperature"]) == wanted


def test_only_the_requested_outputs_of_an_on_demand_view_come_back(world: SimpleNamespace) -> None:
    spine = SPINE.to_pandas().assign(val_to_add=1)
    got = world.store.get_historical_features(spine, ["plus_100:conv_rate_plus_100"]).to_df()
    assert "conv_rate_plus_100" in got
    assert "conv_rate_plus_val" not in got


def test_missing_request_data_is_named(world: SimpleNamespace) -> None:
    with pytest.raises(RequestDataNotFoundInEntityDfException, match="val_to_add"):
        world.store.get_historical_features(SPINE.to_pandas(), ["plus_100:conv_rate_plus_val"])


def test_entity_rows_from_a_query_saved_and_read_back(world: SimpleNamespace) -> None:
    """What the query gives is joined; saved, it never passes through the client on Spark."""
    query = "SELECT customer_id, driver_id, event_timestamp FROM orders WHERE order_id < 9"
    job = world.store.get_historical_features(query, STORED, full_feature_names=True)
    storage = SavedDatasetDeltaStorage(str(world.home / "saved"))
    saved = world.store.create_saved_dataset(job, "from_query", storage)
    again = world.store.get_saved_dataset("from_query")
    assert again.storage.version == storage.version == 0
    rows = [row for row in SPINE.to_dicts() if row["order_id"] < 9]
    for got in (saved.to_df(), again.to_df()):
        found = {row["event_timestamp"]: row for row in got.to_dict("records")}
        assert len(got) == len(rows)
        for row in rows:
            values = nulls(found[row["event_timestamp"]][named(ref, True)] for ref in STORED)
            assert values == list(expected(row).values())


def test_without_entity_rows_there_is_one_per_entity_and_time_between_the_dates(world: SimpleNamespace) -> None:
    start, end = NOW - 9 * HOUR, NOW - HOUR
    features = ["driver:conv_rate", "global:num_rides"]
    job = world.store.get_historical_features(features=features, start_date=start, end_date=end)
    within = DRIVERS.filter(pl.col("event_timestamp").is_between(start, end)).sort("event_timestamp")
    wanted = [
        (row["driver_id"], row["event_timestamp"], row["conv_rate"], latest(GLOBAL, "num_rides", row))
        for row in within.to_dicts()
    ]
    assert [tuple(row.values()) for row in job.to_arrow().to_pylist()] == wanted
    assert (job.metadata.min_event_timestamp, job.metadata.max_event_timestamp) == (start, end)


def trip(driver: int, trips: int, at: datetime, created: datetime) -> dict[str, Any]:
    return {"id": driver, "trips": trips, "event_timestamp": at, "created": created}


TRIPS = table(
    [
        # a duplicate and a backfill, neither in order
        trip(1, 20, NOW, NOW + 3 * DAY),
        trip(1, 10, NOW, NOW),
        trip(2, 40, NOW + DAY, NOW),
        trip(2, 30, NOW, NOW + DAY),
        # old; and one whose creation nobody wrote down
        trip(3, 50, NOW - 400 * DAY, NOW - 400 * DAY),
        {**trip(4, 60, NOW, NOW), "created": None},
    ]
)


@pytest.fixture(scope="module")
def trips(
    engine: dict[str, str], make_store: Callable[..., FeatureStore], as_source: Source, tmp_path_factory: Any
) -> dict[bool, pd.DataFrame]:
    """Per view what drivers 1 to 4 have two days after NOW, for all rows and for those created by then."""
    home = tmp_path_factory.mktemp("trips")
    store = make_store(home, **engine)
    options = {"created_timestamp_column": "created", "field_mapping": {"id": "driver_id"}}
    source = as_source(home / "trips", TRIPS, **options)
    ttls = {"unlimited": None, "zero": timedelta(0), "two_days": 2 * DAY, "less": 2 * DAY - timedelta(microseconds=1)}
    store.apply([DRIVER, *(view(name, [DRIVER], source, ttl, trips=Int64) for name, ttl in ttls.items())])
    spine = pd.DataFrame({"driver_id": [1, 2, 3, 4], "event_timestamp": [NOW + 2 * DAY] * 4})
    return {
        known_only: store.get_historical_features(
            spine, [f"{name}:trips" for name in ttls], full_feature_names=True, filter_by_created_timestamp=known_only
        ).to_df()
        for known_only in (False, True)
    }


def test_a_backfill_replaces_its_time_and_no_later_one(trips: dict[bool, pd.DataFrame]) -> None:
    assert nulls(trips[False]["unlimited__trips"]) == [20, 40, 50, 60]


def test_values_created_after_the_entity_row_do_not_count_with_the_filter(trips: dict[bool, pd.DataFrame]) -> None:
    assert nulls(trips[True]["unlimited__trips"]) == [10, 40, 50, None]


def test_without_a_ttl_old_values_count_and_with_one_they_do_not(trips: dict[bool, pd.DataFrame]) -> None:
    assert nulls(trips[False]["zero__trips"]) == [20, 40, 50, 60]
    assert nulls(trips[False]["two_days__trips"]) == [20, 40, None, 60]
    assert nulls(trips[False]["less__trips"]) == [None, 40, None, None]
    assert nulls(trips[True]["two_days__trips"]) == [10, 40, None, None]
    assert nulls(trips[True]["less__trips"]) == [None, 40, None, None]


def test_a_feature_of_another_view_on_the_same_table_is_unknown(world: SimpleNamespace) -> None:
    with pytest.raises(KeyError, match="Feature current_balance not found in projection driver"):
        world.store.get_historical_features(SPINE.to_pandas(), ["driver:current_balance"])


@pytest.mark.parametrize("pull_latest", [True, False])
def test_online_holds_the_newest_of_the_window(
    engine: dict[str, str],
    make_store: Callable[..., FeatureStore],
    as_source: Source,
    tmp_path: Path,
    pull_latest: bool,
) -> None:
    store = make_store(tmp_path, pull_latest=pull_latest, **engine)
    mapped = as_source(
        tmp_path / "t",
        DRIVERS.rename({"driver_id": "id", "event_timestamp": "ts_1", "conv_rate": "raw"}),
        created_timestamp_column="created",
        field_mapping={"id": "driver_id", "ts_1": "event_timestamp", "raw": "value"},
    )
    everything = as_source(tmp_path / "g", GLOBAL, created_timestamp_column="created")
    store.apply([DRIVER, view("v", [DRIVER], mapped, value=Float32), view("g", [], everything, num_rides=Int64)])
    end = NOW - timedelta(hours=4, seconds=1)
    with contextlib.redirect_stdout(io.StringIO()):
        store.materialize(NOW - 30 * DAY, end)
    keys = [{"driver_id": 5000 + n, "event_timestamp": end} for n in range(4)]
    online = store.get_online_features(["v:value", "g:num_rides"], [{"driver_id": k["driver_id"]} for k in keys])
    assert online.to_dict()["value"] == [latest(DRIVERS, "conv_rate", key, driver_id="driver_id") for key in keys]
    assert online.to_dict()["num_rides"] == [99] * 4


TYPES = {
    "int32": (Int32, pl.Int32, [1, None], pa.int32()),
    "int64": (Int64, pl.Int64, [2**40, None], pa.int64()),
    "float32": (Float32, pl.Float32, [0.5, None], pa.float32()),
    "float64": (Float64, pl.Float64, [0.1, None], pa.float64()),
    "string": (String, pl.String, ["a", None], pa.string()),
    "bool": (Bool, pl.Boolean, [True, None], pa.bool_()),
    "datetime": (UnixTimestamp, TIME, [NOW, None], pa.timestamp("us", "UTC")),
    "list_int64": (Array(Int64), pl.List(pl.Int64), [[1, 2], []], None),
    "list_float64": (Array(Float64), pl.List(pl.Float64), [[0.5], []], None),
    "list_string": (Array(String), pl.List(pl.String), [["a", "b"], []], None),
    "list_bool": (Array(Bool), pl.List(pl.Boolean), [[True], []], None),
}


def test_types_are_inferred_and_come_back_as_they_were(
    engine: dict[str, str], make_store: Callable[..., FeatureStore], as_source: Source, tmp_path: Path
) -> None:
    columns = {name: pl.Series(values, dtype=held) for name, (_, held, values, _) in TYPES.items()}
    frame = pl.DataFrame({"driver_id": ["x", "y"], "event_timestamp": [NOW, NOW], **columns})
    source = as_source(tmp_path / "types", frame.cast({"event_timestamp": TIME}))
    store = make_store(tmp_path, **engine)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.STRING)
    store.apply([driver, FeatureView(name="v", entities=[driver], source=source)])
    inferred = store.get_feature_view("v")
    assert {field.name: field.dtype for field in inferred.features} == {n: kind for n, (kind, *_) in TYPES.items()}
    assert {field.name: field.dtype for field in inferred.entity_columns} == {"driver_id": String}
    spine = pd.DataFrame({"driver_id": ["x", "y"], "event_timestamp": [NOW, NOW]})
    got = store.get_historical_features(spine, [f"v:{name}" for name in TYPES]).to_arrow()
    for name, (_, _, values, arrow) in TYPES.items():
        assert got[name].to_pylist() == values, name
        kind = got.schema.field(name).type
        assert kind == arrow if arrow else (pa.types.is_list(kind) and not pa.types.is_large_string(kind.value_type))


# Writing


@pytest.fixture
def written(make_store: Callable[..., FeatureStore], as_source: Source, tmp_path: Path) -> SimpleNamespace:
    """A store with one pushed view, and the way to pin it to what its table holds now."""
    store = make_store(tmp_path)
    held = as_source(
        tmp_path / "locations", LOCATIONS.cast({"temperature": pl.Int64}), created_timestamp_column="created"
    )

    def pinned(version: int) -> FeatureView:
        source = DeltaSource(
            name="locations",
            path=held.path,
            version=version,
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        )
        return FeatureView(
            name="pushed",
            entities=[LOCATION],
            schema=[Field(name="temperature", dtype=Int64)],
            source=PushSource(name="push", batch_source=source),
        )

    store.apply([LOCATION, pinned(0)])
    return SimpleNamespace(store=store, pin=lambda version: store.apply([LOCATION, pinned(version)]), source=held)


def temperatures(store: FeatureStore, *times: datetime) -> list[Any]:
    spine = pd.DataFrame({"location_id": [1] * len(times), "event_timestamp": list(times)})
    return nulls(store.get_historical_features(spine, ["pushed:temperature"]).to_df()["temperature"])


def rows(*values: tuple[datetime, int]) -> pd.DataFrame:
    """In another order of columns than the table's."""
    return pd.DataFrame(
        [{"temperature": value, "created": NOW, "event_timestamp": at, "location_id": 1} for at, value in values]
    )


def test_consecutive_writes_are_read_once_their_version_is_pinned(written: SimpleNamespace) -> None:
    later = [NOW + n * HOUR for n in range(1, 5)]
    before = temperatures(written.store, *later)
    written.store.write_to_offline_store("pushed", rows((later[0], 1), (later[1], 2)))
    written.store.push("push", rows((later[2], 3), (later[3], 4)), to=PushMode.OFFLINE)
    assert temperatures(written.store, *later) == before
    written.pin(1)
    assert temperatures(written.store, *later) == [1, 2, 2, 2]
    written.pin(2)
    assert temperatures(written.store, *later) == [1, 2, 3, 4]


def test_rows_of_another_schema_are_refused_and_not_written(written: SimpleNamespace) -> None:
    wrong = rows((NOW, 1)).rename(columns={"temperature": "heat"})
    with pytest.raises(ValueError, match=r"missing_expected_columns: \['temperature'\]"):
        written.store.write_to_offline_store("pushed", wrong)
    with pytest.raises(ThroughlineError, match="give its types"):
        written.store.write_to_offline_store("pushed", rows((NOW, 1)).assign(temperature=1.5))
    naive = rows((NOW, 1)).assign(event_timestamp=NOW.replace(tzinfo=None))
    with pytest.raises(ThroughlineError, match=r"event_timestamp .* has no time zone"):
        written.store.write_to_offline_store("pushed", naive)
    pushed = written.store.get_feature_view("pushed")
    with pytest.raises(ThroughlineError, match=r"missing columns \['temperature'\] and unknown columns \['heat'\]"):
        DeltaOfflineStore.offline_write_batch(written.store.config, pushed, pa.Table.from_pandas(wrong), None)
    assert DeltaLoggingDestination(path=written.source.path).to_data_source().version == 0


def test_columns_of_other_names_are_written_under_the_tables_own(
    make_store: Callable[..., FeatureStore], as_source: Source, tmp_path: Path
) -> None:
    store = make_store(tmp_path)
    held = as_source(
        tmp_path / "t",
        table([{"id": 1, "event_timestamp": NOW, "RAW": 7}]),
        field_mapping={"id": "location_id", "RAW": "value"},
    )
    store.apply([LOCATION, view("v", [LOCATION], held, value=Int64)])
    store.write_to_offline_store("v", pd.DataFrame({"RAW": [8], "id": [1], "event_timestamp": [NOW + HOUR]}))
    assert pl.read_delta(held.path).sort("RAW").select("id", "RAW").rows() == [(1, 7), (1, 8)]


def test_a_saved_dataset_is_overwritten_only_with_the_option_and_stays_at_its_version(
    written: SimpleNamespace, tmp_path: Path
) -> None:
    def job(count: int) -> Any:
        spine = pd.DataFrame({"location_id": [1] * count, "event_timestamp": [NOW] * count})
        return written.store.get_historical_features(spine, ["pushed:temperature"])

    path = str(tmp_path / "kept")
    written.store.create_saved_dataset(job(3), "kept", SavedDatasetDeltaStorage(path))
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        written.store.create_saved_dataset(job(2), "other", SavedDatasetDeltaStorage(path))
    written.store.create_saved_dataset(job(2), "other", SavedDatasetDeltaStorage(path), allow_overwrite=True)
    assert len(written.store.get_saved_dataset("kept").to_df()) == 3
    assert len(written.store.get_saved_dataset("other").to_df()) == 2
    renamed = pd.DataFrame({"location_id": [1], "ts": [NOW]})
    job_of_ts = written.store.get_historical_features(renamed, ["pushed:temperature"])
    assert nulls(job_of_ts.to_df()["temperature"]) == [11]
    with pytest.raises(ThroughlineError, match=r"no column event_timestamp in .*/ts@0: it has"):
        written.store.create_saved_dataset(job_of_ts, "ts", SavedDatasetDeltaStorage(str(tmp_path / "ts")))


@pytest.mark.parametrize("as_folder", [True, False])
def test_logs_of_served_features_come_back_whole_and_by_time(
    make_store: Callable[..., FeatureStore], as_source: Source, tmp_path: Path, as_folder: bool
) -> None:
    store = make_store(tmp_path)
    location = view("location", [LOCATION], as_source(tmp_path / "locations", LOCATIONS), temperature=Int64)
    destination = DeltaLoggingDestination(path=str(tmp_path / "logs"))
    service = FeatureService(name="s", features=[location], logging_config=LoggingConfig(destination=destination))
    store.apply([LOCATION, location, service])
    service = store.get_feature_service("s")
    schema = FeatureServiceLoggingSource(service, "p").get_schema(store.registry)

    def logs(first: int) -> pa.Table:
        logged = [
            {
                "location_id": n,
                "location__temperature": 20 + n,
                "location__temperature__timestamp": NOW,
                "location__temperature__status": 2,
                "__log_timestamp": NOW + n * HOUR,
                "__log_date": (NOW + n * HOUR).date(),
                "__request_id": f"r{n}",
            }
            for n in range(first, first + 3)
        ]
        return pa.Table.from_pylist(logged, schema=schema)

    for first in (0, 3):
        given: Any = logs(first)
        if as_folder:
            given = tmp_path / f"parts_{first}"
            given.mkdir()
            parquet.write_table(logs(first), given / "part.parquet")
        store.write_logged_features(given, service)

    def read(last: datetime) -> pl.DataFrame:
        job = store._get_provider().retrieve_feature_service_logs(service, NOW, last, store.config, store.registry)
        return job.to_polars().sort("__request_id")

    whole = read(NOW + 6 * HOUR)
    assert whole["location__temperature"].to_list() == [20, 21, 22, 23, 24, 25]
    assert set(schema.names) <= set(whole.columns)
    assert read(NOW + 3 * HOUR)["__request_id"].to_list() == ["r0", "r1", "r2", "r3"]
