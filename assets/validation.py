"""Validation as people see it in the graph: which checks a raw table has, and a verdict as a check's result.

Owns: names, words and tables. Does not own: any verdict (`throughline.validation`), or what a bad day stops (`raw.py`).
"""

from collections.abc import Iterator

from dagster import AssetCheckResult, AssetCheckSeverity, AssetCheckSpec, AssetKey, MetadataValue

from throughline.ingestion.ingest import Ingested
from throughline.usecase import SourceTable
from throughline.validation.judge import DayVerdict, Verdict, worst

CHECKS = {
    "schema": "The columns and types that are declared, and no others.",
    "rows": "Rows break no rule (null, range, allowed values, pattern); those that do are in quarantine, and are few.",
    "unique_key": "The key is unique within a day; repeated rows are in quarantine, and are few.",
    "volume": "A day has as many rows as declared.",
    "distribution": "The newest days are distributed as those of the training dataset. Warns only: seasons pass.",
}
DISTRIBUTION = "distribution"
LISTED = 20


def check_specs(key: AssetKey, table: SourceTable) -> list[AssetCheckSpec]:
    """The checks of a raw table: none when nothing is expected of it, `distribution` only where it is declared."""
    if table.expects is None:
        return []
    names = [name for name in CHECKS if name != DISTRIBUTION or table.expects.drift]
    return [AssetCheckSpec(name, asset=key, description=CHECKS[name]) for name in names]


def check_results(key: AssetKey, table: SourceTable, written: Ingested) -> Iterator[AssetCheckResult]:
    """A result per check over all days of an ingestion: ERROR where a day is refused, WARN where one is doubtful."""
    for spec in check_specs(key, table):
        yield _distribution(key, written) if spec.name == DISTRIBUTION else _aspect(key, spec.name, written)


def _aspect(key: AssetKey, aspect: str, written: Ingested) -> AssetCheckResult:
    days = list(written.judgement.days.values())
    judged = [(day, verdict) for day in days for verdict in day.verdicts if verdict.aspect == aspect]
    notable = [(day, verdict) for day, verdict in judged if verdict.outcome != "pass"]
    outcomes = {verdict.outcome for _, verdict in notable}
    if not judged:
        description = "cannot say: the columns are not as declared"
    elif notable:
        day, verdict = notable[0]
        description = f"{len(notable)} of {len(days)} days, the first {day.day}: {verdict.detail}"
    else:
        description = f"{len(days)} days"
    return AssetCheckResult(
        asset_key=key,
        check_name=aspect,
        passed=bool(judged) and outcomes <= {"cannot_say"},
        severity=AssetCheckSeverity.ERROR if "fail" in outcomes else AssetCheckSeverity.WARN,
        description=description,
        metadata={
            "days": len(days),
            "days_refused": sum(verdict.outcome == "fail" for _, verdict in notable),
            **(_row_counts(days, written) if aspect == "rows" else {}),
            **({"verdicts": MetadataValue.md(_table(notable))} if notable else {}),
        },
    )


def _row_counts(days: list[DayVerdict], written: Ingested) -> dict[str, MetadataValue]:
    bad = [day for day in days if day.bad]
    lines = [f"| {day.day} | {day.rows} | {day.bad} |" for day in sorted(bad, key=lambda day: -day.bad)[:LISTED]]
    return {
        "rows_delivered": MetadataValue.int(sum(day.rows for day in days)),
        "rows_bad": MetadataValue.int(sum(day.bad for day in bad)),
        "rows_quarantined": MetadataValue.int(written.judgement.quarantined.height),
        "quarantine": MetadataValue.text(str(written.quarantine or "empty")),
        "worst": MetadataValue.text(worst(written.judgement.quarantined) or "none"),
        **({"bad_rows": MetadataValue.md("\n".join(["| day | rows | bad |", "|---|---|---|", *lines]))} if bad else {}),
    }


def _distribution(key: AssetKey, written: Ingested) -> AssetCheckResult:
    drift = written.drift
    lines = [f"| {column} | {value:.3f} |" for column, value in drift.psi.items()]
    table = "\n".join(["| column | population stability index |", "|---|---|", *lines])
    return AssetCheckResult(
        asset_key=key,
        check_name=DISTRIBUTION,
        passed=drift.outcome != "warn",
        severity=AssetCheckSeverity.WARN,
        description=f"cannot say: {drift.detail}" if drift.outcome == "cannot_say" else drift.detail,
        metadata={"verdict": drift.outcome, **({"columns": MetadataValue.md(table)} if lines else {})},
    )


def _table(notable: list[tuple[DayVerdict, Verdict]]) -> str:
    lines = [f"| {day.day} | {verdict.outcome} | {verdict.detail} |" for day, verdict in notable[:LISTED]]
    return "\n".join(["| day | verdict | why |", "|---|---|---|", *lines])
