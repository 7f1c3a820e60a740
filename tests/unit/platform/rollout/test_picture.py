"""A rollout as people see it."""

from __future__ import annotations

from datetime import timedelta

from tests.support.rollouts import START, a_rollout, serving, verdict
from throughline.rollout.picture import fields_of, headline, picture, state_of
from throughline.rollout.strategy import decided, desired, finished, paused, stepped

CANARY = {"strategy": "canary", "steps": [0.1, 0.5], "dwell": "10s", "deadline": "2m"}
PNG = b"\x89PNG"


def test_a_headline_has_versions_stage_verdict_and_deadline():
    rollout = a_rollout(**CANARY)
    rollout = stepped(rollout, verdict("hold", "errors: many"), serving(desired(rollout)), START + timedelta(seconds=5))
    line = headline(rollout, START + timedelta(seconds=20))
    assert line == "shop/2 beside shop/1: running, stage 1 of 2, canary 10%, hold: errors: many; 100 s to the deadline"
    waiting = paused(rollout, "ada", START + timedelta(seconds=30))
    assert "paused" in headline(waiting, START + timedelta(hours=1))
    assert "90 s to the deadline" in headline(waiting, START + timedelta(hours=1))


def test_an_outcome_is_being_carried_out_until_it_is_final():
    over = decided(a_rollout(**CANARY), "rolled_back", "errors: many", START)
    assert state_of(over) == "rolled back, being carried out"
    assert headline(finished(over, START), START) == "shop/2 beside shop/1: rolled back: errors: many"


def test_the_fields_are_plain_json():
    fields = fields_of(a_rollout(**CANARY))
    assert (fields["state"], fields["candidate"], fields["stable"]) == ("running", "shop/2", "shop/1")
    assert (fields["stage"], fields["stages"], fields["share"], fields["verdict"]) == (1, 2, 0.1, None)
    assert fields["started_at"] == "2026-01-01T00:00:00Z"


def test_a_picture_can_be_drawn_from_the_first_moment_on():
    rollout = a_rollout(**CANARY)
    assert picture(rollout).startswith(PNG)
    assert picture(stepped(rollout, verdict("cannot_say"), (), START)).startswith(PNG)
