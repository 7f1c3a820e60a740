"""What every trainer promises, tested for each of them in this process, on made data.

The ensemble is one of them: its members are trained, on the same rows, when it is first used. Keras on TensorFlow
is one where TensorFlow is installed, in a process of its own, because Keras takes one backend per process.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from throughline.experiment.prepare import prepare
from throughline.experiment.prepared import Arrays, open_prepared
from throughline.experiment.spec import TrainingReport, TrainingSpec
from throughline.foundation.references import TableReference
from throughline.models.served_model import ServedModel
from throughline.records import DatasetRecord
from training import worker
from training.trainers.ensemble import best_weights
from training.trainers.lightgbm import at_most

START = datetime(2013, 1, 1, tzinfo=UTC)
# Enough to learn what is in the data below, quickly.
TRAINERS = {
    "mlp": {"epochs": 5, "learning_rate": 0.01},
    "keras_mlp": {"epochs": 5, "learning_rate": 0.02, "batch_size": 256},
    "keras_tensorflow": {"epochs": 5, "learning_rate": 0.02, "batch_size": 256, "backend": "tensorflow"},
    "lightgbm": {"n_estimators": 40, "min_child_samples": 20, "lambda_l2": 1},
    "logistic": {},
    "ensemble": {},
}
DRAWS = {"mlp", "keras_mlp", "keras_tensorflow", "lightgbm"}  # whose fit depends on the seed
MEMBERS = ("lightgbm", "logistic")
TENSORFLOW = all(importlib.util.find_spec(name) for name in ("tensorflow", "tf2onnx"))
# Where TensorFlow is missing: skipped by name, not left out.
MARKS = {"keras_tensorflow": pytest.mark.skipif(not TENSORFLOW, reason="the extra tensorflow is not installed")}


@dataclass(frozen=True)
class Data:
    """A dataset, its prepared rows, and the rows after those trained on."""

    dataset: DatasetRecord
    prepared: Path
    later: pl.DataFrame
    members: dict[str, str]


def make(root: Path, rows: int = 3000, numeric=("x", "gap"), categorical=("c",), words: int = 5) -> Data:
    """Labels follow `x` and whether `c` is c2; `gap` is missing half of the time, `c` now and then."""
    draw = np.random.default_rng(3)
    x, c = draw.normal(size=rows), draw.integers(0, words, rows)
    times = [START + timedelta(minutes=30 * number) for number in range(rows)]
    frame = pl.DataFrame(
        {
            "row_key": [f"{number:05d}" for number in range(rows)],
            "prediction_time": times,
            "label_available_at": [time + timedelta(hours=3) for time in times],
            "label": (draw.random(rows) < 1 / (1 + np.exp(1.0 - 1.5 * x - 1.5 * (c == 2)))).astype(np.int64),
            "x": x,
            "gap": [None if missing else value for missing, value in zip(draw.random(rows) < 0.5, x * x, strict=True)],
            "c": [None if place == 4 else f"c{place}" for place in c],
        }
    )
    frame.write_delta(str(root / "table"))
    dataset = DatasetRecord(
        usecase="u",
        table=TableReference("u/training/dataset", 0),
        path=str(root / "table"),
        fingerprint="f",
        as_of=times[-1],
        rows=rows,
        numeric=list(numeric),
        categorical=list(categorical),
        inputs=[],
        holdout_from=times[rows * 4 // 5],
    )
    later = frame.filter(pl.col("prediction_time") >= dataset.holdout_from)
    return Data(dataset, prepare(root / "prepared", dataset, seed=1), later, {})


def each(*names: str) -> list:
    return [pytest.param(name, marks=MARKS.get(name, ()), id=name) for name in names]


def run(trainer: str, data: Data, output: Path, before: str = "", **parameters) -> int:
    """The exit code, as `python -m training.trainers.TRAINER` would have it.

    `before`: Python for a trainer in a process of its own, where a test can replace nothing.
    """
    spec = TrainingSpec(
        data=str(data.prepared),
        parameters={"seed": 1, **TRAINERS[trainer], **parameters},
        output=str(output),
        device="cpu",
        members=data.members if trainer == "ensemble" else {},
    )
    file = output.parent / f"{output.name}.json"
    file.write_text(spec.model_dump_json())
    if trainer == "keras_tensorflow":
        program = f"{before}\nimport runpy\nrunpy.run_module('training.trainers.keras_mlp', None, '__main__', True)"
        done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, timeout=300)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode
    module = importlib.import_module(f"training.trainers.{trainer}")
    return worker.main(module.Parameters, module.train, [str(file)])


def with_members(data: Data, root: Path, names=MEMBERS) -> Data:
    for name in names:
        assert run(name, data, root / name) == 0
    return replace(data, members={name: str(root / name) for name in names})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    root = tmp_path_factory.mktemp("usual")
    return with_members(make(root), root)


@pytest.fixture(params=each(*TRAINERS))
def trainer(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def same_torch() -> Iterator[None]:
    """A trainer takes as many threads as it is given: that is its process's own in life, not in a test."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def report_of(output: Path) -> TrainingReport:
    return TrainingReport.model_validate_json((output / "report.json").read_text())


def model_of(output: Path) -> ServedModel:
    return ServedModel.load(output / "model.onnx", report_of(output).sha256)


def events_of(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"event"')]


def error_of(capsys) -> tuple[str, str]:
    """(reason, message), of which there is one, in one line."""
    (error,) = [event for event in events_of(capsys) if event["event"] == "error"]
    assert "\n" not in error["message"]
    return error["reason"], error["message"]


def drafts(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def unusual(model: ServedModel, later: pl.DataFrame) -> pl.DataFrame:
    """What serving meets sooner or later: nothing known at all, words never seen, absurd numbers."""
    rows = later.select(*model.numeric, *model.categorical).head(4)
    at = pl.int_range(pl.len())
    numbers = [
        pl.when(at == 0).then(None).when(at == 2).then(1e30).when(at == 3).then(-1e30).otherwise(pl.col(name))
        for name in model.numeric
    ]
    words = [
        pl.when(at == 0).then(None).when(at == 1).then(pl.lit("never seen")).otherwise(pl.col(name))
        for name in model.categorical
    ]
    return rows.with_columns(
        *(rule.alias(name) for rule, name in zip(numbers, model.numeric, strict=True)),
        *(rule.alias(name) for rule, name in zip(words, model.categorical, strict=True)),
    )


def assert_probabilities(scores: np.ndarray) -> None:
    """NaN is no probability, either."""
    assert ((scores > 0) & (scores < 1)).all()


def assert_serves_unusual_rows(model: ServedModel, later: pl.DataFrame) -> None:
    scores = model.score(unusual(model, later))
    assert_probabilities(scores[:2])
    assert ((scores >= 0) & (scores <= 1)).all()  # in float32 an extreme value may give 0 or 1


# What a training leaves


def test_it_learns_and_writes_a_model_that_can_be_served(trainer, data, tmp_path, capsys):
    assert run(trainer, data, tmp_path / "output") == 0
    events = events_of(capsys)
    names = [event["event"] for event in events]
    assert [name for name in names if name != "epoch"] == ["start", "done"]
    report, model = report_of(tmp_path / "output"), model_of(tmp_path / "output")
    assert names.count("epoch") == len(report.epochs) >= 1
    assert events[-1]["sha256"] == report.sha256
    assert all(epoch.validation_loss is not None for epoch in report.epochs)
    assert report.epochs[-1].train_loss <= report.epochs[0].train_loss
    assert report.rows_validation > 0
    assert report.trained_until < data.dataset.holdout_from
    assert report.onnx_difference <= 1e-5
    assert report.world_size == 1
    scores, labels = model.score(data.later), data.later["label"].to_numpy()
    assert_probabilities(scores)
    assert roc_auc_score(labels, scores) > 0.75
    assert log_loss(labels, scores) < 0.9 * log_loss(labels, np.full(len(labels), report.base_rate))
    assert_serves_unusual_rows(model, data.later)
    assert drafts(tmp_path) == []
    assert {path.name for path in (tmp_path / "output").iterdir()} == {"model.onnx", "report.json"}


def test_the_report_has_the_figures_of_the_validation_rows(trainer, data, tmp_path):
    assert run(trainer, data, tmp_path / "output") == 0
    report, model = report_of(tmp_path / "output"), model_of(tmp_path / "output")
    rows = open_prepared(data.prepared)
    learned = rows.facts.preprocessing
    assert model.numeric == learned.numeric
    assert model.categorical == learned.categorical
    assert report.rows_validation == len(rows.validation)
    assert report.epochs[-1].validation_loss == pytest.approx(report.validation_log_loss, abs=2e-5)
    assert 0.6 < report.validation_auc < 1


def test_the_same_seed_gives_the_same_bytes(trainer, data, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(trainer, data, tmp_path / name, seed=seed) == 0
    first, second, other = ((tmp_path / name / "model.onnx").read_bytes() for name in "abc")
    assert first == second
    assert (first != other) == (trainer in DRAWS)


# What it must cope with


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"numeric": ()}, id="no numbers"),
        pytest.param({"categorical": ()}, id="no categories"),
        pytest.param({"words": 1}, id="one word"),
        pytest.param({"rows": 200}, id="few rows"),
    ],
)
def test_it_trains_with(trainer, shape, tmp_path, capsys):
    data = make(tmp_path, **{"rows": 1500, **shape})
    if trainer == "ensemble":
        data = with_members(data, tmp_path)
    assert run(trainer, data, tmp_path / "output") == 0, error_of(capsys)
    report, model = report_of(tmp_path / "output"), model_of(tmp_path / "output")
    assert report.onnx_difference <= 1e-5
    assert (report.validation_log_loss is None) == (report.rows_validation == 0)
    scores = model.score(data.later)
    assert_probabilities(scores)
    assert scores.std() > 0
    assert_serves_unusual_rows(model, data.later)


# What it refuses


REFUSED = {
    "mlp": [{"layers": 3}, {"epochs": 0}, {"learning_rate": "fast"}],
    "keras_mlp": [{"layers": 3}, {"dropout": 1.0}, {"activation": "step"}, {"backend": "theano"}],
    "keras_tensorflow": [{"dropout": 1.0}],
    "lightgbm": [{"trees": 3}, {"num_leaves": 1}, {"feature_fraction": 1.5}],
    "logistic": [{"penalty": "l3"}, {"C": 0}, {"max_iter": "many"}],
    "ensemble": [{"voting": "hard"}, {"weights": {"lightgbm": -1.0}}, {"fit_weights": "perhaps"}],
}


@pytest.mark.parametrize(
    ("trainer", "wrong"),
    [pytest.param(name, wrong, marks=MARKS.get(name, ())) for name in TRAINERS for wrong in REFUSED[name]],
)
def test_a_wrong_parameter_is_named_and_nothing_is_written(trainer, wrong, data, tmp_path, capsys):
    assert run(trainer, data, tmp_path / "output", **wrong) == 1
    reason, message = error_of(capsys)
    assert reason == "bad_parameters"
    assert next(iter(wrong)) in message
    assert [path.name for path in tmp_path.iterdir()] == ["output.json"]


def test_a_model_that_differs_once_exported_is_refused_and_an_earlier_one_stays(
    trainer, data, tmp_path, capsys, monkeypatch
):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "model.onnx").write_text("the one before")
    score = ServedModel.score
    monkeypatch.setattr(ServedModel, "score", lambda self, features: score(self, features) + 2e-5)
    before = """
from throughline.models.served_model import ServedModel
score = ServedModel.score
ServedModel.score = lambda self, features: score(self, features) + 2e-5
"""
    assert run(trainer, data, tmp_path / "output", before) == 1
    assert "differs from the trained one" in error_of(capsys)[1]
    assert drafts(tmp_path) == []
    assert {path.name: path.read_text() for path in (tmp_path / "output").iterdir()} == {"model.onnx": "the one before"}


def test_a_regression_that_does_not_converge_is_one_line(data, tmp_path, capsys):
    assert run("logistic", data, tmp_path / "output", max_iter=1, tol=1e-9) == 1
    reason, message = error_of(capsys)
    assert reason == "bad_parameters"
    assert "max_iter" in message
    assert not (tmp_path / "output").exists()


def test_trees_refuse_nan(data, tmp_path, capsys, monkeypatch):
    rows = open_prepared(data.prepared)
    numbers = rows.train.numbers.copy()
    numbers[7, 0] = np.nan
    broken = replace(rows, train=Arrays(numbers, rows.train.codes, rows.train.labels))
    monkeypatch.setattr(worker, "open_prepared", lambda folder: broken)
    assert run("lightgbm", data, tmp_path / "output") == 1
    reason, message = error_of(capsys)
    assert reason == "bad_data"
    assert "NaN" in message
    assert not (tmp_path / "output").exists()


@pytest.mark.skipif(TENSORFLOW, reason="the extra tensorflow is installed")
def test_a_backend_that_is_not_installed_is_one_line(data, tmp_path, capsys):
    assert run("keras_mlp", data, tmp_path / "output", backend="tensorflow") == 1
    reason, message = error_of(capsys)
    assert reason == "bad_parameters"
    assert "not installed" in message
    assert "uv pip install --python .venv/bin/python -e '.[tensorflow]'" in message
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("trainer", each("mlp", "keras_mlp", "keras_tensorflow"))
def test_a_loss_that_is_no_number_is_one_line(trainer, data, tmp_path, capsys):
    assert run(trainer, data, tmp_path / "output", learning_rate=1e30) == 1
    reason, message = error_of(capsys)
    assert reason == "bad_parameters"
    assert "learning rate" in message
    assert not (tmp_path / "output").exists()


# Thresholds of trees

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(threshold=FLOATS, value=st.floats(width=32, allow_nan=False))
def test_a_rounded_threshold_sends_every_float32_where_it_went_before(threshold, value):
    rounded = at_most(np.array([threshold]))
    assert rounded.dtype == np.float32
    with np.errstate(over="ignore"):
        near = [value, *(np.nextafter(rounded[0], np.float32(to)) for to in (-np.inf, np.inf)), rounded[0]]
    for x in np.float32(near):
        assert (np.float64(x) <= threshold) == (x <= rounded[0])


@given(value=st.floats(width=32, allow_nan=False))
def test_a_threshold_that_is_a_float32_stays(value):
    assert at_most(np.array([value]))[0] == np.float32(value)


def test_a_rounded_booster_has_the_scores_of_the_booster():
    """On values at its thresholds, and on the float32 values next to them."""
    import lightgbm

    from training.trainers.lightgbm import rounded

    draw = np.random.default_rng(0)
    rows = np.concatenate([draw.normal(size=(2000, 3)), draw.integers(0, 9, (2000, 1))], axis=1).astype(np.float32)
    labels = rows[:, 0] + (rows[:, 3] % 3 == 1) + draw.normal(size=2000) > 0
    options = {"objective": "binary", "verbose": -1, "num_threads": 1, "seed": 1, "max_bin": 1000}
    before = lightgbm.train(options, lightgbm.Dataset(rows, labels, categorical_feature=[3]), 50)
    after = rounded(before)
    splits = before.trees_to_dataframe().dropna(subset=["threshold"])
    splits = splits[splits["decision_type"] == "<="]
    thresholds = splits["threshold"].astype(float).to_numpy()
    assert (thresholds != thresholds.astype(np.float32)).any()  # otherwise nothing would be shown
    found = after.trees_to_dataframe().dropna(subset=["threshold"])
    kept = found[found["decision_type"] == "<="]["threshold"].astype(float).to_numpy()
    assert (kept == kept.astype(np.float32)).all()
    near = np.unique(thresholds.astype(np.float32))
    near = np.concatenate([near, np.nextafter(near, np.float32(-9)), np.nextafter(near, np.float32(9))])
    tried = np.stack([near, near, near, np.arange(len(near)) % 11], axis=1).astype(np.float32)
    assert (before.predict(tried) == after.predict(tried)).all()


# Ensembles


def test_an_ensembles_score_is_the_weighted_mean_of_its_members(data, tmp_path):
    assert run("ensemble", data, tmp_path / "output", weights={"lightgbm": 3, "logistic": 1}) == 0
    assert report_of(tmp_path / "output").notes["weights"] == {"lightgbm": 0.75, "logistic": 0.25}
    rows = pl.concat([data.later, data.later.head(1).with_columns(x=None, gap=None, c=None)], how="vertical_relaxed")
    scores = [model_of(Path(folder)).score(rows) for folder in data.members.values()]
    expected = 0.75 * scores[0] + 0.25 * scores[1]
    assert model_of(tmp_path / "output").score(rows) == pytest.approx(expected, abs=1e-6)


def test_an_ensemble_of_all_kinds_with_an_ensemble_among_them(data, tmp_path):
    names = ("mlp", "keras_mlp", *(["keras_tensorflow"] if TENSORFLOW else []), "lightgbm", "logistic")
    kinds = with_members(data, tmp_path, names)
    assert run("ensemble", data, tmp_path / "inner") == 0
    members = {**kinds.members, "inner": str(tmp_path / "inner")}
    assert run("ensemble", replace(data, members=members), tmp_path / "output") == 0
    expected = np.mean([model_of(Path(folder)).score(data.later) for folder in members.values()], axis=0)
    assert model_of(tmp_path / "output").score(data.later) == pytest.approx(expected, abs=1e-6)


def test_fitted_weights_are_no_worse_than_equal_ones(data, tmp_path):
    assert run("ensemble", data, tmp_path / "equal") == 0
    assert run("ensemble", data, tmp_path / "fitted", fit_weights=True) == 0
    equal, fitted = (report_of(tmp_path / name) for name in ("equal", "fitted"))
    assert fitted.validation_log_loss <= equal.validation_log_loss + 1e-9
    weights = fitted.notes["weights"]
    assert min(weights.values()) >= 0
    assert sum(weights.values()) == pytest.approx(1)


def test_the_best_weights_are_those_of_the_scores_that_are_right():
    draw = np.random.default_rng(1)
    truth = draw.uniform(0.05, 0.95, 4000)
    labels = (draw.random(4000) < truth).astype(np.float32)
    weights = best_weights(np.stack([truth, np.full(4000, 0.5), 1 - truth], axis=1), labels)
    assert weights[0] > 0.9
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert best_weights(truth.reshape(-1, 1), labels) == pytest.approx([1])


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"weights": {"lightgbm": 1.0}}, "each of them"),
        ({"weights": {"lightgbm": 0.0, "logistic": 0.0}}, "weights"),
        ({"weights": {"lightgbm": 1.0, "logistic": 1.0}, "fit_weights": True}, "fit_weights"),
    ],
)
def test_weights_that_cannot_be_are_refused(data, tmp_path, capsys, parameters, problem):
    assert run("ensemble", data, tmp_path / "output", **parameters) == 1
    reason, message = error_of(capsys)
    assert reason == "bad_parameters"
    assert problem in message


def test_an_ensemble_without_members_is_refused(data, tmp_path, capsys):
    assert run("ensemble", replace(data, members={}), tmp_path / "output") == 1
    assert error_of(capsys)[0] == "bad_parameters"


def test_weights_cannot_be_fitted_without_validation_rows(tmp_path, capsys):
    data = with_members(make(tmp_path, rows=200), tmp_path)
    assert run("ensemble", data, tmp_path / "output", fit_weights=True) == 1
    reason, message = error_of(capsys)
    assert reason == "bad_parameters"
    assert "fit_weights" in message


def test_a_missing_member_and_one_of_other_rows_are_refused(data, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    other = make(tmp_path / "other", rows=2900)
    assert run("ensemble", replace(other, members=data.members), tmp_path / "output") == 1
    reason, message = error_of(capsys)
    assert reason == "bad_data"
    assert "lightgbm was trained on rows prepared otherwise" in message
    absent = replace(data, members={"absent": str(tmp_path / "nowhere")})
    assert run("ensemble", absent, tmp_path / "output") == 1
    reason, message = error_of(capsys)
    assert reason == "bad_data"
    assert "absent" in message
    assert not (tmp_path / "output").exists()
