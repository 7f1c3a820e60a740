"""`throughline features`: documented keys, one line for what cannot be found, and unknown models without MLflow."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from throughline.cli.main import app
from throughline.featurestore.layout import EVENT_TIME
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings, load_settings
from throughline.lakehouse.table import replace_all
from throughline.records import FeatureRecord, FeatureStoreRecord, FeatureViewRecord
from throughline.records.store import save_record
from throughline.usecase import get_usecase

KEYS = {
    "kind", "name", "usecase", "view", "description", "type", "entity", "owner", "tags", "deprecated", "replaced_by",
    "services", "table", "upstream", "freshness", "models", "models_unknown", "reads", "reads_from", "profile",
    "features",
}  # fmt: skip
TICKS = TableReference("flight_delay/features/origin_ticks", 0)


def feature(name: str, **tags: str) -> FeatureRecord:
    return FeatureRecord(
        name=name,
        type="Float64",
        description=f"What {name} is.",
        tags=tags,
        services=["v1"],
        upstream=["departures.delay"],
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One view whose newest row is eight hours old, where six are allowed; no service runs."""
    settings = load_settings(home=tmp_path_factory.mktemp("home"), port_base=1024)
    now = get_usecase("flight_delay").clock_start(settings)
    rows = pl.DataFrame({EVENT_TIME: [now - timedelta(hours=8)]})
    replace_all(settings.table_path("flight_delay", "features", "origin_ticks"), rows)
    view = FeatureViewRecord(
        name="origin_ticks",
        description="Departures from an origin.",
        owner="ops-research",
        tags={"topic": "punctuality"},
        entities=["origin"],
        table=TICKS,
        features=[
            feature("origin_delay_2h", unit="minutes"),
            feature("origin_delay_1h", deprecated="too [noisy]", replaced_by="origin_delay_2h"),
        ],
    )
    record = FeatureStoreRecord(
        usecase="flight_delay", as_of=datetime(2013, 4, 1, tzinfo=UTC), sources=[TICKS], spine=TICKS, views=[view]
    )
    save_record(settings, ("flight_delay", "features", "feature_store"), record)
    return settings


@pytest.fixture
def call(home: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("THROUGHLINE_HOME", str(home.home))
    monkeypatch.setenv("THROUGHLINE_PORT_BASE", "1024")

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["features", *arguments])

    return call


def test_a_feature_is_shown_with_all_documented_keys(call) -> None:
    done = call("show", "origin_delay_2h", "--json")
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert set(shown) == KEYS
    assert shown["table"] == "flight_delay/features/origin_ticks@0"
    assert shown["upstream"] == ["departures.delay"]
    assert shown["freshness"] == {
        "newest": "2013-03-31T20:00:00Z", "age_s": 8 * 3600, "allowed_s": 6 * 3600, "fresh": False,
    }  # fmt: skip


def test_the_keys_are_documented_where_the_command_is() -> None:
    from throughline.cli import features

    assert [key for key in KEYS if key not in (features.__doc__ or "")] == []


def test_without_mlflow_models_are_unknown_and_everything_else_is_there(call) -> None:
    shown = json.loads(call("show", "origin_ticks", "--json").stdout)
    assert (shown["kind"], shown["models"], shown["reads"]) == ("view", None, 0)
    assert "MLflow does not answer" in shown["models_unknown"]
    assert "unknown (MLflow does not answer" in call("show", "origin_ticks").stdout


def test_list_and_search_have_the_same_form(call) -> None:
    everything, found = (json.loads(call(*words, "--json").stdout) for words in (["list"], ["search", "minutes"]))
    assert set(everything) == set(found) == {"clock", "views", "features"}
    assert [entry["name"] for entry in everything["views"]] == ["origin_ticks"]
    assert [entry["name"] for entry in everything["features"]] == ["origin_delay_1h", "origin_delay_2h"]
    assert [entry["name"] for entry in found["features"]] == ["origin_delay_2h"]
    assert all(set(entry) == KEYS for entry in everything["views"] + everything["features"])


def test_people_see_what_is_deprecated_and_what_is_stale(call) -> None:
    shown = call("list").stdout
    assert "deprecated: too [noisy]; use origin_delay_2h" in shown
    assert "STALE: 8 h old, 6 h allowed" in shown
    assert "deprecated: too [noisy]; use origin_delay_2h" in call("show", "origin_delay_1h").stdout


def test_a_wrong_name_is_one_line_with_the_nearest(call) -> None:
    done = call("show", "orign_delay_2h")
    assert done.exit_code == 1
    assert isinstance(done.exception, ThroughlineError)
    assert "did you mean origin_delay_2h" in str(done.exception)


def test_a_search_without_result_names_the_word_that_occurs_nowhere(call) -> None:
    done = call("search", "origin", "wether")
    assert done.exit_code == 0
    assert "wether occurs nowhere" in done.stdout


def test_before_anything_is_registered_one_line_names_the_command(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THROUGHLINE_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["features", "list"])
    assert "throughline run" in str(done.exception)
    assert "\n" not in str(done.exception)


def test_looking_up_a_feature_imports_neither_feast_nor_mlflow_nor_torch(home: Settings) -> None:
    """They take seconds to import, and looking something up needs none of them."""
    code = (
        "import sys; from throughline.cli.main import app\n"
        "try: app(['features', 'list', '--json'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('feast', 'mlflow', 'torch', 'pyspark', 'dagster') if name in sys.modules])"
    )
    environment = {"THROUGHLINE_HOME": str(home.home), "THROUGHLINE_PORT_BASE": "1024", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout[-500:] + done.stderr[-500:]
