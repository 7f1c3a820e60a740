"""The trainer learns something from the made rows, the first epoch only warms, and a ratio is taken round by round."""

from __future__ import annotations

import json

import pytest

from benchmarks import horovod_ddp
from throughline.experiment.prepared import open_prepared


def epoch(samples: float, share: float = 0.01) -> dict:
    return {"samples_per_s": samples, "data_share": share}


def test_the_first_epoch_only_warms():
    events = [{"event": "start"}, *({"event": "epoch", **epoch(value)} for value in (1.0, 30.0, 20.0, 40.0))]
    assert horovod_ddp.figures_of(events) == epoch(30.0)


def test_ratios_are_horovods_samples_to_those_of_ddp_round_by_round():
    """In the second round the machine was ten times slower for both."""
    taken = {
        ("horovod", 2): [epoch(90.0, 0.03), epoch(9.0, 0.05)],
        ("torchrun", 2): [epoch(100.0), epoch(10.0)],
        ("horovod", 1): [epoch(55.0), epoch(6.0)],
        ("torchrun", 1): [epoch(50.0), epoch(5.0)],
        ("single", 1): [epoch(70.0), epoch(60.0)],
    }
    measured = json.loads(json.dumps(horovod_ddp.summary(taken, True, {"rows": 3})))
    assert measured["ratio"] == {"ddp": 0.9, "ddp_1": 1.15}
    assert measured["spread"] == {"ddp": [0.9, 0.9], "ddp_1": [1.1, 1.2]}
    assert (measured["single"], measured["data_share"]) == (65.0, 0.04)
    assert set(measured["figures"]) == {"single", "throughline, 2", "throughline, 1", "ddp", "ddp_1"}

    quick = {engine: epoch for engine, epoch in taken.items() if engine[1] == 2}
    assert horovod_ddp.summary(quick, True, {})["ratio"] == {"ddp": 0.9}


@pytest.mark.parametrize("rows", [2_000])
def test_a_training_of_the_made_rows_has_figures(tmp_path, rows):
    folder = horovod_ddp.make_rows(tmp_path, rows)
    facts = open_prepared(folder).facts
    assert 0.8 * rows < facts.rows_trained <= rows
    assert 0.1 < facts.base_rate < 0.9
    found = horovod_ddp.train("single", 1, folder, tmp_path, epochs=2, batch=64)
    assert found["samples_per_s"] > 0
    assert 0 <= found["data_share"] < 1
