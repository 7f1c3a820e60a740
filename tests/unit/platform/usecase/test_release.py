"""The plan of a rollout: what may be declared, and which plans are refused when the declaration is loaded."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from throughline.usecase.release import AB, Canary, Direct, Release, ShadowCanary

PLAN: TypeAdapter[Any] = TypeAdapter(Release)


def plan(**fields):
    return PLAN.validate_python(fields)


def test_each_strategy_has_defaults_that_work():
    assert isinstance(plan(strategy="direct"), Direct)
    canary = plan(strategy="canary")
    assert isinstance(canary, Canary)
    assert canary.steps[-1] < 1
    assert canary.deadline > canary.least == timedelta(minutes=3)
    assert isinstance(plan(strategy="shadow_canary", steps=[0.5]), ShadowCanary)
    assert isinstance(plan(strategy="ab", duration="30m", sticky="carrier"), AB)
    assert plan(strategy="blue_green", dwell="5s").dwell == timedelta(seconds=5)


def test_by_default_every_metric_is_judged_at_a_false_alarm_rate_of_one_in_a_hundred():
    judge = plan(strategy="canary").judge
    assert list(judge.tolerances) == ["errors", "latency", "scores", "evaluation", "outcomes"]
    assert judge.false_alarm == 0.01


@pytest.mark.parametrize("strategy", ["canary", "blue_green", "shadow_canary"])
def test_a_plan_without_a_metric_is_refused(strategy):
    none = dict.fromkeys(["errors", "latency", "scores", "evaluation"])
    with pytest.raises(ValidationError, match="a rollout needs a metric"):
        plan(strategy=strategy, judge=none)
    assert plan(strategy=strategy, judge=none | {"errors": {"tolerance": 0.1}})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"strategy": "canary", "steps": [0.5, 0.5]}, "each must be larger"),
        ({"strategy": "canary", "steps": []}, "at least 1 item"),
        ({"strategy": "canary", "steps": [0.5, 1.0]}, "less than 1"),
        ({"strategy": "canary", "steps": [float("nan")]}, "less than 1"),
        ({"strategy": "canary", "dwell": "30m"}, "deadline: 1:00:00 does not exceed"),
        ({"strategy": "ab", "duration": "2h", "sticky": "carrier"}, "deadline"),
        ({"strategy": "ab", "duration": "30m"}, "sticky"),
        ({"strategy": "ab", "duration": "30m", "sticky": "carrier", "judge": {"outcomes": None}}, "judge.outcomes"),
        ({"strategy": "direct", "steps": [0.5]}, "Extra inputs"),
        ({"strategy": "canary", "judge": {"errors": {"tolerance": -0.1}}}, "greater than or equal to 0"),
        ({"strategy": "canary", "judge": {"false_alarm": 0}}, "greater than 0"),
        ({"strategy": "canary", "samples": 0}, "greater than or equal to 20"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(fields, reason):
    with pytest.raises(ValidationError, match=reason):
        plan(**fields)
