"""No model reads "latest": every read of raw data compiles to VERSION AS OF, and without pins nothing compiles."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from throughline.featurestore import dbt

TABLES = ("flight_schedules", "flight_departures", "flight_arrivals", "weather", "planes")


def compile_models(target: Path, pins: dict[str, int]) -> subprocess.CompletedProcess[str]:
    build = {"whole": True, "ranges": [["2013-01-01", "2013-03-31"]], "as_of": "2013-04-01 04:00:00", "origin": "{}"}
    variables = {
        "pins": pins,
        "builds": {path.stem: build for path in (dbt.PROJECT / "models").rglob("*.sql")},
        "lead_seconds": 7200,
        "lakehouse": str(target),
    }
    return dbt.invoke(
        "compile", "--no-introspect", "--select", "resource_type:model", variables=variables, target=target
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    target = tmp_path_factory.mktemp("dbt")
    pins = {f"flight_delay_raw.{name}": 40 + n for n, name in enumerate(TABLES)}
    done = compile_models(target, pins)
    assert done.returncode == 0, done.stdout
    return {path.stem: path.read_text() for path in target.glob("compiled/*/models/*/*.sql")}


def test_every_read_of_raw_data_names_the_version_it_was_given(compiled: dict[str, str]) -> None:
    models = {path.stem for path in (dbt.PROJECT / "models").rglob("*.sql")}
    assert set(compiled) == models
    for name, sql in compiled.items():
        reads = re.findall(r"flight_delay_raw`?\.`?(\w+)`?(?:\s+VERSION AS OF (\d+))?", sql)
        assert reads, f"{name} reads nothing"
        for table, version in reads:
            assert version == str(40 + TABLES.index(table)), f"{name} reads {table} unpinned"


def test_no_model_reads_another_model_unpinned(compiled: dict[str, str]) -> None:
    for name, sql in compiled.items():
        assert "flight_delay_features" not in sql, name


def test_without_pins_nothing_compiles(tmp_path: Path) -> None:
    done = compile_models(tmp_path, {})
    assert done.returncode != 0
    assert "no pinned version of flight_delay_raw." in done.stdout
