"""The catalogue in the graph: the profile of every feature, who uses it, how often it was read.

It reads whole tables, so it is materialised once a night and by `throughline run`, not with every day of data.
"""

from collections.abc import Iterable

from dagster import (
    AssetKey,
    AssetsDefinition,
    AssetSelection,
    DefaultScheduleStatus,
    Definitions,
    MaterializeResult,
    MetadataValue,
    ResourceParam,
    ScheduleDefinition,
    TableRecord,
    asset,
    define_asset_job,
)

from assets.features import GROUP
from assets.resources import clock_now, record_of
from throughline.catalogue.features import Entry, read_catalogue
from throughline.featurestore.profile_page import TEMPLATE, write_pages
from throughline.foundation.fingerprint import fingerprint_code
from throughline.foundation.settings import Settings
from throughline.records import FeatureStoreRecord
from throughline.usecase import UseCase

EVERY_NIGHT = "0 4 * * *"  # UTC


def profile_key(usecase: UseCase) -> AssetKey:
    return AssetKey([usecase.name, GROUP, "profile"])


def catalogue_assets(usecase: UseCase) -> Definitions:
    """The profile of a use case's features, and its nightly schedule."""
    job = define_asset_job(
        f"{usecase.name}_profile", AssetSelection.assets(profile_key(usecase)), description=catalogue_assets.__doc__
    )
    nightly = ScheduleDefinition(job=job, cron_schedule=EVERY_NIGHT, default_status=DefaultScheduleStatus.RUNNING)
    return Definitions(assets=[_profile(usecase)], jobs=[job], schedules=[nightly])


def _profile(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=profile_key(usecase),
        group_name=GROUP,
        kinds={"polars"},
        owners=[f"team:{owner}" for owner in usecase.owners],
        description="A page of plots per pinned table, and the catalogue: each feature, who uses it, how often.",
        code_version=fingerprint_code(
            [
                "throughline.featurestore.profile",
                "throughline.featurestore.profile_page",
                "throughline.catalogue.features",
                TEMPLATE,
            ]
        ),
        ins={"feature_store": record_of(usecase, GROUP, "feature_store")},
    )
    def profile(settings: ResourceParam[Settings], feature_store: FeatureStoreRecord) -> MaterializeResult:
        pages = write_pages(settings, feature_store)
        catalogue = read_catalogue(settings, usecase, feature_store, clock_now(settings, usecase))
        features = [entry for entry in catalogue if entry.kind == "feature"]
        return MaterializeResult(
            metadata={
                "features": MetadataValue.table(_rows(features)),
                **{table.name: MetadataValue.path(page) for table, page in pages.items()},
            }
        )

    return profile


def _rows(features: Iterable[Entry]) -> list[TableRecord]:
    return [
        TableRecord(
            {
                "feature": entry.name,
                "fresh": {True: "yes", False: "no", None: "no limit"}[entry.freshness.fresh],
                "reads": entry.reads,
                "models": "unknown" if entry.models is None else ", ".join(map(str, entry.models)) or "none",
                "description": f"deprecated: {entry.deprecated}" if entry.deprecated else entry.description,
                "unit": entry.tags.get("unit", ""),
                "table": f"{entry.table.name}@{entry.table.version}",
            }
        )
        for entry in features
    ]
