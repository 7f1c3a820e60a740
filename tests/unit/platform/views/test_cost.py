"""Costs are counted once: a run at its version, a trial at the version that its search chose, the rest at none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.events import event, rows
from throughline.cli.cost import seconds, size
from throughline.events.table import LogTable
from throughline.foundation.settings import Settings
from throughline.lakehouse.maintenance import stored_bytes
from throughline.usecase import get_usecase
from throughline.views.cost import Serving, Training, attribute, served, table_bytes

NOW = 1_000_000.0
USECASE = get_usecase("flight_delay")


def run(
    run_id: str, lasted: float | None, processes: int | None = 2, parent: str = "", threads: int = 1
) -> dict[str, Any]:
    """As MLflow describes a run; one that still runs when it lasted None, with no workers when processes is None."""
    start = (NOW - 1000) * 1000
    return {
        "info": {"run_id": run_id, "start_time": int(start)}
        | ({} if lasted is None else {"end_time": int(start + lasted * 1000)}),
        "data": {
            "params": [] if processes is None else [
                {"key": "processes", "value": str(processes)}, {"key": "threads", "value": str(threads)},
            ],
            "tags": [{"key": "mlflow.parentRunId", "value": parent}] if parent else [],
        },
    }  # fmt: skip


def test_a_run_belongs_to_its_version_a_trial_to_its_search_the_rest_to_no_version():
    found = [
        run("of-1", 10), run("failed", 3), run("search", 500, processes=None),
        run("trial-1", 20, 1, parent="search"), run("trial-2", 30, 1, parent="search", threads=2),
    ]  # fmt: skip
    own, searches, others = attribute(found, {"of-1"}, NOW)
    assert own == {"of-1": Training(1, 10, 20)}
    assert searches == {"search": Training(2, 50, 80)}
    assert others == Training(1, 3, 6)


def test_what_still_runs_counts_until_now():
    _, _, others = attribute([run("running", None, 1)], set(), NOW)
    assert others == Training(1, 1000, 1000)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e5), st.sampled_from(["", "a", "b"]), st.integers(1, 4), st.booleans()), max_size=20
    )
)
def test_no_second_is_lost_or_counted_twice(drawn):
    found = [run(f"r{n}", lasted, processes, parent) for n, (lasted, parent, processes, _) in enumerate(drawn)]
    registered = {f"r{n}" for n, (_, _, _, version) in enumerate(drawn) if version}
    own, searches, others = attribute(found, registered, NOW)
    parts = [*own.values(), *searches.values(), others]
    assert sum(part.runs for part in parts) == len(drawn)
    assert sum(part.seconds for part in parts) == pytest.approx(sum(lasted for lasted, *_ in drawn), abs=0.01)


def test_the_rows_of_one_request_cost_its_time_once(tmp_path: Path):
    settings, at = Settings(home=tmp_path), datetime(2026, 1, 1, tzinfo=UTC)
    assert served(settings, USECASE) == {}
    batch = [event(id=uuid4(), sequence=n, latency_ms=30.0, wall_time=at, model_version=1) for n in range(1, 4)]
    more = [
        event(
            id=uuid4(), sequence=4, latency_ms=5.0, model_version=1,
            wall_time=at + timedelta(seconds=1), traffic="load_test",
        ),
        event(id=uuid4(), sequence=5, latency_ms=7.0, wall_time=at, model_version=2),
    ]  # fmt: skip
    LogTable(settings, USECASE.name).append(rows([*batch, *more]))
    found = served(settings, USECASE)
    assert found[1] == Serving(requests=2, seconds=pytest.approx(0.035), predictions=4, production=3)
    assert found[2] == Serving(requests=1, seconds=pytest.approx(0.007), predictions=1, production=1)


def test_bytes_are_those_on_the_disk_by_room(tmp_path: Path):
    settings = Settings(home=tmp_path)
    assert table_bytes(settings, USECASE) == {}
    LogTable(settings, USECASE.name).append(rows([event(id=uuid4())]))
    folder = settings.lakehouse / USECASE.name / "monitoring" / "inference_log"
    on_disk = sum(path.stat().st_size for path in Path(str(folder)).rglob("*") if path.is_file())
    assert table_bytes(settings, USECASE) == {"monitoring": on_disk}
    assert stored_bytes(settings, f"{USECASE.name}/monitoring/inference_log") == on_disk > 0


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0.0 s"), (119.94, "119.9 s"), (120, "2.0 min"), (7199, "120.0 min"), (7200, "2.0 h")]
)
def test_seconds_have_a_unit_that_fits(value, shown):
    assert seconds(value) == shown


@pytest.mark.parametrize(("count", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (10**12, "1.0 TB")])
def test_bytes_have_a_unit_that_fits(count, shown):
    assert size(count) == shown
