"""A Feast user's folder, a feature_store.yaml and the `feast` command: nothing else of Throughline is needed."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from deltalake import write_deltalake
from feast import FeatureStore

NOW = datetime(2024, 5, 1, tzinfo=UTC)

SETTINGS = """
project: trips
provider: local
registry: registry.db
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
offline_store:
  type: throughline.featurestore.delta_store.DeltaOfflineStore
"""

DEFINITIONS = """
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureView, Field, ValueType
from feast.types import Float64
from throughline.featurestore.delta_store import DeltaSource

driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.STRING)
stats = FeatureView(
    name="stats",
    entities=[driver],
    schema=[Field(name="rate", dtype=Float64)],
    ttl=timedelta(days=1),
    source=DeltaSource(
        name="rates", path=str(Path(__file__).parent / "rates"), version=0, timestamp_field="event_timestamp"
    ),
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("plain")
    times = [NOW - timedelta(hours=hours) for hours in (30, 2, 1)]
    rates = pd.DataFrame({"driver": ["a", "a", "b"], "event_timestamp": times, "rate": [0.1, 0.2, 0.3]})
    write_deltalake(str(made / "rates"), rates)
    write_deltalake(str(made / "rates"), rates.assign(rate=9.9), mode="overwrite")  # version 1, which no source pins
    (made / "feature_store.yaml").write_text(SETTINGS)
    (made / "definitions.py").write_text(DEFINITIONS)
    feast = Path(sys.executable).with_name("feast")
    done = subprocess.run([feast, "apply"], cwd=made, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def rates(folder: Path) -> list[float | None]:
    spine = pd.DataFrame({"driver": ["b", "a", "c", "a"], "event_timestamp": [NOW, NOW, NOW, NOW - timedelta(hours=3)]})
    got = FeatureStore(repo_path=folder).get_historical_features(spine, ["stats:rate"]).to_df()["rate"]
    return [None if pd.isna(rate) else rate for rate in got]


def test_a_folder_with_a_feature_store_yaml_is_all_it_needs(folder: Path) -> None:
    assert rates(folder) == [0.3, 0.2, None, None]


def test_one_setting_moves_the_same_store_to_spark(folder: Path, spark_remote: str) -> None:
    (folder / "feature_store.yaml").write_text(f"{SETTINGS}  engine: spark\n  spark_remote: {spark_remote}\n")
    try:
        assert rates(folder) == [0.3, 0.2, None, None]
    finally:
        (folder / "feature_store.yaml").write_text(SETTINGS)
