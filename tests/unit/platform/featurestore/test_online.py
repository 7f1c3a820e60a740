"""What a model gets from a read equals what it gets from a frame of it; kept rows are those of the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughline.featurestore.online import FeatureReader, ViewReader
from throughline.featurestore.online_format import OnlineView, Row, SqliteRows, encode_keys, encode_rank
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.models.served_model import ServedModel
from throughline.usecase import get_usecase
from throughline.usecase.requests import example_instance, parse_columns

USECASE = get_usecase("flight_delay")
NOW = datetime(2013, 4, 1, 11, tzinfo=UTC)
DAY = timedelta(days=1)
VIEWS = [
    OnlineView(name="places", entities=["origin"], keys={"origin": "STRING"}, features=["a", "b", "c"], ttl=None),
    OnlineView(name="makers", entities=["carrier"], keys={"carrier": "STRING"}, features=["d", "word"], ttl=DAY),
]
NUMERIC, WORDS = ["block_minutes", "c", "d", "a", "flight", "departure_hour", "b"], ["carrier", "word", "dest"]
NUMBERS = st.none() | st.floats(width=64) | st.integers(-(2**63), 2**63 - 1) | st.booleans()


class FakeRows:
    """The rows of all entities, in memory."""

    near = True

    def __init__(self, rows: dict[str, dict[str, Row]]) -> None:
        self._rows = rows

    def version(self) -> int | None:
        return None

    def fetch(self, wanted: Sequence[tuple[OnlineView, Sequence[bytes]]]) -> list[dict[bytes, Row]]:
        found = []
        for view, keys in wanted:
            held = self._rows[view.name]
            names = encode_keys(view, {next(iter(view.keys)): list(held)})
            found.append({k: held[name] for k, name in zip(names, held, strict=True) if k in keys})
        return found


@pytest.fixture(scope="module")
def model() -> ServedModel:
    """Without a session: what is compared are the arrays before it."""

    class Session:
        def get_inputs(self) -> list[Any]:
            return []

    return ServedModel(Session(), NUMERIC, WORDS, {}, "0" * 64, 0)


def one_of(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    values = st.fixed_dictionaries({name: NUMBERS for name in names if name != "word"})
    return values if "word" not in names else st.tuples(values, st.none() | st.text(max_size=3)).map(
        lambda both: both[0] | {"word": both[1]}
    )  # fmt: skip


@given(st.data())
def test_arrays_of_a_read_equal_those_of_its_frame_to_the_byte(model: ServedModel, data: st.DataObject) -> None:
    ages = st.sampled_from([timedelta(0), timedelta(days=1), timedelta(days=1, microseconds=1)])
    keys = {"places": ["JFK", "EWR"], "makers": ["B6", "UA"]}
    rows = {
        view.name: {
            key: (NOW - data.draw(ages), data.draw(one_of(view.features)))
            for key in data.draw(st.sets(st.sampled_from(keys[view.name])))
        }
        for view in VIEWS
    }
    instances = data.draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "origin": st.sampled_from([*keys["places"], "ZZZ"]),
                    "carrier": st.sampled_from([*keys["makers"], "??"]),
                    "flight": st.integers(-(2**63), 2**63 - 1),
                }
            ).map(lambda changed: example_instance(USECASE) | changed),
            min_size=1,
            max_size=5,
        )
    )
    reader = FeatureReader.__new__(FeatureReader)
    reader._usecase, reader._settings = USECASE, Settings(home=Path("/nowhere"))
    reader._keys = list(dict.fromkeys(USECASE.entities.values()))
    from features.flight_delay.request import derive

    reader._derive = derive
    reader.take(FakeRows(rows), VIEWS)
    read = reader.read(parse_columns(USECASE, instances), NOW)
    with np.errstate(over="ignore"):
        numeric = read.matrix(tuple(NUMERIC)).astype(np.float32)
    words = model.words([read.column(name) for name in WORDS], read.rows)
    by_frame, words_by_frame = model.matrices(read.frame)
    for numbers in (numeric, by_frame):
        numbers[np.isnan(numbers)] = np.nan  # of the many that a float can be, one
    assert numeric.tobytes() == by_frame.tobytes()
    assert words.tolist() == words_by_frame.tolist()
    for row, instance in enumerate(instances):
        logged = read.values(row, (*NUMERIC, *WORDS))
        assert list(logged) == [*NUMERIC, *WORDS]
        assert logged["carrier"] == instance["carrier"]


def test_a_text_in_place_of_a_number_is_refused_by_name() -> None:
    rows = {"places": {"JFK": (NOW, {"a": "far", "b": 1.0, "c": None})}, "makers": {}}
    reader = FeatureReader.__new__(FeatureReader)
    reader._usecase, reader._settings, reader._derive = USECASE, Settings(home=Path("/nowhere")), lambda fields: {}
    reader._keys = list(dict.fromkeys(USECASE.entities.values()))
    reader.take(FakeRows(rows), VIEWS)
    read = reader.read(parse_columns(USECASE, [example_instance(USECASE)]), NOW)
    assert read.matrix(("b", "c")).tolist()[0][0] == 1.0
    with pytest.raises(ThroughlineError, match="Feature a has a value of the wrong type"):
        read.matrix(("a", "b"))
    with pytest.raises(ThroughlineError, match=r"nowhere.*same version"):
        read.matrix(("nowhere",))


class Store:
    """A real SQLite file with one view, written by a connection of its own."""

    view = OnlineView(name="v", entities=["e"], keys={"e": "STRING"}, features=["x"], ttl=None)

    def __init__(self, folder: Path) -> None:
        self.path = folder / "online.db"
        self.writer = sqlite3.connect(self.path)
        self.writer.execute("PRAGMA journal_mode=WAL")
        self.writer.execute(
            "CREATE TABLE p_v (entity_key BLOB, feature_name TEXT, value BLOB, rank TEXT, "
            "PRIMARY KEY (entity_key, feature_name))"
        )
        self.writer.commit()

    def write(self, key: str, value: float) -> None:
        from feast.protos.feast.types.Value_pb2 import Value

        (name,) = encode_keys(self.view, {"e": [key]})
        stored = (name, "x", Value(double_val=value).SerializeToString(), encode_rank(NOW))
        self.writer.execute("INSERT OR REPLACE INTO p_v VALUES (?, ?, ?, ?)", stored)
        self.writer.commit()

    def reader(self, cached: int) -> tuple[ViewReader, list[int]]:
        """A reader, and how many keys each of its fetches wanted."""
        rows, fetched = SqliteRows(self.path, "p"), []
        plain = rows.fetch

        def counted(wanted: Any) -> Any:
            fetched.append(sum(len(keys) for _, keys in wanted))
            return plain(wanted)

        rows.fetch = counted  # type: ignore[method-assign]
        return ViewReader(rows, [self.view], cached), fetched


def values(reader: ViewReader, *keys: str) -> list[float | None]:
    (held,) = reader.read({"e": list(keys)}, len(keys))
    return [None if row is None else row.values["x"] for row in held]


@pytest.mark.parametrize("cached", [0, 1, 100])
def test_a_read_sees_every_write_that_came_before_it(tmp_path: Path, cached: int) -> None:
    store = Store(tmp_path)
    reader, _ = store.reader(cached)
    assert values(reader, "a", "b") == [None, None]
    for n in range(20):
        store.write("ab"[n % 2], float(n))
        assert values(reader, "ab"[n % 2]) == [float(n)]
    assert values(reader, "a", "c", "b", "a") == [18.0, None, 19.0, 18.0]


def test_rows_are_kept_until_the_store_is_written_and_never_more_than_allowed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("a", 1.0)
    reader, fetched = store.reader(100)
    for _ in range(3):
        assert (values(reader, "a"), values(reader, "gone"), values(reader, "a", "gone")) == (
            [1.0],
            [None],
            [1.0, None],
        )
    assert fetched == [1, 1]
    store.write("a", 2.0)
    assert (values(reader, "a"), fetched) == ([2.0], [1, 1, 1])
    small, _ = store.reader(10)
    for n in range(100):
        values(small, str(n))
    assert sum(map(len, small._cache[1])) <= 12
