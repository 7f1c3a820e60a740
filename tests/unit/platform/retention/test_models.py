"""An old model version that nothing needs is removed; where that is unclear, it stays."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from deltalake import write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from throughline.events.schema import LOG_SCHEMA
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.records import EndpointRecord, ModelRecord
from throughline.records.store import save_record
from throughline.registry.history import append, event_of
from throughline.retention.models import ROLLBACKS, pins, removable
from throughline.rollout.revision import only, revision_of, write_revisions

NOW = datetime(2024, 11, 20, tzinfo=UTC)
DAY = timedelta(days=1)
NUMBERS = st.integers(1, 30)


def model(version: int) -> ModelRecord:
    return ModelRecord(
        name="shop", version=version, run_id="r", sha256="d" * 64, uri="/u", dataset_fingerprint="f", trained_until=NOW,
        trainer="own", parameters={},
    )  # fmt: skip


@given(st.sets(NUMBERS), st.dictionaries(st.sampled_from("abc"), NUMBERS), st.sets(NUMBERS), st.integers(1, 40))
def test_removable_versions_are_old_without_alias_and_not_pinned(versions, aliases, pinned, keep_last) -> None:
    going = removable(versions, aliases, pinned, keep_last)
    newest = sorted(versions)[-keep_last:]
    assert going == sorted(going)
    assert set(going) == versions - set(newest) - set(aliases.values()) - pinned


def test_keeping_no_version_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_last is 0"):
        removable([1, 2], {}, [], 0)


def test_nothing_is_pinned_in_a_home_where_nothing_happened(settings: Settings) -> None:
    assert pins(settings, "shop", NOW) == {}


def test_the_version_that_serves_is_pinned(settings: Settings) -> None:
    folder = settings.serving_home / "shop"
    folder.mkdir(parents=True)
    write_revisions(folder, only(revision_of("shop", model(3), NOW)))
    assert pins(settings, "shop", NOW) == {3: "served as v3-dddddddddddd"}
    (folder / "revisions.json").write_text("{")
    with pytest.raises(ThroughlineError, match=r"revisions\.json"):
        pins(settings, "shop", NOW)


def test_versions_that_a_record_names_are_pinned(settings: Settings) -> None:
    """Nothing but its record pins a candidate that waits for its approval."""
    endpoint = EndpointRecord(
        usecase="shop", model="shop/4", sha256="d" * 64, revision="v4", address="a", deployed_at=NOW
    )
    save_record(settings, ("shop", "deployment", "endpoint"), endpoint)
    save_record(settings, ("shop", "training", "model"), model(7))
    save_record(settings, ("toys", "training", "model"), model(9))  # another's
    assert set(pins(settings, "shop", NOW)) == {4, 7}
    (settings.records / "shop" / "training" / "model.json").write_text("{")
    with pytest.raises(ThroughlineError, match=r"model\.json.*no version is removed"):
        pins(settings, "shop", NOW)


def test_the_champion_and_those_a_rollback_returns_to_are_pinned(settings: Settings) -> None:
    for number in range(1, 8):
        append(settings, "shop", event_of("champion", "shop", "graph", new=f"shop/{number}"))
    assert set(pins(settings, "shop", NOW)) == set(range(7 - ROLLBACKS, 8))
    append(settings, "shop", event_of("withdrawn", "shop/7", "ada", old="shop/7", new="shop/6"))
    append(settings, "shop", event_of("champion", "shop", "ada", old="shop/7", new="shop/6"))
    assert set(pins(settings, "shop", NOW)) == set(range(6 - ROLLBACKS, 7))


def test_a_version_with_a_prediction_within_the_retention_is_pinned(settings: Settings) -> None:
    """By the wall clock: in a replay the data clock may be years behind."""
    ages = {1: 20 * DAY, 2: 13 * DAY, 3: 1 * DAY}
    rows = [
        {
            **dict.fromkeys(LOG_SCHEMA), "id": str(uuid.uuid4()), "time": datetime(2013, 4, 1, tzinfo=UTC),
            "wall_time": NOW - age, "model_name": "shop", "model_version": version, "day": datetime(2013, 4, 1).date(),
        }
        for version, age in ages.items()
    ]  # fmt: skip
    rows.append({**rows[-1], "model_name": "toys", "model_version": 9})
    table = settings.table_path("shop", "monitoring", "inference_log")
    write_deltalake(str(table), pl.DataFrame(rows, schema=LOG_SCHEMA).to_arrow())
    assert pins(settings, "shop", NOW) == dict.fromkeys([2, 3], "predicted in the last 14 days")
    assert set(pins(settings.model_copy(update={"retention_days": 30}), "shop", NOW)) == {1, 2, 3}
