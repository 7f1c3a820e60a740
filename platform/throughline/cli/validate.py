"""`throughline validate infer | check`: draft expectations from a table version, or check one against its own."""

from __future__ import annotations

import sys
from typing import Any

import polars as pl
import typer
import yaml

from throughline.cli.arguments import AsJson, Table
from throughline.cli.output import emit, out
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings, load_settings
from throughline.lakehouse.table import DAY, pin, read
from throughline.usecase import get_usecase
from throughline.validation.infer import PLATFORM, draft, suspicions
from throughline.validation.judge import REASONS, Judgement, judge, worst

app = typer.Typer(no_args_is_help=True)


@app.callback()
def validate() -> None:
    """Expectations of raw tables: draft them, or check a version."""


@app.command()
def infer(pinned: Table, as_json: AsJson = False) -> None:
    """Draft the `expects` section of a declaration from the rows of a version. Review it before you paste it."""
    rows = _rows(load_settings(), pinned)
    try:
        expects = draft(rows)
    except ValueError as error:
        raise ThroughlineError(f"No draft from {pinned}: {str(error).splitlines()[0]}.") from error
    doubts = suspicions(rows)

    def human() -> None:
        lines = [f"# from {rows.height} rows of {pinned}; check these first:" if doubts else f"# from {pinned}"]
        lines += [f"#   {doubt}" for doubt in doubts]
        text = yaml.dump({"expects": expects}, Dumper=_Dumper, sort_keys=False, width=100)
        sys.stdout.write("\n".join(lines) + "\n" + text)

    emit(as_json, {"table": str(pinned), "rows": rows.height, "expects": expects, "suspicions": doubts}, human)


@app.command()
def check(pinned: Table, as_json: AsJson = False) -> None:
    """Check a version of a raw table against the expectations of its declaration; exit code 1 when it breaks them."""
    settings, declared = load_settings(), get_usecase(pinned.usecase)
    source = declared.sources.tables.get(pinned.name) if pinned.layer == "raw" else None
    if source is None or source.expects is None:
        expecting = [n for n, t in declared.sources.tables.items() if t.expects]
        raise ThroughlineError(
            f"Nothing is expected of {pinned.table}: `expects` is declared for {declared.name}/raw/"
            f"{{{', '.join(expecting)}}} (usecases/{declared.name}.yaml)."
        )
    rows, first = _rows(settings, pinned), declared.first_day(settings)
    if DAY not in rows.columns:
        rows = rows.with_columns(pl.lit(first).alias(DAY))
    content = rows.drop([column for column in PLATFORM if column != DAY and column in rows.columns])
    days = content[DAY].unique().sort().to_list()
    judgement = judge(content, source, days, first=first)
    result = _result(pinned, judgement)
    emit(as_json, result, lambda: _show(result))
    if not result["passed"]:
        raise typer.Exit(1)


def _result(pinned: TableReference, judgement: Judgement) -> dict[str, Any]:
    """Keys: `table`, `passed`, `days`, `rows`, `bad_rows`, `worst`, and under `verdicts` what did not pass, by day."""
    days = judgement.days.values()
    return {
        "table": str(pinned),
        "passed": bool(judgement.days) and all(day.accepted and not day.bad for day in days),
        "days": len(judgement.days),
        "rows": sum(day.rows for day in days),
        "bad_rows": sum(day.bad for day in days),
        "worst": worst(judgement.quarantined) if REASONS in judgement.quarantined.columns else "",
        "verdicts": [
            {"day": day.day.isoformat(), "aspect": v.aspect, "result": v.result, "detail": v.detail}
            for day in days
            for v in day.verdicts
            if v.result != "pass"
        ],
    }


def _show(result: dict[str, Any]) -> None:
    screen = out()
    screen.print(
        f"{result['table']}: {result['rows']:,} rows of {result['days']} days, {result['bad_rows']} of them bad",
        markup=False,
    )
    if result["worst"]:
        screen.print(f"  {result['worst']}", style="dim", markup=False)
    for verdict in result["verdicts"]:
        line = f"  {verdict['day']} {verdict['aspect']}: {verdict['result']}, {verdict['detail']}"
        screen.print(line, style="red" if verdict["result"] == "fail" else "yellow", markup=False)
    screen.print("as expected" if result["passed"] else "not as expected", style="green" if result["passed"] else "red")


def _rows(settings: Settings, pinned: TableReference) -> pl.DataFrame:
    newest = pin(settings, pinned.table)  # raises when there is no such table
    if pinned.version > newest.version:
        raise ThroughlineError(f"Table {pinned} does not exist yet: the newest version is {newest}.")
    return read(settings, pinned).collect()


class _Dumper(yaml.SafeDumper):
    """YAML as people write it: a rule per line, in braces."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> Any:
        leaf = all(not isinstance(value, dict) for value in mapping.values())
        return super().represent_mapping(tag, mapping, flow_style=leaf)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        return super().represent_sequence(tag, sequence, flow_style=True)
