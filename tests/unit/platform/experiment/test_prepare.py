"""Which rows are trained on; prepared rows are complete, equal for all workers, and mapped into memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from throughline.experiment import prepare as module
from throughline.experiment import prepared
from throughline.experiment.prepare import prepare, split_rows
from throughline.experiment.prepared import ARRAYS, FACTS, TRAIN, VALIDATION, open_prepared
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.records import DatasetRecord

HOLDOUT = datetime(2013, 3, 1, tzinfo=UTC)
DATASET = DatasetRecord(
    usecase="u",
    table=TableReference("u/training/dataset", 3),
    path="",
    fingerprint="f",
    as_of=HOLDOUT + timedelta(days=14),
    rows=0,
    numeric=["x"],
    categorical=["c"],
    inputs=[],
    holdout_from=HOLDOUT,
)


def frame(days: int = 50, per_day: int = 10, label_after: timedelta = timedelta(hours=3)) -> pl.DataFrame:
    """Rows up to ten days into the holdout."""
    count = days * per_day
    times = [
        HOLDOUT + timedelta(days=10) - timedelta(minutes=number * 1440 / per_day) for number in range(1, count + 1)
    ]
    return pl.DataFrame(
        {
            "row_key": [f"{number:04d}" for number in range(count)],
            "prediction_time": times,
            "label_available_at": [time + label_after for time in times],
            "label": [number % 2 for number in range(count)],
            "x": [None if number % 7 == 0 else float(number) for number in range(count)],
            "c": [None if number % 11 == 0 else f"c{number % 3}" for number in range(count)],
        }
    )


def written(folder: Path, table: pl.DataFrame) -> DatasetRecord:
    path = folder / "table"
    table.write_delta(str(path))
    return DATASET.model_copy(
        update={"path": str(path), "table": TableReference("u/training/dataset", 0), "rows": table.height}
    )


@pytest.fixture
def dataset(tmp_path) -> DatasetRecord:
    return written(tmp_path, frame())


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# -- which rows -------------------------------------------------------------------------------------------------------


def test_no_row_of_the_holdout_and_no_label_from_then_is_trained_on():
    train, validation = split_rows(frame(label_after=timedelta(hours=30)), DATASET, seed=1)
    for part in (train, validation):
        assert part["prediction_time"].max() < HOLDOUT
        assert part["label_available_at"].max() < HOLDOUT
    assert train["prediction_time"].max() < HOLDOUT - timedelta(hours=30)


def test_the_facts_of_prepared_rows_are_those_of_the_training_rows(tmp_path):
    dataset = written(tmp_path, frame(label_after=timedelta(hours=30)))
    train, validation = split_rows(pl.read_delta(dataset.path), dataset, seed=1)
    facts = open_prepared(prepare(tmp_path / "prepared", dataset, seed=1)).facts
    assert (facts.rows_trained, facts.rows_validation) == (train.height, validation.height)
    assert facts.trained_from == train["prediction_time"].min()
    times = [rows[time].max() for rows in (train, validation) for time in ("prediction_time", "label_available_at")]
    assert facts.trained_until == max(times) < HOLDOUT
    assert facts.trained_until == train["prediction_time"].max() + timedelta(hours=30)  # its label was learned, too
    assert facts.base_rate == train["label"].mean()


def test_validation_is_whole_days_one_in_twenty():
    parts = split_rows(frame(), DATASET, seed=1)
    days = [set(part["prediction_time"].dt.date()) for part in parts]
    assert not days[0] & days[1]
    assert len(days[1]) == 2
    assert set(split_rows(frame(), DATASET, seed=2)[1]["prediction_time"].dt.date()) != days[1]


@settings(max_examples=50)
@given(st.integers(0, 60 * 24), st.integers(0, 72), st.integers(0, 2**31 - 1))
def test_validation_from_an_instant_is_later_than_anything_known_in_training(before, label_hours, seed):
    instant = HOLDOUT - timedelta(hours=before)
    table = frame(label_after=timedelta(hours=label_hours))
    try:
        train, validation = split_rows(table, DATASET, seed, validation_from=instant)
    except ThroughlineError as refusal:
        assert "nothing to learn" in str(refusal)  # noqa: PT017 - an instant before the first rows
        return
    assert max(train["prediction_time"].max(), train["label_available_at"].max()) < instant
    usable = (pl.col("prediction_time") < HOLDOUT) & (pl.col("label_available_at") < HOLDOUT)
    later = table.filter(usable & (pl.col("prediction_time") >= instant))
    assert set(validation["row_key"]) == set(later["row_key"])


def test_the_order_of_the_table_does_not_matter():
    (train, validation), again = (
        split_rows(table, DATASET, seed=1) for table in (frame(), frame().sample(fraction=1, shuffle=True))
    )
    assert train.equals(again[0])
    assert validation.equals(again[1])


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (frame().head(0), "no row with a known label before the holdout"),
        (frame().filter(pl.col("prediction_time") >= HOLDOUT), "no row with a known label before the holdout"),
        (frame().with_columns(label=pl.lit(1)), "nothing to learn"),
        (frame().with_columns(label=pl.lit(2)), "other than 0 and 1"),
        (frame().with_columns(label=pl.lit(None, dtype=pl.Int64)), "other than 0 and 1"),
        (frame().drop("x", "c"), r"lacks column\(s\) x, c"),
    ],
)
def test_a_table_to_learn_nothing_from_is_refused_in_one_line_and_leaves_nothing(tmp_path, table, problem):
    dataset = written(tmp_path, table)
    with pytest.raises(ThroughlineError, match=problem) as refusal:
        prepare(tmp_path / "prepared", dataset, seed=1)
    assert "u/training/dataset@0" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not [*tmp_path.glob("prepared/*"), *tmp_path.glob("prepared/.*")]


# -- the files --------------------------------------------------------------------------------------------------------


def test_the_files_are_the_same_byte_by_byte_whatever_the_order_of_the_table(tmp_path):
    folders = []
    for name, table in (("a", frame()), ("b", frame().sample(fraction=1, shuffle=True))):
        folders.append(prepare(tmp_path / name / "prepared", written(tmp_path / name, table), seed=1))
    assert contents(folders[0]) == contents(folders[1])
    assert folders[0].name == folders[1].name


def test_every_row_is_in_the_files_once_in_an_order_drawn_by_the_seed(tmp_path, dataset):
    table = pl.read_delta(dataset.path)
    orders = []
    for seed in (1, 2):
        rows = open_prepared(prepare(tmp_path / "prepared", dataset, seed))
        for part, expected in zip((rows.train, rows.validation), split_rows(table, dataset, seed), strict=True):
            assert sorted(part.labels) == sorted(expected["label"])
            learned = rows.facts.preprocessing
            assert len(part) == len(part.numbers) == len(part.codes) == expected.height
            np.testing.assert_array_equal(
                np.sort(part.codes[:, 0]), np.sort(learned.codes(expected).astype(np.int32)[:, 0])
            )
        orders.append(rows.train.numbers[:, 0])
        assert not np.all(np.diff(rows.train.numbers[:, 0]) >= 0)
    assert not np.array_equal(orders[0][:100], orders[1][:100])


def test_preprocessing_is_learned_from_training_rows_only(tmp_path):
    """A word and a number that only validation rows have leave no mark."""
    table = frame()
    _, validation = split_rows(table, DATASET, seed=1)
    held = pl.col("row_key").is_in(validation["row_key"].to_list())
    changed = table.with_columns(
        x=pl.when(held).then(1e9).otherwise(pl.col("x")),
        c=pl.when(held).then(pl.lit("only here")).otherwise(pl.col("c")),
    )
    plain, with_changed = (
        open_prepared(prepare(tmp_path / name / "prepared", written(tmp_path / name, each), seed=1)).facts
        for name, each in (("a", table), ("b", changed))
    )
    assert plain == with_changed


def test_rows_are_read_where_the_file_is_mapped_and_a_share_is_a_view(tmp_path, dataset):
    folder = prepare(tmp_path / "prepared", dataset, seed=1)
    rows = open_prepared(folder)
    mapped = Path("/proc/self/maps").read_text()
    for name, part in ((TRAIN, rows.train), (VALIDATION, rows.validation)):
        for array, values in zip(ARRAYS, (part.numbers, part.codes, part.labels), strict=True):
            assert str(folder / f"{name}.{array}.npy") in mapped
            assert not values.flags.owndata
            assert not values.flags.writeable
            assert values.flags.c_contiguous
    share = rows.train[10:200]
    for whole, view in (("numbers", share.numbers), ("codes", share.codes), ("labels", share.labels)):
        assert np.shares_memory(view, getattr(rows.train, whole))
    picked = share[np.array([3, 1])]
    assert not np.shares_memory(picked.numbers, share.numbers)
    np.testing.assert_array_equal(picked.labels, rows.train.labels[[13, 11]])
    assert (share.numbers.dtype, share.codes.dtype, share.labels.dtype) == (np.float32, np.int32, np.float32)


@pytest.mark.parametrize("without", ["numeric", "categorical"])
def test_a_dataset_may_have_only_numbers_or_only_categories(tmp_path, dataset, without):
    rows = open_prepared(prepare(tmp_path / "prepared", dataset.model_copy(update={without: []}), seed=1))
    empty = rows.train.numbers if without == "numeric" else rows.train.codes
    assert empty.shape == (rows.facts.rows_trained, 0)
    assert rows.train[3:9].numbers.shape[0] == rows.train[3:9].codes.shape[0] == 6


def test_the_sample_has_raw_features_of_training_rows(tmp_path, dataset):
    sample = open_prepared(prepare(tmp_path / "prepared", dataset, seed=1)).sample()
    train, _ = split_rows(pl.read_delta(dataset.path), dataset, seed=1)
    assert sample.columns == ["x", "c"]
    assert sample.height > 0
    assert sample.join(train, on=["x", "c"], how="anti", nulls_equal=True).is_empty()


def test_prepared_rows_are_made_once_and_others_have_another_folder(tmp_path, dataset, monkeypatch):
    root = tmp_path / "prepared"
    others = [
        (dataset, 2, None),
        (dataset, 1, HOLDOUT - timedelta(days=7)),
        (dataset.model_copy(update={"fingerprint": "g"}), 1, None),
        (dataset.model_copy(update={"holdout_from": HOLDOUT - timedelta(days=1)}), 1, None),
        (dataset.model_copy(update={"numeric": []}), 1, None),
        (dataset.model_copy(update={"numeric": [], "categorical": ["x", "c"]}), 1, None),
    ]
    names = {module._name(*each) for each in [(dataset, 1, None), *others]}
    assert len(names) == 1 + len(others)
    folder = prepare(root, dataset, 1)
    monkeypatch.setattr(module, "write_prepared", lambda *_: pytest.fail("it was there"))
    assert prepare(root, dataset, 1) == folder


# -- several at once, and crashes -------------------------------------------------------------------------------------

CALLER = """
import sys
from pathlib import Path
from throughline.experiment import prepare as module
from throughline.experiment import prepared
from throughline.records import DatasetRecord
dataset = DatasetRecord.model_validate_json(Path(sys.argv[2]).read_text())
write = module.write_prepared
def slowly(folder, *rest):
    print("writing", flush=True)
    sys.stdin.readline()
    write(folder, *rest)
    print("written", flush=True)
    sys.stdin.readline()
module.write_prepared = slowly
print(module.prepare(Path(sys.argv[1]), dataset, 1), flush=True)
"""


def caller(tmp_path: Path, dataset: DatasetRecord) -> subprocess.Popen:
    """A process that prepares; before and after writing it prints a line and waits for one."""
    (tmp_path / "dataset.json").write_text(dataset.model_dump_json())
    command = [sys.executable, "-c", CALLER, str(tmp_path / "prepared"), str(tmp_path / "dataset.json")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go_on(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_that_prepare_at_once_find_the_same_rows_and_leave_nothing_else(tmp_path, dataset):
    with caller(tmp_path, dataset) as one, caller(tmp_path, dataset) as two:
        for process in (one, two):
            assert process.stdout.readline() == "writing\n"
        for process in (one, two):
            go_on(process)
            assert process.stdout.readline() == "written\n"
        for process in (two, one):  # both have written all; who comes second finds the folder there
            go_on(process)
        names = [process.stdout.readline().strip() for process in (one, two)]
        assert [process.wait() for process in (one, two)] == [0, 0]
    assert len(set(names)) == 1
    assert [file.name for file in (tmp_path / "prepared").iterdir()] == [Path(names[0]).name]
    assert contents(Path(names[0])) == contents(prepare(tmp_path / "single", dataset, 1))


def test_two_threads_that_prepare_at_once_do_not_write_into_each_other(tmp_path, dataset, monkeypatch):
    import threading
    from concurrent.futures import ThreadPoolExecutor

    together, write, drafts = threading.Barrier(2), module.write_prepared, []

    def at_once(folder: Path, *rest) -> None:
        drafts.append(folder)
        together.wait()
        write(folder, *rest)
        together.wait()

    monkeypatch.setattr(module, "write_prepared", at_once)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: prepare(tmp_path / "prepared", dataset, 1), range(2)))
    assert len(set(drafts)) == 2
    assert len(set(folders)) == 1
    assert list((tmp_path / "prepared").iterdir()) == folders[:1]


@pytest.mark.parametrize("part", ["Arrays", "Facts"])
def test_a_crash_half_way_leaves_no_folder(tmp_path, dataset, monkeypatch, part):
    def crash(*_, **__):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(prepared, part, crash)
        with pytest.raises(OSError, match="no space left"):
            prepare(tmp_path / "prepared", dataset, 1)
    assert list((tmp_path / "prepared").iterdir()) == []
    assert open_prepared(prepare(tmp_path / "prepared", dataset, 1)).facts.rows_trained > 0


@pytest.mark.parametrize("lines", [0, 1], ids=["before", "after"])
def test_a_process_killed_half_way_leaves_nothing_that_looks_prepared(tmp_path, dataset, lines):
    with caller(tmp_path, dataset) as process:
        process.stdout.readline()
        for _ in range(lines):
            go_on(process)
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    folder = tmp_path / "prepared" / module._name(dataset, 1, None)
    assert not folder.exists()
    assert contents(prepare(tmp_path / "prepared", dataset, 1)) == contents(prepare(tmp_path / "single", dataset, 1))


@pytest.mark.parametrize("lost", [FACTS, *(f"{part}.{name}.npy" for part in (TRAIN, VALIDATION) for name in ARRAYS)])
def test_prepared_rows_that_are_not_there_are_refused_in_one_line(tmp_path, dataset, lost):
    folder = prepare(tmp_path / "prepared", dataset, seed=1)
    (folder / lost).unlink()
    with pytest.raises(ThroughlineError, match="start the training again") as refusal:
        open_prepared(folder)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)
