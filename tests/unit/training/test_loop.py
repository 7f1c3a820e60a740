"""A training leaves a checked model or nothing. One worker, in this process: no launcher is needed for that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors import safe_open

from throughline.experiment.parameters import CommonParameters, checked
from throughline.experiment.prepare import prepare
from throughline.experiment.prepared import open_prepared
from throughline.experiment.spec import TrainedRows, TrainingReport, TrainingSpec
from throughline.foundation.references import TableReference
from throughline.models.served_model import ServedModel
from throughline.records import DatasetRecord
from training import checkpoint, loop, worker
from training.trainers.mlp import Parameters, train

START = datetime(2013, 1, 1, tzinfo=UTC)
HOLDOUT = START + timedelta(days=50)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """The folder of prepared rows: an informative number and category, gaps, unknown words."""
    draw = np.random.default_rng(3)
    count = 3000
    x, c = draw.normal(size=count), draw.integers(0, 5, count)
    times = [START + timedelta(minutes=30 * number) for number in range(count)]
    folder = tmp_path_factory.mktemp("data")
    pl.DataFrame(
        {
            "row_key": [f"{number:05d}" for number in range(count)],
            "prediction_time": times,
            "label_available_at": [time + timedelta(hours=3) for time in times],
            "label": (draw.random(count) < 1 / (1 + np.exp(1.5 - x - 0.5 * (c == 2)))).astype(np.int64),
            "x": x,
            "gap": [None if missing else 1.0 for missing in draw.random(count) < 0.5],
            "c": [None if place == 4 else f"c{place}" for place in c],
        }
    ).write_delta(str(folder / "table"))
    dataset = DatasetRecord(
        usecase="u",
        table=TableReference("u/training/dataset", 0),
        path=str(folder / "table"),
        fingerprint="f",
        as_of=START + timedelta(days=62),
        rows=count,
        numeric=["x", "gap"],
        categorical=["c"],
        inputs=[],
        holdout_from=HOLDOUT,
    )
    return prepare(folder / "prepared", dataset, seed=1)


def run(rows: Path, folder: Path, spec: dict | None = None, **parameters) -> tuple[int, Path]:
    """Exit code, as `python -m training.trainers.mlp` would have it, and the output folder."""
    output = folder / "output"
    training = TrainingSpec(
        data=str(rows), parameters={"epochs": 2, "seed": 1, **parameters}, output=str(output), **(spec or {})
    )
    folder.mkdir(exist_ok=True)
    (folder / "spec.json").write_text(training.model_dump_json())
    return worker.main(Parameters, train, [str(folder / "spec.json")]), output


def events_of(text: str, kind: str | None = None) -> list[dict]:
    events = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [event for event in events if kind in (None, event["event"])]


def error_of(capsys) -> dict:
    (error,) = events_of(capsys.readouterr().out, "error")
    assert "\n" not in error["message"]
    return error


def report_of(output: Path) -> TrainingReport:
    return TrainingReport.model_validate_json((output / "report.json").read_text())


@contextmanager
def stopped_at(checkpoints: int) -> Iterator[None]:
    """A training in here fails right after its n-th checkpoint."""
    emit, seen = loop.emit, []

    def emit_or_fail(event: str, **values) -> None:
        emit(event, **values)
        seen.append(event)
        if event == "checkpoint" and seen.count(event) == checkpoints:
            raise RuntimeError("stopped by the test")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "emit", emit_or_fail)
        yield


# -- what is left -----------------------------------------------------------------------------------------------------


def test_it_learns_and_writes_a_model_that_can_be_served(rows, tmp_path, capsys):
    code, output = run(rows, tmp_path, epochs=4, learning_rate=0.01)
    assert code == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["start", *["epoch"] * 4, "done"]
    assert events[4]["train_loss"] < events[1]["train_loss"]
    report = report_of(output)
    assert report.world_size == 1
    assert report.trained_until < HOLDOUT
    assert report.onnx_difference <= 1e-5
    model = ServedModel.load(output / "model.onnx", report.sha256)
    frame = pl.DataFrame({"x": [-3.0, 3.0], "gap": [None, 1.0], "c": ["c0", None]})
    low, high = model.score(frame)
    assert 0 < low < 0.15 < 0.4 < high < 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_report_has_the_rows_and_every_epoch(rows, tmp_path, capsys):
    _, output = run(rows, tmp_path, epochs=3)
    report, facts = report_of(output), open_prepared(rows).facts
    assert report.model_dump(include=set(TrainedRows.model_fields)) == facts.model_dump(exclude={"preprocessing"})
    assert (report.device, report.resumed_at, report.interruptions) in [("cpu", None, []), ("cuda", None, [])]
    assert report.validation_log_loss == pytest.approx(report.epochs[-1].validation_loss, abs=1e-5)
    assert 0.5 < report.validation_auc < 1
    assert report.seconds >= sum(epoch.seconds for epoch in report.epochs)
    events = events_of(capsys.readouterr().out)
    assert events[0] == {
        "event": "start",
        "rows": facts.rows_trained,
        "validation_rows": facts.rows_validation,
        "workers": 1,
    }
    assert [{"event": "epoch", **epoch.model_dump()} for epoch in report.epochs] == events[1:-1]
    assert [epoch.epoch for epoch in report.epochs] == [1, 2, 3]
    for epoch in report.epochs:
        assert epoch.samples_per_s > 0
        assert 0 <= epoch.data_share < 1
    assert events[-1]["sha256"] == report.sha256


def test_a_long_epoch_reports_its_progress(rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "PROGRESS_S", 0.0)
    run(rows, tmp_path, epochs=2, batch_size=16)
    events = events_of(capsys.readouterr().out)
    progress = [event for event in events if event["event"] == "progress"]
    steps = open_prepared(rows).facts.rows_trained // 16
    assert [event["share"] for event in progress] == 2 * [round(step / steps, 3) for step in range(50, steps, 50)]
    assert {event["epoch"] for event in progress} == {1, 2}
    for event in progress:
        assert 0 < event["train_loss"] < 1
        assert event["samples_per_s"] > 0


def test_an_epochs_loss_is_the_mean_over_its_steps(rows, tmp_path, monkeypatch):
    losses = []
    bce = loop.binary_cross_entropy_with_logits

    def remembered(*arguments, **more):
        loss = bce(*arguments, **more)
        if not more:
            losses.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(loop, "binary_cross_entropy_with_logits", remembered)
    _, output = run(rows, tmp_path, epochs=2, batch_size=16)
    per_epoch = np.array(losses).reshape(2, -1).mean(axis=1)
    assert [epoch.train_loss for epoch in report_of(output).epochs] == pytest.approx(per_epoch.tolist(), rel=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(rows, tmp_path):
    files = [
        (run(rows, tmp_path / name, seed=seed)[1] / "model.onnx").read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert files[0] == files[1] != files[2]


def test_dropout_is_the_same_in_every_run_and_none_is_another_model(rows, tmp_path):
    import torch

    files = []
    for name, dropout in (("a", 0.5), ("b", 0.5), ("c", 0.0)):
        torch.rand(len(files) * 17)  # earlier draws do not matter: the random numbers of a step are its own
        files.append((run(rows, tmp_path / name, dropout=dropout)[1] / "model.onnx").read_bytes())
    assert files[0] == files[1] != files[2]


# -- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("commits", [1, 3, 4, 6, 9])
def test_a_training_that_goes_on_from_a_checkpoint_is_bit_by_bit_the_undisturbed_one(
    rows, tmp_path, capsys, monkeypatch, commits
):
    """Within an epoch, between two, and at the last commit of all."""
    settings = {"epochs": 3, "batch_size": 16, "dropout": 0.3}
    monkeypatch.setattr(loop, "COMMIT_STEPS", 40)
    _, undisturbed = run(rows, tmp_path / "undisturbed", **settings)
    spec = {"checkpoint": str(tmp_path / "checkpoint"), "checkpoint_s": 0}
    with stopped_at(commits):
        code, output = run(rows, tmp_path / "stopped", spec, **settings)
    assert code == 1
    assert not output.exists()
    capsys.readouterr()
    code, output = run(rows, tmp_path / "stopped", spec, **settings)
    assert code == 0
    assert (output / "model.onnx").read_bytes() == (undisturbed / "model.onnx").read_bytes()
    report, before = report_of(output), report_of(undisturbed)
    steps = report.rows_trained // 16
    per_epoch = len(range(40, steps, 40)) + 1  # the last commit of an epoch stands at its end
    expected = commits // per_epoch + (commits % per_epoch) * 40 / steps
    assert report.resumed_at == pytest.approx(expected)
    assert before.resumed_at is None
    assert [(e.epoch, e.train_loss, e.validation_loss) for e in report.epochs] == [
        (e.epoch, pytest.approx(e.train_loss, rel=1e-9), e.validation_loss) for e in before.epochs
    ]
    events = events_of(capsys.readouterr().out, "epoch")
    assert [event["epoch"] for event in events] == list(range(commits // per_epoch + 1, 4))


def test_an_optimizer_that_is_shared_is_left_as_it_was():
    """Horovod fills an empty `torch.optim` one by a step that counts and decays weights."""
    import torch

    from training.optimizer import AdamW
    from training.world import HorovodWorld

    model = torch.nn.Linear(3, 1)
    optimizer = AdamW(model, weight_decay=0.5)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step(0.1)
    weights, before = ({k: v.clone() for k, v in each.state_dict().items()} for each in (model, optimizer))
    world = HorovodWorld(elastic=False)
    try:
        shared = world.share(model, optimizer)
    finally:
        world.close()
    torch.testing.assert_close(shared.state_dict(), weights, rtol=0, atol=0)
    assert int(before["steps"]) == 1
    torch.testing.assert_close(dict(optimizer.state_dict()), before, rtol=0, atol=0)


def test_a_checkpoint_runs_no_code_when_it_is_read_and_is_replaced_whole(rows, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "checkpoint"
    run(rows, tmp_path / "a", {"checkpoint": str(folder), "checkpoint_s": 0}, epochs=2)
    assert [file.name for file in folder.iterdir()] == [checkpoint.FILE] == ["checkpoint.safetensors"]
    with safe_open(folder / checkpoint.FILE, framework="np") as file:
        progress = json.loads(file.metadata()["progress"])
        kinds = {key.split("/")[0] for key in file.keys()}  # noqa: SIM118 - not a mapping
    assert (progress["epoch"], progress["step"]) == (2, 0)
    assert kinds == {"model", "optimizer"}
    assert len(progress["epochs"]) == 2
    events = events_of(capsys.readouterr().out, "checkpoint")
    assert (events[-1]["epoch"], events[-1]["step"]) == (2, 0)
    before = (folder / checkpoint.FILE).read_bytes()

    def write_half(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", write_half)
        assert run(rows, tmp_path / "b", {"checkpoint": str(folder), "checkpoint_s": 0}, epochs=3)[0] == 1
    assert [file.name for file in folder.iterdir()] == [checkpoint.FILE]
    assert (folder / checkpoint.FILE).read_bytes() == before


def test_checkpoints_are_as_far_apart_as_specified(rows, tmp_path, capsys):
    run(rows, tmp_path, {"checkpoint": str(tmp_path / "checkpoint"), "checkpoint_s": 3600}, epochs=2)
    assert events_of(capsys.readouterr().out, "checkpoint") == []


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_one_line_and_leaves_nothing(rows, tmp_path, capsys):
    code, output = run(rows, tmp_path, learning_rate=1e30)
    error = error_of(capsys)
    assert code == 1
    assert error["reason"] == "bad_parameters"
    assert "training loss became" in error["message"]
    assert "learning rate" in error["message"]
    assert not output.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]


def test_an_export_that_differs_is_refused_and_leaves_nothing(rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ServedModel, "score", lambda self, features: np.full(features.height, 0.5))
    code, output = run(rows, tmp_path)
    error = error_of(capsys)
    assert code == 1
    assert "differs from the trained one" in error["message"]
    assert not output.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]


def test_an_earlier_model_stays_when_a_training_fails(rows, tmp_path):
    _, output = run(rows, tmp_path)
    before = (output / "model.onnx").read_bytes()
    assert run(rows, tmp_path, learning_rate=1e30)[0] == 1
    assert (output / "model.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [({"layers": 3}, "layers"), ({"epochs": 0}, "epochs"), ({"learning_rate": "fast"}, "learning_rate")],
)
def test_a_wrong_parameter_is_named(rows, tmp_path, capsys, parameters, problem):
    code, _ = run(rows, tmp_path, **parameters)
    error = error_of(capsys)
    assert code == 1
    assert problem in error["message"]
    assert error["reason"] == "bad_parameters"


def test_a_missing_or_broken_spec_is_one_line(tmp_path, capsys):
    assert worker.main(Parameters, train, []) == 1
    assert "one argument" in error_of(capsys)["message"]
    assert worker.main(Parameters, train, [str(tmp_path / "no.json")]) == 1
    assert "cannot be read" in error_of(capsys)["message"]
    (tmp_path / "spec.json").write_text('{"data": 1}')
    assert worker.main(Parameters, train, [str(tmp_path / "spec.json")]) == 1
    assert "data" in error_of(capsys)["message"]


def test_rows_that_are_not_there_are_one_line(tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path)[0] == 1
    error = error_of(capsys)
    assert "nowhere cannot be read" in error["message"]
    assert error["reason"] == "bad_data"


def test_whatever_else_goes_wrong_is_one_line_with_the_traceback_in_the_log(rows, tmp_path, capsys):
    def fail(task, parameters):
        raise RuntimeError("first line\nsecond line")

    (tmp_path / "spec.json").write_text(TrainingSpec(data=str(rows), parameters={}, output="x").model_dump_json())
    assert worker.main(CommonParameters, fail, [str(tmp_path / "spec.json")]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "event": "error",
        "message": "RuntimeError: first line second line",
        "reason": "bad_code",
    }
    assert "Traceback" in err


def test_the_declared_parameters_are_the_trainers_own():
    from throughline.usecase import load_usecases

    declared = [trainer for usecase in load_usecases().values() for trainer in usecase.trainers.values()]
    ours = [trainer for trainer in declared if trainer.module == "training.trainers.mlp"]
    assert ours
    for trainer in ours:
        checked(Parameters, trainer.parameters)
