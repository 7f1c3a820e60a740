"""The online store (the newest row of every entity, for requests), and checks of its freshness and parity."""

from collections.abc import Iterator

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    Definitions,
    MetadataValue,
    Output,
    ResourceParam,
    TableRecord,
    asset,
    asset_check,
    multi_asset_check,
)

from assets.code import code_version
from assets.features import GROUP
from assets.resources import clock_now, record_of
from throughline.foundation.settings import Settings
from throughline.monitoring.freshness import judge_age
from throughline.records import FeatureStoreRecord, OnlineStoreRecord
from throughline.usecase import UseCase

SHOWN = 50


def online_assets(usecase: UseCase) -> Definitions:
    checks = [_parity(usecase), *([_freshness(usecase)] if usecase.online.freshness else [])]
    return Definitions(assets=[_online_store(usecase)], asset_checks=checks)


def _key(usecase: UseCase) -> AssetKey:
    return AssetKey([usecase.name, GROUP, "online_store"])


def _online_store(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=_key(usecase),
        group_name=GROUP,
        kinds={"feast"},
        description="The newest row of every entity, for requests.",
        ins={"feature_store": record_of(usecase, GROUP, "feature_store")},
        code_version=code_version(("assets.online", "throughline.featurestore.materialise")),
    )
    def online_store(
        context: AssetExecutionContext, settings: ResourceParam[Settings], feature_store: FeatureStoreRecord
    ) -> Output[OnlineStoreRecord]:
        from throughline.featurestore.materialise import materialise_until  # postpones feast (4 s)

        record, windows = materialise_until(settings, usecase, clock_now(settings, usecase))
        for view, window in windows.items():
            context.log.info(f"{view}: {window}")
        return Output(
            record,
            metadata={
                "until": record.until.isoformat(),
                "versions": MetadataValue.json([str(source) for source in record.sources]),
                "written": MetadataValue.json({view: str(window) for view, window in windows.items()}),
            },
        )

    return online_store


def _parity(usecase: UseCase) -> AssetChecksDefinition:
    sample = usecase.online.parity.entities

    @asset_check(
        name="online_equals_offline",
        asset=_key(usecase),
        description=f"Of {sample} entities of each view, requests and training sets get the same values.",
    )
    def parity(settings: ResourceParam[Settings]) -> AssetCheckResult:
        """Fails when a value differs, and when nothing was compared."""
        from throughline.featurestore.parity import check_parity  # postpones feast (4 s)

        views = check_parity(settings, usecase)
        different = [one for view in views for one in view.mismatches]
        shown = [
            TableRecord(
                {
                    "view": one.view,
                    "entity": ", ".join(map(str, one.entity.values())),
                    "feature": one.feature,
                    "online": str(one.online),
                    "offline": str(one.offline),
                }
            )
            for one in different[:SHOWN]
        ]
        return AssetCheckResult(
            passed=bool(views) and all(view.verdict == "equal" for view in views),
            metadata={
                **{view.view: f"{view.verdict}: {view.reason}" for view in views},
                "values": sum(view.values for view in views),
                "mismatches": len(different),
                **({"differences": MetadataValue.table(shown)} if shown else {}),
            },
        )

    return parity


def _freshness(usecase: UseCase) -> AssetChecksDefinition:
    limits = usecase.online.freshness
    specs = {
        view: AssetCheckSpec(
            f"{view}_fresh_on_the_data_clock",
            asset=_key(usecase),
            description=f"The newest row of {view} online happened at most {limit} before the data clock.",
        )
        for view, limit in limits.items()
    }

    @multi_asset_check(specs=list(specs.values()), name=f"{usecase.name}_online_freshness")
    def fresh(settings: ResourceParam[Settings]) -> Iterator[AssetCheckResult]:
        from throughline.featurestore.materialise import view_states  # postpones feast (4 s)

        now, states = clock_now(settings, usecase), view_states(settings, usecase)
        for view, limit in limits.items():
            state = states.get(view)
            verdict = judge_age(state.newest if state else None, limit, now)
            yield AssetCheckResult(
                check_name=specs[view].name,
                asset_key=_key(usecase),
                passed=verdict.fresh,
                metadata={
                    "newest": verdict.newest,
                    "known_at": state.known.isoformat() if state and state.known else "none",
                    "until": state.until.isoformat() if state else "none",
                    "reason": verdict.reason if state else f"no state of {view} is recorded online",
                },
            )

    return fresh
