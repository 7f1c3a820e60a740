"""A real model server over a fake feature store in memory.

As a script it serves the home of the environment; imported, it gives tests the models and revisions of such a home.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from serving.kserve_package import import_server_modules
from tests.support.sealed import release_of, seal_model
from throughline.featurestore.online import FeatureReader
from throughline.featurestore.online_format import OnlineView, Row, encode_keys
from throughline.foundation.settings import Settings, load_settings
from throughline.records import Revision
from throughline.registry import statement
from throughline.rollout.revision import only, revision_of, write_revisions
from throughline.usecase import load_usecases

USECASE = "flight_delay"
KNOWN_AIRCRAFT = {"N318JB", "N14228"}
SEEN_AT = datetime(2013, 3, 31, 12, tzinfo=UTC)


class FakeRows:
    """One stored feature of known aircraft, and a row without features of each origin."""

    near = True

    def version(self) -> int | None:
        return None

    def fetch(self, wanted: Sequence[tuple[OnlineView, Sequence[bytes]]]) -> list[dict[bytes, Row]]:
        (aircraft, tails), (_, origins) = wanted
        known = encode_keys(aircraft, {"tailnum": list(KNOWN_AIRCRAFT)})
        return [
            {key: (SEEN_AT, {"aircraft_flights": 3.0}) for key in tails if key in known},
            {key: (SEEN_AT, {}) for key in origins},
        ]


class FakeFeatureReader(FeatureReader):
    """The reader over rows in memory."""

    def reload(self) -> None:
        views = [
            OnlineView(
                name="aircraft_day", entities=["aircraft"], keys={"tailnum": "STRING"}, features=["aircraft_flights"],
                ttl=None,
            ),
            OnlineView(
                name="origin_hour", entities=["origin", "carrier", "destination", "flight"], keys={"origin": "STRING"},
                features=[], ttl=None,
            ),
        ]  # fmt: skip
        self.take(FakeRows(), views)


def model_bytes(bias: float = 0.0) -> bytes:
    """An ONNX file like the trainers': the sigmoid of the standardised numbers and a carrier's code."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from throughline.models.onnx_graph import compose, learn_preprocessing

    rows = pl.DataFrame(
        {
            "departure_hour": [5.0, 12.0, 23.0],
            "aircraft_flights": [1.0, None, 5.0],
            "carrier": ["B6", "UA", "DL"],
        }
    )
    preprocessing = learn_preprocessing(rows, ["departure_hour", "aircraft_flights"], ["carrier"])
    core = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["numbers", "w"], ["sum"]),
                helper.make_node("Cast", ["codes"], ["c"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["c", "k"], ["k_c"]),
                helper.make_node("Add", ["sum", "k_c"], ["logit0"]),
                helper.make_node("Add", ["logit0", "b"], ["logit"]),
                helper.make_node("Sigmoid", ["logit"], ["p"]),
            ],
            "core",
            [
                helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["rows", preprocessing.width]),
                helper.make_tensor_value_info("codes", TensorProto.INT64, ["rows", 1]),
            ],
            [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["rows", 1])],
            [
                numpy_helper.from_array(np.full((preprocessing.width, 1), 0.3, np.float32), "w"),
                numpy_helper.from_array(np.float32([0.1]), "k"),
                numpy_helper.from_array(np.float32([bias]), "b"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return compose(preprocessing, core).SerializeToString()


def put_revision(settings: Settings, version: int = 1, bias: float = 0.0, **changes: object) -> Revision:
    """Write the signed model and revisions.json to the serving home."""
    folder = settings.serving_home / USECASE
    (folder / str(version)).mkdir(parents=True, exist_ok=True)
    (folder / f"{version}/model.onnx").write_bytes(model_bytes(bias))
    model = seal_model(settings, folder / str(version), version, USECASE)
    deployed_at = datetime.now(UTC) - timedelta(minutes=version)
    revision = revision_of(USECASE, model, deployed_at).model_copy(update=changes)
    statement.issue(settings, USECASE, release_of(model))
    write_revisions(folder, only(revision))
    return revision


def main(home: Path | None = None) -> None:
    import_server_modules()
    from serving.server import run  # after it: this imports KServe, too

    run(load_settings(**({"home": home} if home else {})), load_usecases(), FakeFeatureReader, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
