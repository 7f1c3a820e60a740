"""Deployment: the endpoint serves what the gate released, and nothing else."""

from collections.abc import Iterator

from dagster import AssetExecutionContext, AssetsDefinition, DataVersion, Definitions, Output, ResourceParam, asset

from assets.evaluation import GROUP as EVALUATION
from assets.features import GROUP as FEATURES
from assets.resources import record_of
from assets.training import GROUP as TRAINING
from throughline.records import EndpointRecord, GateDecision, ModelRecord, OnlineStoreRecord
from throughline.registry.models import set_champion
from throughline.rollout.local import deploy
from throughline.settings import Settings
from throughline.usecase import UseCase

GROUP = "deployment"


def deployment_assets(usecase: UseCase) -> Definitions:
    return Definitions(assets=[_endpoint(usecase)])


def _endpoint(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "endpoint"],
        group_name=GROUP,
        kinds={"kserve", "onnx"},
        description="The live endpoint: REST V1, V2 and gRPC. A rejected candidate leaves what serves in place.",
        code_version="1",
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
        if gate.decision == "reject" and gate.model == model.reference:
            context.log.warning(f"{model.reference} is not released: {gate.failures}")
            return
        record = deploy(settings, usecase, model, gate)
        set_champion(settings, model)
        yield Output(
            record,
            data_version=DataVersion(record.sha256),
            metadata={
                "model": record.model,
                "revision": record.revision,
                "address": record.address,
                "features_until": online_store.until.isoformat(),
            },
        )

    return endpoint
