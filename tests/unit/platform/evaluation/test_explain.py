"""Contributions are Shapley values against real rows: they sum to the score, twice the same, in bounded time."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from throughline.evaluation import background, explain
from throughline.evaluation.plots import importance_plot
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.records import Background, GlobalImportance


class Model:
    """Numbers a to e and one category, with interactions, a saturated output and a meaning for missing."""

    numeric, categorical = ["a", "b", "c", "d", "e"], ["carrier"]
    sha256 = "0" * 64
    rows = 0

    def score(self, features: pl.DataFrame) -> np.ndarray:
        self.rows += features.height
        a, b, c, d = (features[name].cast(pl.Float64).fill_null(float("nan")).to_numpy() for name in "abcd")
        b, gap = np.nan_to_num(b, nan=0.3), np.isnan(b)
        late = (features["carrier"].cast(pl.String).fill_null("") == "B6").to_numpy()
        return 1 / (1 + np.exp(-(a - 1.5 * a * b + 0.8 * late * c + np.sin(d) + 2.0 * gap)))


MODEL = Model()
DRAW = np.random.default_rng(5)
ROWS = pl.DataFrame(
    {name: DRAW.normal(size=400) for name in MODEL.numeric}
    | {"carrier": DRAW.choice(["B6", "AA", "UA"], 400), "not_a_feature": DRAW.normal(size=400)}
).with_columns(b=pl.when(pl.col("a") > 1).then(None).otherwise(pl.col("b")))
AGAINST = ROWS[:20]
ROW = pl.DataFrame({"a": 1.2, "b": float("nan"), "c": -0.7, "d": 0.4, "e": 9.0, "carrier": "B6"}).fill_nan(None)


def of(explanation: explain.Explanation) -> dict[str, float]:
    return {one.feature: one.contribution for one in explanation.explanations}


def exact(row: pl.DataFrame, against: pl.DataFrame) -> dict[str, float]:
    """SHAP's own values over all coalitions; a category goes in as its place among the words."""
    import shap

    features = [*MODEL.numeric, *MODEL.categorical]
    words = ["", *ROWS["carrier"].unique().sort()]

    def coded(rows: pl.DataFrame) -> np.ndarray:
        place = rows["carrier"].fill_null("").replace_strict(words, range(len(words)), return_dtype=pl.Float64)
        return rows.with_columns(carrier=place).select(pl.col(features).cast(pl.Float64)).to_numpy()

    def scored(values: np.ndarray) -> np.ndarray:
        rows = pl.DataFrame(values, schema=features)
        return MODEL.score(
            rows.with_columns(carrier=pl.Series([words[int(n)] for n in rows["carrier"]])).fill_nan(None)
        )

    explainer = shap.KernelExplainer(scored, coded(against))
    found = explainer.shap_values(coded(row)[0], nsamples=2 ** len(features), l1_reg=False, silent=True)
    return dict(zip(features, found, strict=True))


def test_contributions_are_shaps_exact_ones() -> None:
    for row in (ROW, ROWS[100], ROWS[101]):
        found = of(explain.explain(MODEL, row, AGAINST, pairs=200))
        for name, value in exact(row, AGAINST).items():
            assert found[name] == pytest.approx(value, abs=3e-3), name


def test_few_paths_are_near_the_exact_values_already() -> None:
    found = of(explain.explain(MODEL, ROW, AGAINST))
    for name, value in exact(ROW, AGAINST).items():
        assert found[name] == pytest.approx(value, abs=0.02), name


@pytest.mark.parametrize("pairs", [1, 3])
def test_contributions_and_base_value_sum_to_the_score(pairs: int) -> None:
    for number in range(5):
        row = ROWS[200 + number]
        it = explain.explain(MODEL, row, AGAINST, pairs=pairs)
        assert it.score == MODEL.score(row)[0]
        assert it.base_value == pytest.approx(MODEL.score(AGAINST).mean())
        assert it.base_value + sum(of(it).values()) == pytest.approx(it.score, abs=1e-9)


def test_explained_twice_is_the_same_and_the_largest_comes_first() -> None:
    it = explain.explain(MODEL, ROW, AGAINST)
    assert it == explain.explain(MODEL, ROW, AGAINST)
    sizes = [abs(one.contribution) for one in it.explanations]
    assert sizes == sorted(sizes, reverse=True)
    assert {one.feature for one in it.explanations} == {*MODEL.numeric, *MODEL.categorical}


def test_missing_is_a_value_and_what_the_model_does_not_use_adds_nothing() -> None:
    it = explain.explain(MODEL, ROW, AGAINST)
    values = {one.feature: one.value for one in it.explanations}
    assert (values["b"], values["carrier"], values["e"]) == (None, "B6", 9.0)
    assert of(it)["b"] > 0.05  # the model raises the score where b is missing
    assert of(it)["e"] == pytest.approx(0, abs=1e-12)
    as_nan = ROW.with_columns(b=pl.lit(float("nan")))
    assert explain.explain(MODEL, as_nan, AGAINST) == it


def test_a_model_of_one_feature_is_explained_by_it() -> None:
    class One(Model):
        numeric, categorical = [], ["carrier"]

        def score(self, features: pl.DataFrame) -> np.ndarray:
            return np.where((features["carrier"] == "B6").fill_null(False).to_numpy(), 0.8, 0.2)

    it = explain.explain(One(), ROW, AGAINST)
    assert of(it) == {"carrier": pytest.approx(0.8 - it.base_value)}


def test_an_explanation_scores_as_many_rows_as_stated() -> None:
    model = Model()
    explain.explain(model, ROW, AGAINST)
    assert model.rows == 1 + 20 + 2 * explain.PAIRS * 20 * (6 - 1)


def test_a_passed_deadline_ends_an_explanation() -> None:
    class Slow(Model):
        calls = 0

        def score(self, features: pl.DataFrame) -> np.ndarray:
            if features.height > 100:
                self.calls += 1
                time.sleep(0.05)
            return super().score(features)

    slow = Slow()
    with pytest.raises(explain.TooSlow, match="not done in time"):
        explain.explain(slow, ROW, AGAINST, pairs=5000, until=time.monotonic() + 0.1)
    assert slow.calls <= 3


def test_importance_is_the_mean_size_of_contributions_over_a_bounded_sample(monkeypatch) -> None:
    monkeypatch.setattr(explain, "GLOBAL_ROWS", 12)
    found = explain.global_importance(MODEL, ModelReference("u", 3), ROWS, AGAINST)
    assert (found.model, found.rows, [*found.features][-1]) == (ModelReference("u", 3), 12, "e")
    assert found.features["e"] == pytest.approx(0, abs=1e-12)
    each = [of(explain.explain(MODEL, row, AGAINST, pairs=1)) for row in explain.sample(ROWS, 12).iter_slices(1)]
    assert found.features["a"] == pytest.approx(np.mean([abs(one["a"]) for one in each]))
    assert [*found.features.values()] == sorted(found.features.values(), reverse=True)
    assert explain.global_importance(MODEL, ModelReference("u", 3), ROWS, AGAINST) == found


def test_the_plot_names_the_features_that_matter_most() -> None:
    many = {f"feature_{number:02}": 1.0 / (1 + number) for number in range(30)}
    drawn = importance_plot(GlobalImportance(model=ModelReference("u", 3), rows=200, base_value=0.2, features=many))
    assert drawn.startswith("<svg")
    assert all(name in drawn for name in [*many][:20])
    assert "feature_20" not in drawn


# What explanations compare with


def test_a_background_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    with_gaps = ROWS.with_columns(carrier=pl.when(pl.col("a") < 0).then(pl.col("carrier")))
    drawn = background.background_of(MODEL, with_gaps)
    assert background.background_of(MODEL, with_gaps) == drawn
    path = tmp_path / "background.json"
    path.write_text(drawn.model_dump_json())
    frame = background.frame_of(background.read(path), MODEL, MODEL.sha256)
    assert frame.equals(explain.sample(with_gaps, background.ROWS).select(frame.columns))
    assert frame["b"].null_count() > 0
    assert frame["carrier"].null_count() > 0
    assert explain.explain(MODEL, ROW, frame) == explain.explain(MODEL, ROW, explain.sample(with_gaps, background.ROWS))


def test_a_background_of_another_model_is_refused() -> None:
    drawn = background.background_of(MODEL, ROWS)
    with pytest.raises(ThroughlineError, match="evaluate and deploy"):
        background.frame_of(drawn, MODEL, "1" * 64)
    swapped = drawn.model_copy(update={"numeric": dict(reversed(drawn.numeric.items()))})
    with pytest.raises(ThroughlineError, match="evaluate and deploy"):
        background.frame_of(swapped, MODEL, MODEL.sha256)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"sha256": "0"}', '{"sha256": "0", "numeric": {"a": []}, "categorical": {}}',
     '{"sha256": "0", "numeric": {"a": [1.0]}, "categorical": {"b": ["x", "y"]}}',
     '{"sha256": "0", "numeric": {}, "categorical": {}}'],
)  # fmt: skip
def test_a_file_that_is_no_background_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "background.json"
    path.write_text(content)
    with pytest.raises(ThroughlineError, match=r"background\.json"):
        background.read(path)
    assert background.read(tmp_path / "none.json") is None


def test_a_background_is_bounded() -> None:
    assert len(background.background_of(MODEL, ROWS).numeric["a"]) == background.ROWS
    assert len(background.background_of(MODEL, ROWS[:3]).numeric["a"]) == 3
    assert Background(sha256="0", numeric={"a": [None]}, categorical={}).numeric == {"a": [None]}
