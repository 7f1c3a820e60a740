"""A day's partition holds the rows that became known on that local day; ingested twice, it is the same."""

from __future__ import annotations

import itertools
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.ingestion.ingest import content_digest, ingest_days, ingest_static, read_days
from throughline.lakehouse.table import pin, read
from throughline.usecase import Expectations, SourceTable, UseCase, get_usecase

FIRST = date(2013, 11, 1)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
TIME = pl.Datetime("us", "UTC")


class Feed(ModuleType):
    """A source: rows with a number and when each was known; counts on nothing but the contract of `read`."""

    def __init__(self) -> None:
        super().__init__("feed_of_the_test")
        start = datetime(2013, 10, 20, tzinfo=UTC)  # days before the first partition, over the change of the clocks
        known = [start + n * HOUR for n in range(24 * 25)]
        self.rows = pl.DataFrame(
            {"number": range(len(known)), "available_at": known}, schema_overrides={"available_at": TIME}
        )
        # every other row is a schedule, known a week ahead
        ahead = pl.when(pl.col("number") % 2 == 1).then(timedelta(days=7)).otherwise(timedelta(0))
        self.rows = self.rows.with_columns(event_time=pl.col("available_at") + ahead)

    def read(self, table: str, start: datetime | None, end: datetime) -> pl.DataFrame:
        known = pl.col("available_at") < end
        return self.rows.filter(known & (pl.col("available_at") >= start) if start else known)


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Feed:
    module = Feed()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def usecase(feed: Feed) -> UseCase:
    declared = get_usecase("flight_delay")
    replay = declared.replay.model_copy(update={"start": FIRST, "until": date(2013, 11, 8)})
    tables = {"t": SourceTable(key=["number"], description="Numbers as they become known.")}
    sources = declared.sources.model_copy(update={"module": feed.__name__, "tables": tables})
    return declared.model_copy(update={"replay": replay, "sources": sources})


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def content(home: Settings, usecase: UseCase) -> pl.DataFrame:
    rows = read(home, pin(home, f"{usecase.name}/raw/t")).collect()
    return rows.sort("number")


def ingest(home: Settings, usecase: UseCase, first: date, last: date, run: str = "r") -> dict[date, str]:
    return ingest_days(home, usecase, "t", first, last, run, usecase.day_start(last + DAY)).digests


def test_every_row_is_in_exactly_one_day_and_that_is_its_local_day(
    home: Settings, feed: Feed, usecase: UseCase
) -> None:
    parts = [read_days(home, usecase, "t", FIRST + n * DAY, FIRST + n * DAY, FIRST) for n in range(12)]
    together = pl.concat(parts)
    until = usecase.day_start(FIRST + 12 * DAY)
    began = usecase.day_start(FIRST)
    expected = feed.rows.filter(pl.col("available_at") < until, pl.col("event_time") >= began)
    assert together.drop("day").sort("number").equals(expected)
    for number, part in enumerate(parts[1:], start=1):
        day = FIRST + number * DAY
        assert part["day"].unique().to_list() == [day]
        assert all(usecase.local_day(known) == day for known in part["available_at"])
    # the first of November, then two days, then the day of 25 hours
    assert [part.height for part in parts[1:4]] == [24, 25, 24]


def test_the_first_day_holds_what_was_delivered_early_about_it_and_not_the_past(
    home: Settings, usecase: UseCase
) -> None:
    first, began = read_days(home, usecase, "t", FIRST, FIRST, FIRST), usecase.day_start(FIRST)
    assert first["day"].unique().to_list() == [FIRST]
    assert first["event_time"].min() == began
    early = first.filter(pl.col("available_at") < began)
    assert early.height == 7 * 12
    assert early["event_time"].is_between(began, began + 7 * DAY).all()


def test_a_day_ingested_twice_is_the_same_and_the_others_are_untouched(home: Settings, usecase: UseCase) -> None:
    whole = ingest(home, usecase, FIRST, FIRST + 5 * DAY, "first run")
    before = content(home, usecase)
    again = ingest(home, usecase, FIRST + 2 * DAY, FIRST + 3 * DAY, "second run")
    after = content(home, usecase)
    assert after.drop("ingestion_run_id").equals(before.drop("ingestion_run_id"))
    assert again == {day: whole[day] for day in again}
    rewritten = after.filter(pl.col("ingestion_run_id") == "second run")
    assert set(rewritten["day"]) == {FIRST + 2 * DAY, FIRST + 3 * DAY}


def test_days_ingested_one_by_one_in_any_order_equal_a_range(tmp_path: Path, usecase: UseCase) -> None:
    at_once, apart = Settings(home=tmp_path / "a"), Settings(home=tmp_path / "b")
    digests = ingest(at_once, usecase, FIRST, FIRST + 3 * DAY)
    pieces = [ingest(apart, usecase, FIRST + n * DAY, FIRST + n * DAY) for n in (2, 0, 3, 1)]
    assert dict(sorted(itertools.chain(*(piece.items() for piece in pieces)))) == digests
    assert content(apart, usecase).equals(content(at_once, usecase))


def test_a_correction_replaces_the_day_and_changes_only_its_digest(
    home: Settings, usecase: UseCase, feed: Feed
) -> None:
    before = ingest(home, usecase, FIRST, FIRST + 3 * DAY)
    day = FIRST + 2 * DAY
    gone = feed.rows.filter(pl.col("available_at") >= usecase.day_start(day))["number"][0]
    feed.rows = feed.rows.filter(pl.col("number") != gone)
    after = ingest(home, usecase, FIRST, FIRST + 3 * DAY)
    assert {day for day in before if before[day] != after[day]} == {day}
    assert gone not in content(home, usecase)["number"]


def test_a_row_beyond_the_range_is_refused_and_nothing_is_written(
    home: Settings, usecase: UseCase, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(home, usecase, FIRST, FIRST + DAY)
    monkeypatch.setattr(feed, "read", lambda table, start, end: feed.rows)
    with pytest.raises(ThroughlineError, match="lie outside"):
        ingest(home, usecase, FIRST, FIRST + DAY)
    assert pin(home, f"{usecase.name}/raw/t").version == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(pl.col("available_at").dt.replace_time_zone(None), "available_at is Datetime", id="no time zone"),
        pytest.param(pl.lit(None, TIME).alias("available_at"), "72 nulls", id="null"),
        pytest.param(pl.lit("now").alias("event_time"), "event_time is String", id="no instant"),
    ],
)
def test_rows_without_event_or_knowledge_time_are_refused_in_one_line(
    home: Settings, usecase: UseCase, feed: Feed, monkeypatch: pytest.MonkeyPatch, change: pl.Expr, problem: str
) -> None:
    delivered = feed.rows.head(72).with_columns(change)
    monkeypatch.setattr(feed, "read", lambda table, start, end: delivered)
    with pytest.raises(ThroughlineError, match=problem) as refused:
        ingest(home, usecase, FIRST, FIRST + DAY)
    assert "\n" not in str(refused.value)
    assert not home.table_path(usecase.name, "raw", "t").exists()


def test_a_day_without_a_row_is_a_day(home: Settings, usecase: UseCase, feed: Feed) -> None:
    feed.rows = feed.rows.clear()
    assert set(ingest(home, usecase, FIRST, FIRST + DAY)) == {FIRST, FIRST + DAY}
    assert content(home, usecase).height == 0


def test_a_reference_table_is_what_was_known_at_the_start_of_the_clock(
    home: Settings, usecase: UseCase, feed: Feed
) -> None:
    written = ingest_static(home, usecase, "t", "r")
    until = usecase.clock_start(home)
    assert content(home, usecase)["available_at"].max() == until - HOUR
    assert written.rows == content(home, usecase).height
    assert ingest_static(home, usecase, "t", "other run").digests == written.digests


def test_a_digest_is_of_the_content_and_not_of_the_run(home: Settings, usecase: UseCase) -> None:
    rows = read_days(home, usecase, "t", FIRST + DAY, FIRST + DAY, FIRST)
    assert content_digest(rows) == content_digest(rows.clone())
    assert content_digest(rows) != content_digest(rows.reverse())
    assert content_digest(rows) != content_digest(rows.with_columns(pl.col("number") + 1))
    texts = [pl.DataFrame({"t": [text]}, schema={"t": pl.String}) for text in ("", None, "null")]
    assert len({content_digest(text) for text in texts}) == 3


def expecting(usecase: UseCase, **columns: str) -> UseCase:
    expects = Expectations(columns={name: {"type": kind} for name, kind in columns.items()})
    table = usecase.sources.tables["t"].model_copy(update={"expects": expects})
    return usecase.model_copy(update={"sources": usecase.sources.model_copy(update={"tables": {"t": table}})})


def test_a_column_is_added_removed_or_changed_with_the_declaration_and_not_before(
    home: Settings, usecase: UseCase, feed: Feed
) -> None:
    first = expecting(usecase, number="integer")
    ingest(home, first, FIRST, FIRST + DAY)
    feed.rows = feed.rows.with_columns(extra=pl.lit("x"))
    refused = ingest_days(home, first, "t", FIRST, FIRST, "r", usecase.day_start(FIRST + DAY))
    assert refused.refused == [FIRST]
    assert "extra (String) is not declared" in refused.refusal
    second = expecting(usecase, number="integer", extra="string")
    ingest(home, second, FIRST + DAY, FIRST + DAY)
    assert content(home, usecase).group_by("day").agg(pl.col("extra").first()).sort("day")["extra"].to_list() == [
        None,
        "x",
    ]
    feed.rows = feed.rows.drop("extra").with_columns(pl.col("number").cast(pl.Float64))
    with pytest.raises(ThroughlineError, match="all of its days"):
        ingest(home, expecting(usecase, number="number"), FIRST, FIRST)
    ingest(home, expecting(usecase, number="number"), FIRST, FIRST + DAY)
    assert content(home, usecase).schema["number"] == pl.Float64
    assert "extra" not in content(home, usecase).columns
