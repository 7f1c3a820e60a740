"""Deployment: the endpoint serves what the gate released, and nothing else.

Who is champion, and in which order that changes, is `throughline.rollout.promotion`.
"""

from collections.abc import Iterator

from dagster import (
    AssetExecutionContext,
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
from throughline.evaluation.gate import former_champion
from throughline.foundation import tags
from throughline.foundation.settings import Settings
from throughline.records import EndpointRecord, GateDecision, ModelRecord, OnlineStoreRecord
from throughline.registry.versions import page
from throughline.rollout.promotion import release, restore
from throughline.usecase import UseCase

GROUP = "deployment"


def deployment_assets(usecase: UseCase) -> Definitions:
    return Definitions(assets=[_endpoint(usecase)])


def _endpoint(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "endpoint"],
        group_name=GROUP,
        kinds={"kserve", "onnx"},
        description="The live endpoint: REST V1, V2 and gRPC. A candidate that is not released leaves it as it is.",
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
        if model.reference in line.former:
            context.log.warning(f"{model.reference} is not released: {former_champion(model).bound}")
            return
        if gate.decision != "release" and gate.model == model.reference:
            context.log.warning(f"{model.reference} is not released ({gate.decision}): {gate.failures}")
            return
        reason = "; ".join(["released by the gate", *filter(None, [context.run.tags.get(tags.CAUSE)])])
        record = release(settings, usecase, model, gate, reason)
        yield Output(
            record,
            data_version=DataVersion(record.sha256),
            metadata={
                "model": str(record.model),
                "mlflow": MetadataValue.url(page(settings, model)),
                "revision": record.revision,
                "sha256": record.sha256,
                "gate": f"{gate.decision} at {gate.decided_at.isoformat()}",
                "address": record.address,
                "features_until": online_store.until.isoformat(),
            },
        )

    return endpoint
