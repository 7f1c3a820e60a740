"""Feature tables (hourly ticks, by dbt on Spark), then the feature store pinned to them."""

import json
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetsDefinition,
    BackfillPolicy,
    DataVersion,
    Definitions,
    MetadataValue,
    Output,
    PartitionMapping,
    ResourceParam,
    TimeWindowPartitionMapping,
    asset,
    map_asset_specs,
)
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, dbt_assets
from dagster_dbt.errors import DagsterDbtError

from assets.columns import held_columns, lineage_metadata, model_lineage
from assets.raw import GROUP as RAW
from assets.raw import daily, wall_clock_freshness
from assets.resources import as_of
from throughline.catalogue.features import Lineage, deprecations
from throughline.featurestore import dbt
from throughline.featurestore.incremental import Build, dbt_variables, model_code, models_of, plan_builds
from throughline.featurestore.layout import pin_sources
from throughline.foundation.fingerprint import combine, fingerprint_code
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.content import day_fingerprints
from throughline.lakehouse.spark import register_tables, unreachable, watched
from throughline.lakehouse.table import pin
from throughline.records import FeatureStoreRecord
from throughline.usecase import UseCase
from throughline.validation.findings import require_good_days

GROUP = "features"


def feature_assets(usecase: UseCase, settings: Settings) -> Definitions:
    manifest = dbt.manifest(settings)
    nodes = models_of(manifest, usecase).values()
    models = {node["name"]: node["description"] for node in nodes}
    seen_within = {node["name"]: timedelta(hours=node["config"]["meta"]["seen_within_hours"]) for node in nodes}
    lineage = model_lineage(settings, usecase, manifest)
    feature_store = _feature_store(usecase, models, lineage, seen_within)
    return Definitions(assets=[_dbt_models(usecase, manifest, lineage), feature_store])


class _Translator(DagsterDbtTranslator):
    """dbt's sources are the raw assets, its models the feature tables of their use case."""

    def __init__(self, usecase: UseCase, manifest: Mapping[str, Any]) -> None:
        super().__init__()
        self._usecase = usecase
        self._manifest = manifest
        models = models_of(manifest, usecase).values()
        self._seen_within_hours = max(node["config"]["meta"]["seen_within_hours"] for node in models)

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> AssetKey:
        layer = RAW if dbt_resource_props["resource_type"] == "source" else GROUP
        return AssetKey([self._usecase.name, layer, dbt_resource_props["name"]])

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        return GROUP

    def get_code_version(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        is_model = dbt_resource_props["resource_type"] == "model"
        return model_code(self._manifest, dbt_resource_props["unique_id"]) if is_model else None

    def get_partition_mapping(
        self, dbt_resource_props: Mapping[str, Any], dbt_parent_resource_props: Mapping[str, Any]
    ) -> PartitionMapping | None:
        """A day's features read source rows of that day and some before, and static tables whole."""
        if dbt_parent_resource_props["resource_type"] != "source":
            return None
        if self._usecase.sources.tables[dbt_parent_resource_props["name"]].static:
            return None
        # one mapping per source: that of the model with the longest look back
        return TimeWindowPartitionMapping(start_offset=-(self._seen_within_hours // 24 + 1))


def _dbt_models(usecase: UseCase, manifest: Mapping[str, Any], lineage: Lineage) -> AssetsDefinition:
    @dbt_assets(
        manifest=manifest,
        select=f"fqn:throughline_features.{usecase.name}",
        name=f"{usecase.name}_ticks",
        dagster_dbt_translator=_Translator(usecase, manifest),
        partitions_def=daily(usecase),
        backfill_policy=BackfillPolicy.single_run(),
    )
    def models(
        context: AssetExecutionContext, dbt_cli: DbtCliResource, settings: ResourceParam[Settings]
    ) -> Iterator[Any]:
        require_good_days(settings, usecase)
        register_tables(settings, usecase.name, RAW, usecase.sources.tables)
        pins = {name: pin(settings, f"{usecase.name}/{RAW}/{name}").version for name in usecase.sources.tables}
        requested = {date.fromisoformat(key) for key in context.partition_keys}
        builds = plan_builds(settings, usecase, manifest, pins, as_of(context, settings, usecase), requested)
        for name, build in builds.items():
            context.log.info(f"{name}: {build}")
        variables = dbt_variables(settings, usecase, pins, builds)
        target = settings.dbt_home / "runs" / context.run.run_id
        # dbt need not list the relations that exist: the builds say what to replace
        command = ["build", "--no-populate-cache", "--vars", json.dumps(variables)]
        building = dbt_cli.cli(command, context=context, target_path=target)
        with watched(settings.spark_url, on_lost=building.process.kill) as lost:
            from throughline.catalogue.definitions import column_descriptions  # postpones feast (4 s): dbt starts

            descriptions = column_descriptions(usecase)
            try:
                for event in building.stream():
                    if isinstance(event, Output):
                        key = context.asset_key_for_output(event.output_name)
                        name = key.path[-1]
                        build = builds[name]
                        held = pin(settings, "/".join(key.path))
                        digests = day_fingerprints(settings, held, {*build.days, *requested})
                        columns = held_columns(settings, held, descriptions.get(name, {}), lineage.get(name))
                        event = _with_origin(event, held, build, [digests[day] for day in sorted(requested)], columns)
                        yield from _also_built(key, {day: digests[day] for day in build.days if day not in requested})
                    yield event
            except DagsterDbtError as error:
                if lost.is_set():
                    raise unreachable(settings.spark_url) from error
                raise

    slowest = max(table.freshness for table in usecase.sources.tables.values() if table.freshness)
    return map_asset_specs(
        lambda spec: spec.replace_attributes(
            freshness_policy=wall_clock_freshness(slowest),
            owners=[f"team:{owner}" for owner in usecase.owners],
            kinds={"dbt", "spark", "deltalake"},
            metadata={**spec.metadata, **lineage_metadata(usecase, lineage.get(spec.key.path[-1], {}))},
        ),
        [models],
    )[0]


def _with_origin(
    event: Output, held: TableReference, build: Build, digests: list[str], columns: Mapping[str, Any]
) -> Output:
    """The event of a built model, with the table's version and the origin of its content."""
    return Output(
        value=event.value,
        output_name=event.output_name,
        data_version=DataVersion(combine(*digests)),
        metadata={
            **event.metadata,
            "delta_version": held.version,
            "read_versions": MetadataValue.json(build.origin.pins),
            "as_of": build.origin.as_of.isoformat(),
            "days_built": len(build.days),
            **columns,
        },
    )


def _also_built(key: AssetKey, digests: Mapping[date, str]) -> Iterator[AssetMaterialization]:
    """Days that were built because an input had changed, beside the requested ones."""
    for day, digest in digests.items():
        yield AssetMaterialization(
            key,
            partition=day.isoformat(),
            description="An input had changed.",
            tags={"dagster/data_version": combine(digest)},
        )


def _feature_store(
    usecase: UseCase, models: Mapping[str, str], lineage: Lineage, seen_within: Mapping[str, timedelta]
) -> AssetsDefinition:
    spine = usecase.features.spine
    ticks = sorted(set(models) - {spine})

    @asset(
        key=[usecase.name, GROUP, "feature_store"],
        group_name=GROUP,
        kinds={"feast"},
        deps=[AssetKey([usecase.name, GROUP, name]) for name in models],
        description="The Feast registry: every feature view on a pinned version of its ticks.",
        code_version=fingerprint_code([dbt.PROJECT / usecase.name / "definitions.py"]),
    )
    def feature_store(context: AssetExecutionContext, settings: ResourceParam[Settings]) -> Output[FeatureStoreRecord]:
        from throughline.catalogue.definitions import registered  # postpones feast (4 s)
        from throughline.featurestore.store import register

        sources = pin_sources(settings, usecase, ticks)
        register(settings, usecase, sources)
        views = registered(settings, usecase, sources, lineage, models)
        record = FeatureStoreRecord(
            usecase=usecase.name,
            as_of=as_of(context, settings, usecase),
            sources=sources,
            spine=pin(settings, f"{usecase.name}/{GROUP}/{spine}"),
            views=[view.model_copy(update={"seen_within": seen_within.get(view.table.name)}) for view in views],
        )
        for line in (warnings := deprecations(record.views)):
            context.log.warning(line)
        return Output(
            record,
            metadata={
                "versions": MetadataValue.json([str(s) for s in [*sources, record.spine]]),
                "features": sum(len(view.features) for view in record.views),
                **({"deprecated": MetadataValue.json(warnings)} if warnings else {}),
            },
        )

    return feature_store
