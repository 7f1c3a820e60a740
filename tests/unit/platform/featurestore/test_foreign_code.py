"""Code in a Feast registry is refused before Feast could run it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from feast.protos.feast.core.Registry_pb2 import Registry

from throughline.featurestore.foreign_code import refuse_foreign_code
from throughline.featurestore.online_format import store_folder
from throughline.featurestore.store import open_store
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.usecase import get_usecase


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self._trace,)


def registry_with(kind: str, body: bytes = b"", text: str = "") -> Registry:
    registry = Registry()
    view = getattr(registry, kind).add()
    function = view.spec.feature_transformation.user_defined_function
    function.name, function.body, function.body_text = "twice", body, text
    return registry


@pytest.mark.parametrize("kind", ["on_demand_feature_views", "stream_feature_views"])
def test_a_store_whose_registry_holds_a_pickle_does_not_open_and_does_not_run_it(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    usecase = get_usecase("flight_delay")
    folder, trace = store_folder(settings, usecase.name), tmp_path / "trace"
    folder.mkdir(parents=True)
    (folder / "registry.db").write_bytes(registry_with(kind, pickle.dumps(Payload(trace))).SerializeToString())
    with pytest.raises(ThroughlineError, match=r"holds code \(twice\).*remove the file"):
        open_store(settings, usecase)
    assert not trace.exists()


@pytest.mark.parametrize(
    "text",
    [
        "def twice(x): return x",
        "from os import system",
        "from features.a import b\nimport os",
        "from featuresque import b",
    ],
)
def test_code_as_text_is_refused_unless_it_imports_our_package(tmp_path: Path, text: str) -> None:
    file = tmp_path / "registry.db"
    file.write_bytes(registry_with("on_demand_feature_views", text=text).SerializeToString())
    with pytest.raises(ThroughlineError, match="holds code"):
        refuse_foreign_code(file, "features")


def test_an_import_of_our_package_and_a_missing_registry_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    refuse_foreign_code(file, "features")
    file.write_bytes(
        registry_with("on_demand_feature_views", text="from features.shop.views import twice").SerializeToString()
    )
    refuse_foreign_code(file, "features")


def test_an_unreadable_registry_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    file.write_bytes(b"\xff\xff\xff")
    with pytest.raises(ThroughlineError, match="cannot be read: remove it"):
        refuse_foreign_code(file, "features")
