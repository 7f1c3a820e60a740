"""A feature is as important as its loss is bad."""

from __future__ import annotations

import numpy as np
import polars as pl

from throughline.experiment.selection import importances, needed


def test_what_the_score_is_made_of_is_important_and_nothing_else_is():
    draw = np.random.default_rng(1)
    x, noise = draw.normal(size=4000), draw.normal(size=4000)
    chance = 1 / (1 + np.exp(-2 * x))
    rows = pl.DataFrame({"x": x, "noise": noise, "label": (draw.random(4000) < chance).astype(int)})
    rises = importances(lambda frame: 1 / (1 + np.exp(-2 * frame["x"].to_numpy())), rows, ["x", "noise"], seed=3)
    assert rises["x"] > 0.3
    assert rises["noise"] == 0
    assert rises == importances(
        lambda frame: 1 / (1 + np.exp(-2 * frame["x"].to_numpy())), rows, ["x", "noise"], seed=3
    )


def test_what_the_model_is_better_without_is_left_out_but_never_everything():
    assert needed({"a": 0.1, "b": 0.0, "c": -0.2}) == {"a"}
    assert needed({"a": -0.3, "b": -0.1}) == {"b"}
