"""What is served is one checked file that takes raw features, whatever framework's core is behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from throughline.foundation.errors import ThroughlineError
from throughline.models.onnx_graph import compose, learn_preprocessing, numeric_matrix
from throughline.models.served_model import ServedModel, sha256_of

ROWS = pl.DataFrame(
    {
        "wind": [1.0, 2.0, None, 4.0],
        "gust": [10.0, 20.0, 30.0, 40.0],
        "never": pl.Series([None] * 4, dtype=pl.Float64),
        "carrier": ["B6", "AA", None, "B6"],
        "dest": ["BOS", "", "ORD", "BOS"],
    }
)
NUMERIC, CATEGORICAL = ["wind", "gust", "never"], ["carrier", "dest"]
LEARNED = learn_preprocessing(ROWS, NUMERIC, CATEGORICAL)


def core(width: int, opset: int = 17, inputs: tuple[str, ...] = ("numbers", "codes")) -> onnx.ModelProto:
    """A sigmoid of the sum of all numbers and codes: a core that shows what it was given."""
    kinds = {"numbers": (TensorProto.FLOAT, width), "codes": (TensorProto.INT64, 2)}
    nodes, terms = [], []
    for name in inputs:
        nodes += [
            helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", [f"{name}_float", "axes"], [f"{name}_sum"], keepdims=1),
        ]
        terms.append(f"{name}_sum")
    nodes += [helper.make_node("Sum", terms, ["total"]), helper.make_node("Sigmoid", ["total"], ["score"])]
    graph = helper.make_graph(
        nodes,
        "core",
        [helper.make_tensor_value_info(name, kinds[name][0], ["n", kinds[name][1]]) for name in inputs],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.int64([1]), "axes")],
    )
    nodes[0].doc_string = "File /vendor/s/machine.py, line 1"
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def save(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    return save(tmp_path, compose(LEARNED, core(LEARNED.width)))


@pytest.fixture
def model(file) -> ServedModel:
    return ServedModel.load(file, sha256_of(file))


def expected(frame: pl.DataFrame) -> np.ndarray:
    total = LEARNED.numbers(numeric_matrix(frame, NUMERIC)).sum(axis=1) + LEARNED.codes(frame).sum(axis=1)
    return 1 / (1 + np.exp(-total.astype(np.float64)))


numbers = st.one_of(st.none(), st.just(float("nan")), st.floats(width=32), st.floats(-50, 50, width=32))
words = st.one_of(st.none(), st.sampled_from(["", "B6", "AA", "BOS", "ORD", "??"]), st.text(max_size=4))
rows = st.fixed_dictionaries({**dict.fromkeys(NUMERIC, numbers), **dict.fromkeys(CATEGORICAL, words)})


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> ServedModel:
    file = save(tmp_path_factory.mktemp("model"), compose(LEARNED, core(LEARNED.width)))
    return ServedModel.load(file, sha256_of(file))


@settings(max_examples=80)
@given(drawn=st.lists(rows, min_size=1, max_size=6))
def test_the_graph_prepares_any_row_as_training_did(loaded, drawn):
    frame = pl.DataFrame(drawn, schema={**dict.fromkeys(NUMERIC, pl.Float64), **dict.fromkeys(CATEGORICAL, pl.String)})
    scores = loaded.score(frame)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores, expected(frame), atol=1e-6)


def test_missing_is_the_mean_with_a_flag_and_unknown_is_code_zero():
    frame = pl.DataFrame({"wind": [None], "gust": [25.0], "never": [3.0], "carrier": ["??"], "dest": [None]})
    np.testing.assert_array_equal(LEARNED.numbers(numeric_matrix(frame, NUMERIC)), [[0, 0, 3, 1, 0]])
    np.testing.assert_array_equal(LEARNED.codes(frame), [[0, 0]])
    assert LEARNED.indicators == ["wind", "never"]


def test_an_extreme_value_is_clipped():
    frame = ROWS.head(1).with_columns(wind=pl.lit(1e30), gust=pl.lit(float("inf")))
    assert np.abs(LEARNED.numbers(numeric_matrix(frame, NUMERIC))).max() == LEARNED.clip


def test_what_is_learned_does_not_depend_on_the_order_of_rows():
    assert learn_preprocessing(ROWS[[2, 0, 3, 1]], NUMERIC, CATEGORICAL) == LEARNED


def test_integers_booleans_and_more_columns_are_taken(model):
    frame = ROWS.with_columns(gust=pl.col("gust").cast(pl.Int32), wind=pl.lit(True), further=pl.lit("x"))
    same = ROWS.with_columns(wind=pl.lit(1.0))
    np.testing.assert_array_equal(model.score(frame), model.score(same))


def test_a_row_scores_the_same_in_any_batch(model):
    one_by_one = np.concatenate([model.score(ROWS[row]) for row in range(ROWS.height)])
    np.testing.assert_array_equal(one_by_one, model.score(ROWS))
    assert model.score(ROWS.head(0)).shape == (0,)


def test_values_beyond_training_are_named_and_missing_ones_are_not(model):
    frame = pl.DataFrame(
        {
            "wind": [1.0, 9.0, None],
            "gust": [10.0, 5.0, 20.0],
            "never": [None, None, 1.0],
            "carrier": ["B6", "ZZ", None],
            "dest": ["BOS", "", "XXX"],
        }
    )
    assert model.outside_domain(frame) == [[], ["wind", "gust", "carrier"], ["never", "dest"]]
    assert model.domain["wind"] == [1.0, 4.0]
    assert model.domain["carrier"] == ["AA", "B6"]


def test_a_missing_feature_column_is_named(model):
    with pytest.raises(ThroughlineError, match="gust"):
        model.score(ROWS.drop("gust"))


def test_a_value_of_the_wrong_type_is_refused(model):
    with pytest.raises(ThroughlineError, match="wrong type"):
        model.score(ROWS.with_columns(gust=pl.lit("strong")))


def test_one_changed_byte_is_refused(file):
    digest = sha256_of(file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ThroughlineError, match="changed or damaged after registration"):
        ServedModel.load(file, digest)


def test_what_is_not_a_model_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ThroughlineError, match="cannot be read"):
        ServedModel.load(path, "0")
    for content in (b"", b"\x80\x04not a model", b"garbage" * 50):
        path.write_bytes(content)
        with pytest.raises(ThroughlineError):
            ServedModel.load(path, sha256_of(path))


def test_operators_beyond_the_standard_are_refused(tmp_path):
    model = compose(LEARNED, core(LEARNED.width))
    model.opset_import.append(helper.make_opsetid("com.vendor", 1))
    path = save(tmp_path, model)
    with pytest.raises(ThroughlineError, match=r"com\.vendor"):
        ServedModel.load(path, sha256_of(path))


def test_weights_in_other_files_are_refused(tmp_path):
    model = compose(LEARNED, core(LEARNED.width))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location="../secret")
    path = save(tmp_path, model)
    with pytest.raises(ThroughlineError, match="one file"):
        ServedModel.load(path, sha256_of(path))


def test_a_bare_model_without_our_inputs_is_refused(tmp_path):
    path = save(tmp_path, core(3))
    with pytest.raises(ThroughlineError, match="compose"):
        ServedModel.load(path, sha256_of(path))


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_cores_of_several_opsets_and_of_one_input_fit(tmp_path, opset):
    for inputs in (("numbers",), ("codes",), ("numbers", "codes")):
        path = save(tmp_path, compose(LEARNED, core(LEARNED.width, opset, inputs)))
        assert ServedModel.load(path, sha256_of(path)).score(ROWS).shape == (4,)


def test_the_file_names_no_machine_and_is_the_same_each_time():
    one, other = (compose(LEARNED, core(LEARNED.width)).SerializeToString() for _ in range(2))
    assert one == other
    assert b"machine.py" not in one


def test_a_core_with_other_names_is_refused():
    wrong = core(LEARNED.width)
    wrong.graph.input[0].name = "x"
    with pytest.raises(ThroughlineError, match="numbers and codes"):
        compose(LEARNED, wrong)
