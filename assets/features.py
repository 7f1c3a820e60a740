"""Features: hourly ticks by dbt on Spark, then the feature store pinned to them, then the online store."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    Definitions,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
    map_asset_specs,
)
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, dbt_assets
from dagster_dbt.errors import DagsterDbtError

from assets.raw import GROUP as RAW
from assets.raw import wall_clock_freshness
from assets.resources import as_of, clock_now, dbt_executable, record_of
from throughline.errors import ThroughlineError
from throughline.experiment.fingerprint import fingerprint_code
from throughline.featurestore import store
from throughline.lakehouse.spark import register_tables, schema_name, unreachable, watched
from throughline.lakehouse.table import pin
from throughline.records import FeatureStoreRecord, OnlineStoreRecord
from throughline.settings import PROJECT_ROOT, Settings
from throughline.usecase import UseCase

GROUP = "features"
PROJECT = PROJECT_ROOT / "features"


def feature_assets(usecase: UseCase, settings: Settings) -> Definitions:
    manifest = json.loads(dbt_manifest(settings).read_text())
    models = [
        node["name"]
        for node in manifest["nodes"].values()
        if node["resource_type"] == "model" and node["fqn"][1] == usecase.name
    ]
    ticks = sorted(set(models) - {usecase.features.spine})
    return Definitions(
        assets=[
            _dbt_models(usecase, manifest),
            _feature_store(usecase, ticks),
            _online_store(usecase),
        ]
    )


class _Translator(DagsterDbtTranslator):
    """dbt's names in the house's: sources are the raw assets, models the features of their use case."""

    def __init__(self, usecase: UseCase) -> None:
        super().__init__()
        self._usecase = usecase.name

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> AssetKey:
        layer = RAW if dbt_resource_props["resource_type"] == "source" else GROUP
        return AssetKey([self._usecase, layer, dbt_resource_props["name"]])

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        return GROUP


def _dbt_models(usecase: UseCase, manifest: Mapping[str, Any]) -> AssetsDefinition:
    @dbt_assets(
        manifest=manifest,
        select=f"fqn:throughline_features.{usecase.name}",
        name=f"{usecase.name}_ticks",
        dagster_dbt_translator=_Translator(usecase),
    )
    def models(context: AssetExecutionContext, dbt: DbtCliResource, settings: ResourceParam[Settings]) -> Iterator[Any]:
        register_tables(settings, usecase.name, RAW, usecase.sources.tables)
        pins = {name: pin(settings, f"{usecase.name}/{RAW}/{name}").version for name in usecase.sources.tables}
        known_until = as_of(context, settings, usecase)
        variables = {
            "spark_remote": settings.spark_url,
            "lakehouse": str(settings.lakehouse),
            "as_of": known_until.strftime("%Y-%m-%d %H:%M:%S"),
            "lead_seconds": int(usecase.prediction.lead.total_seconds()),
            "pins": {f"{schema_name(usecase.name, RAW)}.{name}": version for name, version in pins.items()},
        }
        target = settings.dbt_home / "runs" / context.run.run_id
        building = dbt.cli(["build", "--vars", json.dumps(variables)], context=context, target_path=target)
        with watched(settings, on_lost=building.process.kill) as lost:
            try:
                for event in building.stream():
                    if isinstance(event, Output):
                        event = _with_versions(event, context, settings, pins, known_until)
                    yield event
            except DagsterDbtError as error:
                if lost.is_set():
                    raise unreachable(settings) from error
                raise

    slowest = max(table.freshness for table in usecase.sources.tables.values() if table.freshness)
    return map_asset_specs(
        lambda spec: spec.replace_attributes(
            freshness_policy=wall_clock_freshness(slowest),
            owners=[f"team:{owner}" for owner in usecase.owners],
            kinds={"dbt", "spark", "deltalake"},
        ),
        [models],
    )[0]


def _with_versions(
    event: Output, context: AssetExecutionContext, settings: Settings, pins: Mapping[str, int], known_until: datetime
) -> Output:
    """The event of a built model, with the version it wrote and the versions it read."""
    key = context.asset_key_for_output(event.output_name)
    return Output(
        value=event.value,
        output_name=event.output_name,
        data_version=event.data_version,
        metadata={
            **event.metadata,
            "delta_version": pin(settings, "/".join(key.path)).version,
            "read_versions": MetadataValue.json(dict(pins)),
            "as_of": known_until.isoformat(),
        },
    )


def _feature_store(usecase: UseCase, ticks: list[str]) -> AssetsDefinition:
    spine = usecase.features.spine

    @asset(
        key=[usecase.name, GROUP, "feature_store"],
        group_name=GROUP,
        kinds={"feast"},
        deps=[AssetKey([usecase.name, GROUP, name]) for name in [*ticks, spine]],
        description="The Feast registry: every feature view on a pinned version of its ticks.",
        code_version=fingerprint_code([PROJECT / usecase.name / "definitions.py"]),
    )
    def feature_store(context: AssetExecutionContext, settings: ResourceParam[Settings]) -> Output[FeatureStoreRecord]:
        sources = [pin(settings, f"{usecase.name}/{GROUP}/{name}") for name in ticks]
        record = FeatureStoreRecord(
            usecase=usecase.name,
            as_of=as_of(context, settings, usecase),
            sources=sources,
            spine=pin(settings, f"{usecase.name}/{GROUP}/{spine}"),
        )
        store.register(settings, usecase, sources)
        return Output(record, metadata={"versions": MetadataValue.json([str(s) for s in [*sources, record.spine]])})

    return feature_store


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


def dbt_manifest(settings: Settings) -> Path:
    """The project's manifest, parsed anew when a file of the project changed. Raises with dbt's own last words."""
    project = [PROJECT / part for part in ("dbt_project.yml", "profiles.yml", "models", "macros", "tests")]
    target = settings.dbt_home / "manifests" / fingerprint_code(project)
    manifest = target / "manifest.json"
    if manifest.exists():
        return manifest
    parsing = target.with_name(f"{target.name}.{os.getpid()}")
    done = subprocess.run(
        [dbt_executable(), "parse", "--project-dir", PROJECT, "--profiles-dir", PROJECT,
         "--target-path", parsing, "--log-path", parsing],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ThroughlineError(f"The dbt project in features/ does not parse: {' '.join(done.stdout.split()[-60:])}")
    with contextlib.suppress(OSError):  # another process parsed the same files meanwhile
        parsing.rename(target)
    return manifest
