"""A home that can be served, made in seconds: feature tables, online store and a model with made-up values.

Owns: that home, for any declared use case. Does not own: what serves it. Tables, registration, online
materialisation and the model's graph are the platform's own; only the numbers in them are made up.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from throughline.featurestore.layout import EVENT_TIME, KNOWN
from throughline.featurestore.materialise import materialise_until
from throughline.featurestore.online import FeatureReader
from throughline.featurestore.store import register
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import replace_all
from throughline.models import provenance
from throughline.models.provenance import Provenance
from throughline.records import GateDecision, ModelRecord
from throughline.registry import statement
from throughline.rollout.revision import only, revision_of, write_revisions
from throughline.usecase import UseCase, load_object
from throughline.usecase.requests import example_instance, parse_columns

ENTITIES = 500
HIDDEN = (128, 64)
SEED = 2013


def make_home(settings: Settings, usecase: UseCase) -> list[dict[str, Any]]:
    """Fill the home and return instances to request: each with keys for which the online store has rows."""
    keys = {field: _keys(usecase, field) for field in usecase.entities.values()}
    instances = [{**example_instance(usecase), **{f: k[i] for f, k in keys.items()}} for i in range(ENTITIES)]
    _features(settings, usecase, keys)
    values = FeatureReader(settings, usecase).read(parse_columns(usecase, instances)).frame
    numeric = [name for name in values.columns if name not in usecase.request]
    content = model_bytes(values, numeric, usecase.features.categories)
    origin = Provenance(
        name=usecase.name,
        run_id="none",
        sha256=hashlib.sha256(content).hexdigest(),
        dataset_fingerprint="none",
        trained_until=datetime.now(UTC),
        trainer="none",
        parameters={},
        tags={},
    )
    model = ModelRecord(version=1, uri="none", **origin.model_dump(exclude={"tags"}))
    folder = settings.serving_home / usecase.name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(content)
    provenance.seal(settings, folder / "1", origin)
    decision = GateDecision(
        model=model.reference, sha256=model.sha256, decision="release", decided_at=datetime.now(UTC), rules=[]
    )
    statement.issue(settings, usecase.name, decision)
    write_revisions(folder, only(revision_of(usecase.name, model, datetime.now(UTC))))
    return instances


def model_bytes(values: pl.DataFrame, numeric: list[str], categorical: list[str]) -> bytes:
    """A network of the usual size with random weights, behind the front every served model has."""
    from onnx import TensorProto, helper, numpy_helper

    from throughline.models.onnx_graph import IR_VERSION, OPSET, compose, learn_preprocessing

    random = np.random.default_rng(SEED)
    front = learn_preprocessing(values, numeric, categorical)
    nodes = [
        helper.make_node("Cast", ["codes"], ["code_numbers"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["numbers", "code_numbers"], ["layer_0"], axis=1),
    ]
    weights, width = [], front.width + len(categorical)
    for place, wide in enumerate((*HIDDEN, 1)):
        matrix = random.normal(scale=width**-0.5, size=(width, wide)).astype(np.float32)
        weights += [
            numpy_helper.from_array(matrix, f"w_{place}"),
            numpy_helper.from_array(np.zeros(wide, np.float32), f"b_{place}"),
        ]
        last = place == len(HIDDEN)
        nodes += [
            helper.make_node("Gemm", [f"layer_{place}", f"w_{place}", f"b_{place}"], [f"sum_{place}"]),
            helper.make_node("Sigmoid" if last else "Relu", [f"sum_{place}"], ["p" if last else f"layer_{place + 1}"]),
        ]
        width = wide
    graph = helper.make_graph(
        nodes,
        "core",
        [
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["rows", front.width]),
            helper.make_tensor_value_info("codes", TensorProto.INT64, ["rows", len(categorical)]),
        ],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["rows", 1])],
        weights,
    )
    core = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return compose(front, core).SerializeToString()


def _keys(usecase: UseCase, field: str) -> list[Any]:
    """One key per instance; the declaration's own example is the first."""
    example = usecase.request[field].example
    made = (
        range(1, ENTITIES) if usecase.request[field].type == "integer" else (f"{field}{i}" for i in range(1, ENTITIES))
    )
    return [example, *made]


def _features(settings: Settings, usecase: UseCase, keys: dict[str, list[Any]]) -> None:
    """A table per feature view with one row per key, registered at its version and materialised."""
    from feast import FeatureView
    from feast.types import from_feast_to_pyarrow_type

    from throughline.featurestore.delta_store import DeltaSource

    def unwritten(table: str) -> DeltaSource:
        return DeltaSource(name=table, path=table, version=0, timestamp_field=EVENT_TIME)

    now, random, pins = usecase.clock_start(settings), np.random.default_rng(SEED), []
    for view in load_object(usecase.features.definitions).build(unwritten):
        if not isinstance(view, FeatureView):
            continue
        columns: dict[str, Any] = {usecase.entities[name]: keys[usecase.entities[name]] for name in view.entities}
        for field in view.schema:
            if field.name not in columns:
                numbers = pa.array(random.normal(10, 3, ENTITIES).round(2))
                columns[field.name] = numbers.cast(from_feast_to_pyarrow_type(field.dtype), safe=False)
        happened = [now - timedelta(minutes=i) for i in range(ENTITIES)]
        times = pl.Series(EVENT_TIME, happened, pl.Datetime("us", "UTC"))
        rows = pl.DataFrame(columns).with_columns(times, times.alias(KNOWN))
        table = view.batch_source.name
        version = replace_all(settings.table_path(usecase.name, "features", table), rows)
        pins.append(TableReference(f"{usecase.name}/features/{table}", version))
    register(settings, usecase, pins)
    materialise_until(settings, usecase, now)
