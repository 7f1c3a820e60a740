"""The fingerprint of rows is the same for the same content and another for any other."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from throughline.foundation.errors import ThroughlineError
from throughline.lakehouse.content import fingerprint_frame

VALUES = {
    "number": st.one_of(st.none(), st.floats(allow_nan=True)),
    "count": st.one_of(st.none(), st.integers(-(2**40), 2**40)),
    "word": st.one_of(st.none(), st.text(max_size=6)),
    "flag": st.one_of(st.none(), st.booleans()),
    "at": st.one_of(st.none(), st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1))),
}
SCHEMA = {
    "key": pl.Int64,
    "number": pl.Float64,
    "count": pl.Int64,
    "word": pl.String,
    "flag": pl.Boolean,
    "at": pl.Datetime("us"),
}


@st.composite
def frames(draw) -> pl.DataFrame:
    rows = draw(st.integers(1, 8))
    columns = {name: draw(st.lists(values, min_size=rows, max_size=rows)) for name, values in VALUES.items()}
    return pl.DataFrame({"key": list(range(rows)), **columns}, schema=SCHEMA)


quick = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(frames(), st.randoms(), st.booleans())
def test_order_of_rows_and_columns_and_chunks_do_not_count(frame, random, with_key):
    keys = ["key"] if with_key else []
    rows = random.sample(range(frame.height), frame.height)
    columns = random.sample(frame.columns, len(frame.columns))
    cut = random.randint(0, frame.height)
    shuffled = frame[rows].select(columns)
    pieces = pl.concat([shuffled[:cut], shuffled[cut:]], rechunk=False)
    assert fingerprint_frame(pieces, keys) == fingerprint_frame(frame, keys)
    assert fingerprint_frame(pieces.lazy(), keys) == fingerprint_frame(frame, keys)


@quick
@given(frames(), st.data())
def test_any_changed_value_counts(frame, data):
    name = data.draw(st.sampled_from(list(VALUES)))
    row = data.draw(st.integers(0, frame.height - 1))
    value = data.draw(VALUES[name])
    old = frame[name][row]
    same = (old is None and value is None) or (
        old is not None and value is not None and (old == value or (old != old and value != value))
    )
    values = frame[name].to_list()
    values[row] = value
    changed = frame.with_columns(pl.Series(name, values, dtype=SCHEMA[name]))
    assert (fingerprint_frame(changed, ["key"]) == fingerprint_frame(frame, ["key"])) == same


def test_null_nan_zero_and_empty_are_four_things():
    floats = [pl.Series("x", [value], dtype=pl.Float64) for value in (None, float("nan"), 0.0)]
    assert len({fingerprint_frame(column.to_frame(), []) for column in floats}) == 3
    words = [pl.Series("x", [value], dtype=pl.String) for value in (None, "")]
    assert len({fingerprint_frame(column.to_frame(), []) for column in words}) == 2


def test_the_value_stored_under_a_null_does_not_count():
    clean = pl.DataFrame({"k": [1, 2], "x": [None, 2.0]})
    dirty = pl.DataFrame({"k": [1, 2], "x": [7.0, 2.0]}).with_columns(
        x=pl.when(pl.col("k") == 1).then(None).otherwise(pl.col("x"))
    )
    assert fingerprint_frame(clean, ["k"]) == fingerprint_frame(dirty, ["k"])


@pytest.mark.parametrize("kinds", [(pl.Int32, pl.Int64), (pl.Float32, pl.Float64), (pl.Int64, pl.Float64)])
def test_the_type_of_a_column_counts(kinds):
    one, other = (pl.DataFrame({"x": pl.Series([1, 2], dtype=kind)}) for kind in kinds)
    assert fingerprint_frame(one, ["x"]) != fingerprint_frame(other, ["x"])


def test_the_name_of_a_column_counts():
    assert fingerprint_frame(pl.DataFrame({"a": [1]}), []) != fingerprint_frame(pl.DataFrame({"b": [1]}), [])


def test_the_borders_between_texts_count():
    one = pl.DataFrame({"k": [1, 2], "x": ["ab", "c"]})
    other = pl.DataFrame({"k": [1, 2], "x": ["a", "bc"]})
    assert fingerprint_frame(one, ["k"]) != fingerprint_frame(other, ["k"])


def test_excluded_columns_do_not_count():
    frame = pl.DataFrame({"k": [1, 2], "x": [1, 2], "run": ["a", "b"]})
    other = frame.with_columns(run=pl.lit("c"))
    assert fingerprint_frame(frame, ["k"], ["run"]) == fingerprint_frame(other, ["k"], ["run"])
    assert fingerprint_frame(frame, ["k"]) != fingerprint_frame(other, ["k"])


def test_rows_with_equal_keys_may_come_in_any_order():
    frame = pl.DataFrame({"k": [1, 1, 1], "x": [2.0, None, 1.0]})
    assert fingerprint_frame(frame, ["k"]) == fingerprint_frame(frame[[2, 0, 1]], ["k"])


def test_every_type_a_table_may_hold_has_a_fingerprint():
    frame = pl.DataFrame(
        {
            "k": [1, 2, 3],
            "day": [date(2013, 1, 1), None, date(2013, 1, 2)],
            "at": pl.Series([datetime(2013, 1, 1, tzinfo=UTC), None, None], dtype=pl.Datetime("us", "UTC")),
            "money": pl.Series([Decimal("1.10"), None, Decimal("2.00")], dtype=pl.Decimal(10, 2)),
            "raw": [b"a", None, b""],
            "list": [[1, 2], [], None],
            "pair": [{"a": 1, "b": "x"}, {"a": None, "b": "y"}, None],
            "kind": pl.Series(["u", None, "v"], dtype=pl.Categorical),
            "none": [None, None, None],
        }
    )
    digest = fingerprint_frame(frame, ["k"])
    assert digest == fingerprint_frame(frame[[1, 2, 0]], ["k"])
    for change in (
        {"list": [[1], [2], None]},
        {"list": [[1, 2], None, None]},
        {"pair": [{"a": 1, "b": "x"}, None, None]},
        {"raw": [b"a", b"", b""]},
        {"money": pl.Series([Decimal("1.10"), None, Decimal("2.01")], dtype=pl.Decimal(10, 2))},
    ):
        assert fingerprint_frame(frame.with_columns(**{n: pl.Series(n, v) for n, v in change.items()}), ["k"]) != digest


def test_a_key_that_is_no_column_is_refused():
    with pytest.raises(ThroughlineError, match="flight"):
        fingerprint_frame(pl.DataFrame({"x": [1]}), ["flight"])


def test_another_process_computes_the_same_fingerprint():
    code = (
        "import polars as pl; from throughline.lakehouse.content import fingerprint_frame;"
        "print(fingerprint_frame(pl.DataFrame({'k': [1, 2], 'x': ['a', None], 'y': [1.5, float('nan')]}), ['k']))"
    )
    frame = pl.DataFrame({"k": [2, 1], "x": [None, "a"], "y": [float("nan"), 1.5]})
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == fingerprint_frame(frame, ["k"])


def test_a_hundred_thousand_rows_of_forty_columns_take_about_a_second():
    draw = np.random.default_rng(1)
    rows = 100_000
    columns = {f"x{number}": draw.normal(size=rows) for number in range(36)}
    words = {f"w{number}": [f"word-{n}" for n in draw.integers(0, 500, rows)] for number in range(3)}
    frame = pl.DataFrame({"row_key": [f"2013-01-01|{n}" for n in draw.permutation(rows)], **columns, **words})
    begun = time.process_time()
    fingerprint_frame(frame, ["row_key"])
    assert time.process_time() - begun < 3  # 0.3 s on an idle machine
