"""A training leaves a checked model or nothing. One worker, in this process: Horovod needs no launcher for that."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from throughline.experiment.spec import TrainingReport, TrainingSpec
from throughline.records import DatasetRecord, TableVersion
from throughline.registry.served_model import ServedModel
from training import worker
from training.flight_delay.train import Parameters, train

START = datetime(2013, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> DatasetRecord:
    draw = np.random.default_rng(3)
    rows = 3000
    x, c = draw.normal(size=rows), draw.integers(0, 5, rows)
    times = [START + timedelta(minutes=30 * number) for number in range(rows)]
    path = tmp_path_factory.mktemp("data") / "table"
    pl.DataFrame(
        {
            "row_key": [f"{number:05d}" for number in range(rows)],
            "prediction_time": times,
            "label_available_at": [time + timedelta(hours=3) for time in times],
            "label": (draw.random(rows) < 1 / (1 + np.exp(1.5 - x - 0.5 * (c == 2)))).astype(np.int64),
            "x": x,
            "gap": [None if missing else 1.0 for missing in draw.random(rows) < 0.5],
            "c": [None if place == 4 else f"c{place}" for place in c],
        }
    ).write_delta(str(path))
    return DatasetRecord(
        usecase="u",
        table=TableVersion(table="u/training/dataset", version=0),
        path=str(path),
        fingerprint="f",
        as_of=START + timedelta(days=62),
        rows=rows,
        numeric=["x", "gap"],
        categorical=["c"],
        inputs=[],
        holdout_from=START + timedelta(days=50),
    )


def run(dataset: DatasetRecord, folder: Path, **parameters) -> tuple[int, Path]:
    """Exit code, as `python -m training.flight_delay.train` would have it, and the output folder."""
    output = folder / "output"
    spec = TrainingSpec(dataset=dataset, parameters={"epochs": 2, "seed": 1, **parameters}, output=str(output))
    (folder / "spec.json").write_text(spec.model_dump_json())
    return worker.main(train, [str(folder / "spec.json")]), output


def error_of(capsys) -> str:
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    (message,) = [event["message"] for event in events if event["event"] == "error"]
    return message


def test_it_learns_and_writes_a_model_that_can_be_served(dataset, tmp_path, capsys):
    code, output = run(dataset, tmp_path, epochs=4, learning_rate=0.01)
    assert code == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["start", *["epoch"] * 4, "done"]
    assert events[4]["train_loss"] < events[1]["train_loss"]
    report = TrainingReport.model_validate_json((output / "report.json").read_text())
    assert report.world_size == 1
    assert report.trained_until < dataset.holdout_from
    assert report.onnx_difference <= 1e-5
    model = ServedModel.load(output / "model.onnx", report.sha256)
    frame = pl.DataFrame({"x": [-3.0, 3.0], "gap": [None, 1.0], "c": ["c0", None]})
    low, high = model.score(frame)
    assert 0 < low < 0.15 < 0.4 < high < 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(dataset, tmp_path):
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        files.append((run(dataset, tmp_path / name, seed=seed)[1] / "model.onnx").read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_loss_that_is_no_number_is_one_line_and_leaves_nothing(dataset, tmp_path, capsys):
    code, output = run(dataset, tmp_path, learning_rate=1e30)
    message = error_of(capsys)
    assert code == 1
    assert "training loss became" in message
    assert "learning_rate" in message
    assert not output.exists()


def test_an_export_that_differs_is_refused_and_leaves_nothing(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ServedModel, "score", lambda self, features: np.full(features.height, 0.5))
    code, output = run(dataset, tmp_path)
    message = error_of(capsys)
    assert code == 1
    assert "differs from the trained one" in message
    assert not output.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]


def test_an_earlier_model_stays_when_a_training_fails(dataset, tmp_path):
    _, output = run(dataset, tmp_path)
    before = (output / "model.onnx").read_bytes()
    assert run(dataset, tmp_path, learning_rate=1e30)[0] == 1
    assert (output / "model.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [({"layers": 3}, "layers"), ({"epochs": 0}, "epochs"), ({"learning_rate": "fast"}, "learning_rate")],
)
def test_a_wrong_parameter_is_named(dataset, tmp_path, capsys, parameters, problem):
    code, _ = run(dataset, tmp_path, **parameters)
    assert code == 1
    assert problem in error_of(capsys)


def test_a_missing_or_broken_spec_is_one_line(tmp_path, capsys):
    assert worker.main(train, []) == 1
    assert "one argument" in error_of(capsys)
    assert worker.main(train, [str(tmp_path / "no.json")]) == 1
    assert "cannot be read" in error_of(capsys)
    (tmp_path / "spec.json").write_text('{"dataset": 1}')
    assert worker.main(train, [str(tmp_path / "spec.json")]) == 1
    assert "dataset" in error_of(capsys)


def test_whatever_else_goes_wrong_is_one_line_with_the_traceback_in_the_log(tmp_path, dataset, capsys):
    def fail(spec):
        raise RuntimeError("first line\nsecond line")

    (tmp_path / "spec.json").write_text(TrainingSpec(dataset=dataset, parameters={}, output="x").model_dump_json())
    assert worker.main(fail, [str(tmp_path / "spec.json")]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["message"] == "RuntimeError: first line"
    assert "Traceback" in err


def test_the_declared_parameters_are_the_trainers_own():
    from throughline.usecase import get_usecase

    Parameters.model_validate(get_usecase("flight_delay").trainer.parameters)
