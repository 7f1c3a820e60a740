"""`from` declares one kind of source without a secret; a mistake is one line that names the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import shop
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.sources.declared import ModuleSource, source_fingerprint, source_of
from throughline.sources.files import FileSource
from throughline.sources.jdbc import JdbcSource
from throughline.sources.received import PushSource
from throughline.usecase import get_usecase
from throughline.usecase.feeds import FilesFeed

DATABASE = {"jdbc": "jdbc:postgresql://db.example:5432/shop?user=reader", "table": "public.orders"}


@pytest.mark.parametrize(
    ("feed", "problem"),
    [
        ({}, "declare one of `files: URI`, `jdbc: URL` or `push: COLUMN`"),
        ("s3://in/*.csv", "declare one of"),
        ({"files": "a.csv", "push": "order_id"}, "declare one of"),
        ({"fils": "a.csv"}, "declare one of"),
        ({"files": "in/*"}, "declare `format` (csv, json, parquet)"),
        ({"files": "in/*.csv", "colour": 1}, "from.files.colour"),
        ({"files": "in/*.csv", "timezone": "Berlin"}, "from.files.timezone: 'Berlin' is not an IANA time zone"),
        ({"files": "in/*.csv", "separator": ";;"}, "from.files.separator"),
        ({**DATABASE, "jdbc": "postgresql://db/shop"}, "from.jdbc.jdbc"),
        ({**DATABASE, "jdbc": "jdbc:postgresql://db/shop?user=u&password=hunter2"}, "a password does not belong here"),
        ({**DATABASE, "jdbc": "jdbc:mysql://u:hunter2@db/shop", "driver": "x.Y"}, "a password does not belong here"),
        ({**DATABASE, "jdbc": "jdbc:sqlserver://db;Password=hunter2"}, "a password does not belong here"),
        ({**DATABASE, "query": "SELECT 1"}, "either `table` or `query`"),
        ({"jdbc": DATABASE["jdbc"]}, "either `table` or `query`"),
        ({**DATABASE, "table": "orders; DROP TABLE x"}, "from.jdbc.table"),
        ({**DATABASE, "jdbc": "jdbc:oracle:thin:@db"}, "declare `driver` and `package`"),
        ({**DATABASE, "package": "x'?y:z"}, "from.jdbc.package"),
        ({**DATABASE, "credentials": "shop pass"}, "from.jdbc.credentials"),
        ({"push": "id"}, "`push: id` is no string or integer column"),
        ({"push": "amount"}, "`push: amount` is no string or integer column"),
        ({"push": "note"}, "`push: note` is no string or integer column"),
        ({"push": "order_id", "event_time": "items"}, "column items is the event or knowledge time"),
    ],
)
def test_a_mistake_is_one_line_with_the_field_and_without_a_secret(tmp_path: Path, feed: Any, problem: str) -> None:
    with pytest.raises(ThroughlineError) as caught:
        shop.declare(tmp_path, feed)
    assert problem in str(caught.value)
    assert str(caught.value).startswith("shop.yaml: sources.tables.orders")
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("feed", [{"files": "in/*.csv"}, {"files": "x", "format": "json"}, {"push": "order_id"}])
def test_rows_without_types_of_their_own_need_declared_columns(tmp_path: Path, feed: dict[str, Any]) -> None:
    untyped = {"orders": {"key": ["order_id"], "description": "Orders.", "from": feed}}
    with pytest.raises(ThroughlineError, match=r"orders: declare `expects\.columns`"):
        shop.declare(tmp_path, None, sources={"tables": untyped})


def test_a_table_without_a_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(ThroughlineError, match="orders has no source: declare `from` there, or `module` for all"):
        shop.declare(tmp_path, None)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ("in/*.csv", "csv"),
        ("s3://in/**/*.jsonl", "json"),
        ("in/*.ndjson.gz", "json"),
        ("in/2024.10.csv.zst", "csv"),
        ("in/*.parquet", "parquet"),
    ],
)
def test_the_format_is_that_of_the_ending(files: str, kind: str) -> None:
    assert FilesFeed(files=files).kind == kind


@pytest.mark.parametrize(
    ("feed", "kind"),
    [({"files": "in/*.csv"}, FileSource), (DATABASE, JdbcSource), ({"push": "order_id"}, PushSource)],
)
def test_each_declaration_has_its_source_and_nothing_is_read_yet(
    tmp_path: Path, feed: dict[str, Any], kind: type
) -> None:
    usecase = shop.declare(tmp_path, feed)
    source = source_of(Settings(home=tmp_path), usecase, "orders")
    assert isinstance(source, kind)
    assert "hunter" not in source.name
    # another place is another content, the same is the same
    assert source_fingerprint(usecase, "orders") == source_fingerprint(shop.declare(tmp_path, feed), "orders")
    assert source_fingerprint(usecase, "orders") != source_fingerprint(
        shop.declare(tmp_path, {**feed, "timezone": "UTC"}), "orders"
    )


def test_a_module_is_a_source() -> None:
    usecase = get_usecase("flight_delay")
    source = source_of(Settings(home=Path("nowhere")), usecase, "weather")
    assert isinstance(source, ModuleSource)
    assert source.read(usecase.day_start(usecase.replay.start), usecase.day_start(usecase.replay.until)).height > 0
