"""Rollouts: the sensor that looks at a rollout under way, and what it shows of each step.

Owns: when Dagster looks, the events of a rollout in the graph. Does not own: a look (`throughline.rollout.controller`).
"""

import base64

from dagster import (
    AssetKey,
    AssetMaterialization,
    AssetSpec,
    DefaultSensorStatus,
    Definitions,
    MetadataValue,
    ResourceParam,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from assets.code import code_version
from assets.deployment import GROUP, endpoint_key, endpoint_metadata
from assets.evaluation import GROUP as EVALUATION
from throughline.foundation.clock import WallClock
from throughline.foundation.settings import Settings
from throughline.records import EndpointRecord
from throughline.records.store import find_record
from throughline.rollout.controller import tick
from throughline.rollout.picture import headline, picture
from throughline.rollout.state import Rollout, Step, read_rollout
from throughline.usecase import UseCase

DATA_VERSION = "dagster/data_version"  # the tag by which Dagster finds the data version of an event


def rollouts(usecase: UseCase) -> Definitions:
    return Definitions(assets=[_rollout(usecase)], sensors=[rollout_sensor(usecase)])


def rollout_key(usecase: UseCase) -> AssetKey:
    return AssetKey([usecase.name, GROUP, "rollout"])


def _rollout(usecase: UseCase) -> AssetSpec:
    """Not materialised by runs: a rollout lasts longer than one, and goes on without one."""
    return AssetSpec(
        rollout_key(usecase),
        deps=[AssetKey([usecase.name, EVALUATION, "gate"])],
        group_name=GROUP,
        kinds={"kserve"},
        description="The newest rollout: an event for each of its steps, with its shares and the evidence over time.",
        code_version=code_version(("throughline.rollout.strategy", "throughline.rollout.judge"), usecase.release),
    )


def rollout_sensor(usecase: UseCase) -> SensorDefinition:
    """Look at the rollout that is under way, and show each of its steps once, whoever looked meanwhile."""

    @sensor(
        name=f"{usecase.name}_rollout",
        asset_selection=[rollout_key(usecase)],
        minimum_interval_seconds=10,
        default_status=DefaultSensorStatus.RUNNING,
        description=rollout_sensor.__doc__,
    )
    def rollout(context: SensorEvaluationContext, settings: ResourceParam[Settings]) -> SensorResult | SkipReason:
        newest = read_rollout(settings, usecase.name)
        if newest is None:
            return SkipReason("there was no rollout yet")
        if newest.running:
            newest = tick(settings, usecase) or newest
        shown = _shown(context.cursor, newest)
        if shown == len(newest.steps) and not newest.running:
            return SkipReason(f"no rollout is under way; the last one was {newest.outcome}")
        events = [_event(usecase, newest, step) for step in newest.steps[shown:]]
        if newest.outcome == "promoted" and newest.ended_at is not None:
            events += _served(settings, usecase)
        reason = None if events else SkipReason(headline(newest, WallClock().now()))
        # an outcome that is not carried out yet is shown when it is
        steps = len(newest.steps)
        return SensorResult(asset_events=events, skip_reason=reason, cursor=f"{newest.rollout}:{steps}")

    return rollout


def _shown(cursor: str | None, rollout: Rollout) -> int:
    """How many steps of this rollout were shown."""
    known, _, steps = (cursor or "").partition(":")
    return int(steps) if known == rollout.rollout else 0


def _event(usecase: UseCase, rollout: Rollout, step: Step) -> AssetMaterialization:
    image = base64.b64encode(picture(rollout)).decode()
    return AssetMaterialization(
        rollout_key(usecase),
        description=f"{rollout.model.reference}: {step.what}",
        metadata={
            "rollout": rollout.rollout,
            "strategy": rollout.plan.strategy,
            "candidate": str(rollout.model.reference),
            "stable": str(rollout.stable.model),
            "share": step.share,
            "at": step.at.isoformat(),
            "why": step.why or "-",
            "requests": rollout.evidence.requests,
            "replayed": rollout.evidence.replayed,
            "evidence": MetadataValue.md(f"![shares and evidence over time](data:image/png;base64,{image})"),
        },
    )


def _served(settings: Settings, usecase: UseCase) -> list[AssetMaterialization]:
    """The endpoint with its new version."""
    record = find_record(settings, tuple(endpoint_key(usecase).path), EndpointRecord)
    if record is None:
        return []
    return [
        AssetMaterialization(
            endpoint_key(usecase), metadata=endpoint_metadata(record), tags={DATA_VERSION: record.sha256}
        )
    ]
