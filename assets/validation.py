"""The asset checks of raw tables: which ones a table has, and verdicts as their results.

Owns: their names and texts. Does not own: verdicts (`throughline.validation`), what a bad day stops (`raw.py`).
"""

from collections.abc import Iterator

from dagster import AssetCheckResult, AssetCheckSeverity, AssetCheckSpec, AssetKey, MetadataValue

from throughline.ingestion.ingest import Ingested
from throughline.usecase import SourceTable
from throughline.validation.drift import DriftVerdict
from throughline.validation.judge import DayVerdict, Verdict, worst

CHECKS = {
    "schema": "The columns and types are those declared.",
    "rows": "At most the declared share of rows breaks a rule (null, range, values, pattern); they are in quarantine.",
    "unique_key": "At most the declared share of rows repeats a key of the day; they are in quarantine.",
    "volume": "A day has as many rows as declared.",
    "distribution": "The newest days are distributed as those of the training dataset. Warns only.",
}
DISTRIBUTION = "distribution"
LISTED = 20


def check_specs(key: AssetKey, table: SourceTable) -> list[AssetCheckSpec]:
    """The checks of a raw table: none without declared expectations, `distribution` only with declared drift."""
    if table.expects is None:
        return []
    names = [name for name in CHECKS if name != DISTRIBUTION or table.expects.drift]
    return [AssetCheckSpec(name, asset=key, description=CHECKS[name]) for name in names]


def check_results(key: AssetKey, table: SourceTable, written: Ingested) -> Iterator[AssetCheckResult]:
    """A result per check over all days of an ingestion: ERROR where a day is refused, WARN where one is doubtful."""
    for spec in check_specs(key, table):
        if spec.name != DISTRIBUTION:
            yield _aspect(key, spec.name, written)
        elif written.drift is not None:
            yield _distribution(key, written.drift)


def _aspect(key: AssetKey, aspect: str, written: Ingested) -> AssetCheckResult:
    days = list(written.judgement.days.values())
    judged = [(day, verdict) for day in days for verdict in day.verdicts if verdict.aspect == aspect]
    notable = [(day, verdict) for day, verdict in judged if verdict.result != "pass"]
    results = {verdict.result for _, verdict in notable}
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
        passed=bool(judged) and results <= {"cannot_say"},
        severity=AssetCheckSeverity.ERROR if "fail" in results else AssetCheckSeverity.WARN,
        description=description,
        metadata={
            "days": len(days),
            "days_refused": sum(verdict.result == "fail" for _, verdict in notable),
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


def _distribution(key: AssetKey, drift: DriftVerdict) -> AssetCheckResult:
    lines = [f"| {column} | {value:.3f} |" for column, value in drift.psi.items()]
    table = "\n".join(["| column | population stability index |", "|---|---|", *lines])
    return AssetCheckResult(
        asset_key=key,
        check_name=DISTRIBUTION,
        passed=drift.result != "warn",
        severity=AssetCheckSeverity.WARN,
        description=f"cannot say: {drift.detail}" if drift.result == "cannot_say" else drift.detail,
        metadata={"verdict": drift.result, **({"columns": MetadataValue.md(table)} if lines else {})},
    )


def _table(notable: list[tuple[DayVerdict, Verdict]]) -> str:
    lines = [f"| {day.day} | {verdict.result} | {verdict.detail} |" for day, verdict in notable[:LISTED]]
    return "\n".join(["| day | verdict | why |", "|---|---|---|", *lines])
