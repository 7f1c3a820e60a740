"""What the offline store refuses, it refuses in one line with the remedy; and no code comes out of a registry."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dill
import pandas as pd
import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import BatchFeatureView, Entity, FeatureStore, FeatureView, Field, FileSource, OnDemandFeatureView
from feast.errors import FeatureViewNotFoundException
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.transformation.pandas_transformation import PandasTransformation
from feast.types import Float64, Int64
from feast.value_type import ValueType
from pydantic import ValidationError

from throughline.featurestore.delta_source import DeltaSource
from throughline.featurestore.delta_store import DeltaOfflineStore, DeltaOfflineStoreConfig, from_code
from throughline.foundation.errors import ThroughlineError

NOW = datetime(2024, 3, 31, 12, tzinfo=UTC)
PLACE = Entity(name="place", join_keys=["place"], value_type=ValueType.STRING)
SPINE = pd.DataFrame({"place": ["a"], "event_timestamp": [NOW + timedelta(hours=1)]})


def frame(value: int = 1, **more: Any) -> pl.DataFrame:
    made = pl.DataFrame({"place": ["a"], "event_timestamp": [NOW], "value": [value], **more})
    return made.cast({"event_timestamp": pl.Datetime("us", "UTC")})


def view(source: Any) -> FeatureView:
    return FeatureView(name="v", entities=[PLACE], schema=[Field(name="value", dtype=Int64)], source=source)


@contextmanager
def refused(match: str, kind: type[Exception] = ThroughlineError) -> Iterator[None]:
    with pytest.raises(kind, match=match) as caught:
        yield
    assert "\n" not in str(caught.value).strip()


def get(store: FeatureStore, spine: Any = SPINE, feature: str = "v:value") -> list[Any]:
    return store.get_historical_features(spine, [feature]).to_df()[feature.partition(":")[2]].to_list()


@pytest.fixture
def store(
    make_store: Callable[..., FeatureStore],
    as_source: Callable[..., DeltaSource],
    engine: dict[str, str],
    tmp_path: Path,
) -> FeatureStore:
    made = make_store(tmp_path, **engine)
    made.apply([PLACE, view(as_source(tmp_path / "t", frame()))])
    return made


def test_unknown_views_and_features_are_named(store: FeatureStore, tmp_path: Path) -> None:
    with refused("Feature view w does not exist", FeatureViewNotFoundException):
        get(store, feature="w:value")
    with refused("Feature heat not found in projection v", KeyError):
        get(store, feature="v:heat")
    write_deltalake(str(tmp_path / "t"), frame().drop("value").to_arrow(), mode="overwrite", schema_mode="overwrite")
    store.apply([view(DeltaSource(name="t", path=str(tmp_path / "t"), version=1, timestamp_field="event_timestamp"))])
    with refused(r"v has no column value in .*/t@1: pin a version that has it"):
        get(store)


def test_entity_rows_without_a_key_or_a_time_are_refused(store: FeatureStore) -> None:
    with refused("lack the join key place: add"):
        get(store, SPINE.drop(columns="place"))
    with refused("lack the join key place: add"):
        get(store, "SELECT event_timestamp FROM t")
    with refused("have no time: name the time of the join event_timestamp"):
        get(store, SPINE.drop(columns="event_timestamp"))
    two = SPINE.rename(columns={"event_timestamp": "one"}).assign(two=NOW)
    with refused("have the times one, two: name"):
        get(store, two)
    with refused("already have value: drop or rename"):
        get(store, SPINE.assign(value=1))


def test_times_without_a_zone_are_utc_to_feast_and_refused_where_feast_leaves_them_alone(
    store: FeatureStore, make_store: Callable[..., FeatureStore], engine: dict[str, str], tmp_path: Path
) -> None:
    naive = SPINE.assign(event_timestamp=NOW.replace(tzinfo=None))
    assert get(store, naive) == [1]
    strict = make_store(tmp_path, coerce_tz_aware=False, **engine)
    with refused("event_timestamp of the entity rows holds no instants: give timestamps with a time zone"):
        get(strict, naive)
    with refused("event_timestamp of the entity rows holds no instants"):
        get(store, "SELECT place, CAST('2024-03-31' AS DATE) AS event_timestamp FROM t")


@pytest.mark.parametrize("column", ["event_timestamp", "created"])
def test_a_table_whose_times_have_no_zone_is_refused(
    make_store: Callable[..., FeatureStore],
    as_source: Callable[..., DeltaSource],
    engine: dict[str, str],
    tmp_path: Path,
    column: str,
) -> None:
    held = frame().with_columns(created="event_timestamp").with_columns(pl.col(column).dt.replace_time_zone(None))
    source = as_source(tmp_path / "t", held, created_timestamp_column="created")
    store = make_store(tmp_path, **engine)
    with refused(rf"column {column} of .*/t@0 holds no instants .*: write it as a timestamp with a time zone"):
        source.validate(store.config)
    store.apply([PLACE, view(source)])
    with refused(rf"column {column} of .*/t@0 holds no instants"):
        get(store)
    with refused(rf"column {column} of .*/t@0 holds no instants"):
        store.materialize(NOW, NOW)


def test_a_vacuumed_version_is_reported_as_vacuumed(store: FeatureStore, tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "t"), frame(2).to_arrow(), mode="overwrite")
    DeltaTable(str(tmp_path / "t")).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with refused(r"/t@0 cannot be read: .* it was vacuumed. Pin another version \(the newest is \d\)"):
        get(store)
    with refused(r"/t@0 cannot be read: .* it was vacuumed"):
        get(store, "SELECT place, event_timestamp FROM t")


def test_a_missing_table_and_a_missing_version_are_refused(store: FeatureStore, tmp_path: Path) -> None:
    def pinned(path: Path, version: int) -> FeatureStore:
        store.apply([view(DeltaSource(name="t", path=str(path), version=version, timestamp_field="event_timestamp"))])
        return store

    with refused(r"/t@7 cannot be read .*: correct the version"):
        get(pinned(tmp_path / "t", 7))
    (tmp_path / "folder").mkdir()
    for nothing in ("folder", "nowhere"):
        with refused(rf"/{nothing} is not a Delta table: correct the address"):
            get(pinned(tmp_path / nothing, 0))


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("SELECT * FROM elsewhere", r"reads elsewhere: it may read the registered sources t\."),
        ("SELECT * FROM read_parquet('/etc/passwd')", r"reads READ_PARQUET\('/etc/passwd'\)"),
        ("SELECT * FROM t WHERE value IN (SELECT value FROM elsewhere)", "reads elsewhere"),
        ("SELECT * FROM t UNION ALL SELECT * FROM elsewhere", "reads elsewhere"),
        ("WITH elsewhere AS (SELECT * FROM elsewhere) SELECT * FROM elsewhere", "reads elsewhere"),
        ("SELECT * FROM other.t", r"reads other\.t"),
        ("DROP TABLE t", "must be one SELECT"),
        ("SELECT * FROM t; SELECT * FROM t", "must be one SELECT"),
        ("SELECT FROM WHERE", "does not parse"),
    ],
)
def test_sql_sees_registered_sources_and_nothing_else(store: FeatureStore, sql: str, why: str) -> None:
    with refused(why):
        get(store, sql)


def test_a_path_is_no_table_to_sql_on_spark(
    make_store: Callable[..., FeatureStore], as_source: Callable[..., DeltaSource], spark_remote: str, tmp_path: Path
) -> None:
    store = make_store(tmp_path, engine="spark", spark_remote=spark_remote)
    store.apply([PLACE, view(as_source(tmp_path / "t", frame()))])
    with refused(r"reads delta\."):
        get(store, f"SELECT * FROM delta.`{tmp_path}/t`")


def test_views_that_this_store_cannot_answer_are_refused(store: FeatureStore, tmp_path: Path) -> None:
    source = store.get_data_source("t")
    schema = [Field(name="value", dtype=Int64)]
    store.apply([BatchFeatureView(name="b", entities=[PLACE], schema=schema, source=source, udf=len, mode="python")])
    with refused("b transforms its source: write the result to a table instead"):
        get(store, feature="b:value")
    file = FileSource(name="f", path=str(tmp_path / "f.parquet"), timestamp_field="event_timestamp")
    frame().write_parquet(tmp_path / "f.parquet")
    store.apply([FeatureView(name="w", entities=[PLACE], schema=schema, source=file)])
    with refused("w reads a FileSource: this store reads DeltaSource only"):
        get(store, feature="w:value")


def test_the_engine_on_spark_needs_an_address_where_something_answers(
    make_store: Callable[..., FeatureStore], as_source: Callable[..., DeltaSource], tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="spark needs spark_remote, the URL of a Spark Connect server"):
        DeltaOfflineStoreConfig(engine="spark")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"sc://127.0.0.1:{silent.getsockname()[1]}"
        store = make_store(tmp_path, engine="spark", spark_remote=url)
        store.apply([PLACE, view(as_source(tmp_path / "t", frame()))])
        with refused("No Spark Connect server answers at sc://127.0.0.1"):
            get(store)


# On-demand views

CODE = """
import pandas as pd

def doubled(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"twice": rows["value"] * 2.0})

def doubled_lists(columns: dict) -> dict:
    return {"twice": [2.0 * value for value in columns["value"]]}
"""


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "refusals_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)


def on_demand(source: FeatureView, transformation: Any, mode: str = "pandas") -> OnDemandFeatureView:
    schema = [Field(name="twice", dtype=Float64)]
    return OnDemandFeatureView(
        name="twice", sources=[source], schema=schema, feature_transformation=transformation, mode=mode
    )


def test_code_that_the_registry_holds_is_neither_run_nor_unpickled(
    make_store: Callable[..., FeatureStore], as_source: Callable[..., DeltaSource], code: None, tmp_path: Path
) -> None:
    store = make_store(tmp_path, on_demand={"twice": "refusals_code:doubled"})
    pinned = view(as_source(tmp_path / "t", frame(4)))
    store.apply([PLACE, pinned, on_demand(pinned, from_code("refusals_code:doubled"))])
    registry = Registry.FromString((tmp_path / "registry.db").read_bytes())
    held = registry.on_demand_feature_views[0].spec.feature_transformation.user_defined_function
    ran, unpickled = tmp_path / "ran", tmp_path / "unpickled"
    held.body = dill.dumps(Bomb(unpickled))
    held.body_text = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nraise SystemError"
    (tmp_path / "registry.db").write_bytes(registry.SerializeToString())

    store = make_store(tmp_path, on_demand={"twice": "refusals_code:doubled"})
    job = DeltaOfflineStore.get_historical_features(
        store.config, [store.get_feature_view("v")], ["twice:twice", "v:value"], SPINE, store.registry, "p"
    )
    assert job.to_df()["twice"].to_list() == [8.0]
    assert not ran.exists()
    assert not unpickled.exists()
    # which Feast does itself as soon as it reads the view
    with pytest.raises(ValueError, match="udf"):
        store.get_on_demand_feature_view("twice")
    assert ran.exists()
    assert unpickled.exists()


def test_what_runs_is_the_function_that_the_settings_name(
    make_store: Callable[..., FeatureStore], as_source: Callable[..., DeltaSource], code: None, tmp_path: Path
) -> None:
    """Also when Feast was given another one, and for functions on lists of values."""
    from feast.transformation.python_transformation import PythonTransformation

    pinned = view(as_source(tmp_path / "t", frame(4)))
    halved = PandasTransformation(udf=lambda rows: pd.DataFrame({"twice": rows["value"] / 2}), udf_string="halved")
    listed = PythonTransformation(udf=lambda columns: {"twice": [0.5]}, udf_string="listed")
    for mode, given, name in (("pandas", halved, "doubled"), ("python", listed, "doubled_lists")):
        store = make_store(tmp_path, on_demand={"twice": f"refusals_code:{name}"})
        store.apply([PLACE, pinned, on_demand(pinned, given, mode)])
        assert get(store, feature="twice:twice") == [8.0]
    store = make_store(tmp_path)
    with refused("On-demand view twice .* has no code here: name a function for it under offline_store.on_demand"):
        get(store, feature="twice:twice")


def test_a_transformation_from_code_leaves_only_an_import_in_the_registry(
    make_store: Callable[..., FeatureStore], as_source: Callable[..., DeltaSource], code: None, tmp_path: Path
) -> None:
    store = make_store(tmp_path)
    pinned = view(as_source(tmp_path / "t", frame(4)))
    store.apply([PLACE, pinned, on_demand(pinned, from_code("refusals_code:doubled"))])
    registry = Registry.FromString((tmp_path / "registry.db").read_bytes())
    held = registry.on_demand_feature_views[0].spec.feature_transformation.user_defined_function
    assert (held.body, held.body_text) == (b"", "from refusals_code import doubled")
    import refusals_code  # type: ignore[import-not-found]

    again = make_store(tmp_path).get_on_demand_feature_view("twice")
    assert again.feature_transformation.udf is refusals_code.doubled
