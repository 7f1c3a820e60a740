"""Deployment: the endpoint serves what the gate released, and nothing else.

Who is champion, and in which order that changes, is `throughline.rollout.promotion`.
"""

from collections.abc import Iterator
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    DataVersion,
    Definitions,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
)

from assets.code import code_version
from assets.evaluation import GROUP as EVALUATION
from assets.features import GROUP as FEATURES
from assets.resources import record_of
from assets.training import GROUP as TRAINING
from throughline.foundation import tags
from throughline.foundation.settings import Settings
from throughline.records import EndpointRecord, GateDecision, ModelRecord, OnlineStoreRecord
from throughline.registry.versions import page
from throughline.rollout.promotion import not_again, release, restore
from throughline.rollout.state import Rollout
from throughline.usecase import UseCase

GROUP = "deployment"


def deployment_assets(usecase: UseCase) -> Definitions:
    return Definitions(assets=[_endpoint(usecase)])


def endpoint_key(usecase: UseCase) -> AssetKey:
    return AssetKey([usecase.name, GROUP, "endpoint"])


def endpoint_metadata(record: EndpointRecord) -> dict[str, Any]:
    """What an event of the endpoint shows of what serves."""
    return {
        "model": str(record.model),
        "revision": record.revision,
        "sha256": record.sha256,
        "address": record.address,
    }


def _endpoint(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=endpoint_key(usecase),
        group_name=GROUP,
        kinds={"kserve", "onnx"},
        description="The live endpoint: REST V1, V2 and gRPC. A candidate beside a champion waits for its rollout.",
        code_version=code_version(("assets.deployment", "throughline.rollout.promotion", "throughline.rollout.local")),
        output_required=False,
        ins={
            "model": record_of(usecase, TRAINING, "model"),
            "gate": record_of(usecase, EVALUATION, "gate"),
            "online_store": record_of(usecase, FEATURES, "online_store"),
        },
    )
    def endpoint(
        context: AssetExecutionContext,
        settings: ResourceParam[Settings],
        model: ModelRecord,
        gate: GateDecision,
        online_store: OnlineStoreRecord,
    ) -> Iterator[Output[EndpointRecord]]:
        line = restore(settings, usecase)
        if why_not := not_again(line, model):
            context.log.warning(f"{model.reference} is not released: {why_not}")
            return
        if gate.decision != "release" and gate.model == model.reference:
            context.log.warning(f"{model.reference} is not released ({gate.decision}): {gate.failures}")
            return
        reason = "; ".join(["released by the gate", *filter(None, [context.run.tags.get(tags.CAUSE)])])
        record = release(settings, usecase, model, gate, reason)
        if isinstance(record, Rollout):
            context.log.info(f"a rollout of {model.reference} is under way: throughline rollout show {usecase.name}")
            return
        more = {
            "mlflow": MetadataValue.url(page(settings, model)),
            "gate": f"{gate.decision} at {gate.decided_at.isoformat()}",
            "features_until": online_store.until.isoformat(),
        }
        yield Output(record, data_version=DataVersion(record.sha256), metadata=endpoint_metadata(record) | more)

    return endpoint
