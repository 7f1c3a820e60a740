"""Online: what requests read. The newest tick of every entity, as it was pinned."""

from dagster import AssetExecutionContext, AssetsDefinition, Definitions, Output, ResourceParam, asset

from assets.features import GROUP
from assets.resources import clock_now, record_of
from throughline.featurestore import store
from throughline.records import FeatureStoreRecord, OnlineStoreRecord
from throughline.settings import Settings
from throughline.usecase import UseCase


def online_assets(usecase: UseCase) -> Definitions:
    return Definitions(assets=[_online_store(usecase)])


def _online_store(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "online_store"],
        group_name=GROUP,
        kinds={"feast", "sqlite"},
        description="The newest tick of every entity, for requests.",
        ins={"feature_store": record_of(usecase, GROUP, "feature_store")},
        code_version="1",
    )
    def online_store(
        context: AssetExecutionContext, settings: ResourceParam[Settings], feature_store: FeatureStoreRecord
    ) -> Output[OnlineStoreRecord]:
        until = clock_now(settings, usecase)
        store.materialise(settings, usecase, store.EPOCH, until)
        record = OnlineStoreRecord(usecase=usecase.name, until=until, sources=feature_store.sources)
        return Output(record, metadata={"until": until.isoformat()})

    return online_store
