"""A profile has the figures of a count by hand, and its page loads nothing."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from datetime import UTC, date, datetime
from html.parser import HTMLParser

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from throughline.featurestore.profile import BINS, ColumnProfile, profile
from throughline.featurestore.profile_page import page_of, render, sample, write_pages
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import replace_all
from throughline.records import FeatureRecord, FeatureStoreRecord, FeatureViewRecord

TABLE = TableReference("u/features/ticks", 0)
NUMBERS = st.lists(
    st.one_of(st.none(), st.floats(-1e6, 1e6), st.integers(-50, 50).map(float), st.just(float("nan"))), min_size=1
)


def of(**columns: list) -> dict[str, ColumnProfile]:
    return {column.name: column for column in profile(pl.DataFrame(columns, strict=False))}


@hypothesis_settings(max_examples=60)
@given(NUMBERS)
def test_every_value_is_in_one_bar_and_every_other_row_is_missing(values: list[float | None]) -> None:
    column = profile(pl.DataFrame({"x": values}, schema={"x": pl.Float64}))[0]
    known = [value for value in values if value is not None and value == value]
    assert sum(bar.rows for bar in column.bars) == len(known)
    assert column.nulls == len(values) - len(known)
    assert len(column.bars) <= BINS
    if known:
        assert (column.minimum, column.maximum) == (min(known), max(known))
        assert column.mean == pytest.approx(sum(known) / len(known), abs=1e-6)


def test_few_values_have_a_bar_each_and_whole_numbers_share_bars_evenly() -> None:
    few = of(x=[0.0, 1.0, 1.0, 1.0])["x"]
    assert [(bar.label, bar.rows) for bar in few.bars] == [("0", 1), ("1", 3)]
    whole = of(x=[float(n) for n in range(400)])["x"]
    assert len({bar.rows for bar in whole.bars[1:-1]}) == 1, "a comb: some bars hold one whole number more"


def test_an_outlier_does_not_flatten_the_rest() -> None:
    column = of(x=[n / 100 for n in range(1000)] + [1e9])["x"]
    assert max(bar.rows for bar in column.bars) < 100
    assert column.bars[-1].label.startswith("above")
    assert column.maximum == 1e9


def test_texts_are_counted_the_commonest_first() -> None:
    column = of(x=["b", "a", "b", None, "c"])["x"]
    assert [(bar.label, bar.rows) for bar in column.bars] == [("b", 2), ("a", 1), ("c", 1)]
    assert (column.distinct, column.nulls) == (3, 1)


def test_a_day_has_its_quantiles_and_its_share_of_missing_values() -> None:
    rows = [(date(2013, 3, n), float(v)) for n, values in ((1, range(11)), (3, range(100, 111))) for v in values]
    frame = pl.DataFrame([*rows, (date(2013, 3, 3), None)], schema={"day": pl.Date, "x": pl.Float64}, orient="row")
    first, last = profile(frame)[0].days
    assert (first.day, first.rows, first.null_share) == (date(2013, 3, 1), 11, 0)
    assert (first.low, first.middle, first.high) == (1, 5, 9)
    assert (last.rows, last.middle) == (12, 105)
    assert last.null_share == pytest.approx(1 / 12)


def test_of_a_label_a_day_has_the_mean() -> None:
    frame = pl.DataFrame({"day": [date(2013, 3, 1)] * 4, "label": [0, 1, 1, 1]})
    assert [(day.low, day.middle, day.high) for day in profile(frame)[0].days] == [(None, 0.75, None)]


def test_an_empty_table_has_a_page_too() -> None:
    columns = profile(pl.DataFrame(schema={"day": pl.Date, "x": pl.Float64, "k": pl.String}))
    assert "no value" in render(TABLE, None, columns, 1)


# The page


class Links(HTMLParser):
    """What a page would load, and the tags it leaves open."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.loads += [value or "" for name, value in attrs if name in {"src", "srcset", "data", "xlink:href"}]

    def handle_endtag(self, tag: str) -> None:
        self.tags[tag] -= 1


VIEW = FeatureViewRecord(
    name="ticks",
    description="What <b>happened</b>.",
    owner="ops",
    tags={},
    entities=["origin"],
    table=TABLE,
    features=[
        FeatureRecord(
            name="delay",
            type="Float64",
            description="Mean delay, & more.",
            tags={"unit": "minutes", "deprecated": "too slow"},
            services=[],
            upstream=["departures.delay"],
        )
    ],
)


def ticks(days: int = 20) -> pl.DataFrame:
    rows = [
        (date(2013, 3, 1 + n), f"k{n}<", float(n * m % 7) if m % 3 else None) for n in range(days) for m in range(60)
    ]
    return pl.DataFrame(rows, schema={"day": pl.Date, "origin": pl.String, "delay": pl.Float64}, orient="row")


def test_a_page_loads_nothing_and_shows_each_column_with_its_description() -> None:
    page = render(TABLE, VIEW, profile(ticks()), 1)
    parser = Links()
    parser.feed(page)
    assert parser.loads == []
    assert not re.search(r"https?://|@import|url\(", page)
    assert {tag: parser.tags[tag] for tag in ("section", "svg", "main", "figure", "table")} == dict.fromkeys(
        ("section", "svg", "main", "figure", "table"), 0
    )
    for text in ("Mean delay, &amp; more.", "minutes", "deprecated: too slow", "from departures.delay", "ops"):
        assert text in page
    assert "<b>happened" not in page
    assert "k0<" not in page
    assert page.index("<h2>delay") < page.index("<h2>origin"), "features come before keys"


def written(settings: Settings, rows: pl.DataFrame) -> FeatureStoreRecord:
    version = replace_all(settings.table_path("u", "features", "ticks"), rows)
    table = TableReference(TABLE.table, version)
    view = VIEW.model_copy(update={"table": table})
    spine = TableReference("u/features/spine", 0)
    if version == 0:
        replace_all(settings.table_path("u", "features", "spine"), rows)
    return FeatureStoreRecord(
        usecase="u", as_of=datetime(2013, 4, 1, tzinfo=UTC), sources=[table], spine=spine, views=[view]
    )


def test_each_pinned_version_has_a_page_that_later_ones_leave_alone(settings: Settings) -> None:
    first = written(settings, ticks(3))
    pages = write_pages(settings, first)
    assert set(pages) == {*first.sources, first.spine}
    old = page_of(settings, first.views[0].table)
    was = old.read_text()
    write_pages(settings, written(settings, ticks(5)))
    assert old.read_text() == was
    assert not list(old.parent.glob("*.tmp"))


def test_pages_of_other_versions_are_removed_after_the_retention(settings: Settings) -> None:
    first = written(settings, ticks(3))
    write_pages(settings, first)
    old, spine = page_of(settings, first.views[0].table), page_of(settings, first.spine)
    past = time.time() - (settings.retention_days + 1) * 86_400
    for page in (old, spine):
        os.utime(page, (past, past))
    write_pages(settings, written(settings, ticks(5)))
    assert not old.exists()
    assert spine.exists(), "it is pinned still"


def test_a_large_table_is_sampled_and_its_page_names_the_sampling(settings: Settings) -> None:
    record = written(settings, ticks(20))
    rows, every = sample(settings, record.views[0].table, rows=100)
    assert (every, rows.height) == (12, 100)
    assert rows["day"].n_unique() == 20
    assert "every 12th" in render(TABLE, VIEW, profile(rows), every)
