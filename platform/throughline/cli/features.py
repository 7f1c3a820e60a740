"""`throughline features list | show NAME | search WORDS`: the catalogue of features on the terminal.

Owns: tables on the terminal, and the JSON of `--json`:
    show    one object: kind (feature or view), name, usecase, view, description, type, entity, owner, tags, deprecated
            (why, or null), replaced_by, services, table (TABLE@VERSION), upstream (raw TABLE.COLUMN), freshness
            (newest, age_s, allowed_s, fresh), models (NAME/VERSION; null: unknown, then models_unknown is the reason),
            reads, reads_from (the inference log as TABLE@VERSION), profile (a page of plots), features (of a view)
    list    {"clock": the instant of ages, "views": [objects], "features": [objects]}
    search  as list, of the entries found
Does not own: how entries are made (`throughline.catalogue.features`).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

import typer
from rich.markup import escape

from throughline.catalogue import features as catalogue
from throughline.catalogue.features import Entry
from throughline.cli.arguments import AsJson, OneUseCase
from throughline.cli.output import columns, emit, fields, listed, out
from throughline.foundation.clock import data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import load_settings
from throughline.records import FeatureStoreRecord
from throughline.records.store import find_record
from throughline.usecase import get_usecase, load_usecases

app = typer.Typer(no_args_is_help=True)


@app.callback()
def features() -> None:
    """The catalogue of features: list, show, search."""


@app.command("list")
def list_features(usecase: OneUseCase = None, as_json: AsJson = False) -> None:
    """All features, by feature view."""
    _emit(*_catalogue(usecase), as_json)


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS", help="All of them must occur.")],
    usecase: OneUseCase = None,
    as_json: AsJson = False,
) -> None:
    """Features and views in which all the words occur: name, description, tags, entity, owner, upstream columns."""
    entries, clock = _catalogue(usecase)
    found = catalogue.search(entries, words)
    _emit(found, clock, as_json)
    if not found and not as_json:
        nowhere = [word for word in words if not catalogue.search(entries, [word])]
        near = [name for word in nowhere for name in catalogue.nearest(entries, word)]
        hint = f" ({', '.join(nowhere)} occurs nowhere)" if nowhere else ""
        advice = f": similar names are {', '.join(near)}" if near else ""
        out().print(escape(f"No feature contains all of: {' '.join(words)}{hint}{advice}."))


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A feature or a feature view.")],
    usecase: OneUseCase = None,
    as_json: AsJson = False,
) -> None:
    """All about one feature, or one feature view."""
    entries, _ = _catalogue(usecase)
    entry = catalogue.find(entries, name)
    emit(as_json, entry.model_dump(mode="json"), lambda: _show(entry))


def _catalogue(usecase: str | None) -> tuple[list[Entry], datetime]:
    """The entries of one use case or of all, and the instant (data clock, UTC) of their ages."""
    settings = load_settings()
    declared = [get_usecase(usecase)] if usecase else list(load_usecases().values())
    entries: list[Entry] = []
    clocks = []
    for each in declared:
        record = find_record(settings, (each.name, "features", "feature_store"), FeatureStoreRecord)
        if record is None:
            continue
        clocks.append(data_clock(settings, each.clock_start(settings)).now())
        entries += catalogue.read_catalogue(settings, each, record, clocks[-1])
    if not entries:
        names = ", ".join(each.name for each in declared)
        raise ThroughlineError(f"No feature of {names} is registered in {settings.home}: run `throughline run`.")
    return entries, max(clocks)


def _emit(entries: list[Entry], clock: datetime, as_json: bool) -> None:
    kinds = {
        f"{kind}s": [entry.model_dump(mode="json") for entry in entries if entry.kind == kind]
        for kind in ("view", "feature")
    }
    emit(as_json, {"clock": clock.isoformat(), **kinds}, lambda: _show_many(entries))


def _show_many(entries: list[Entry]) -> None:
    screen = out()
    for group in _by_view(entries):
        first = group[0]
        about = f"@{first.table.version} · {', '.join(first.entity)} · {first.owner} · {_freshness(first)}"
        screen.print(f"\n[bold]{escape(first.view)}[/]  [dim]{escape(about)}[/]")
        table = columns("feature", "", "unit", "models", "reads", right=("models", "reads"), wrapped=("",))
        for entry in group:
            models = "unknown" if entry.models is None else str(len(entry.models))
            texts = (entry.name, _deprecation(entry) or entry.description, entry.tags.get("unit", ""))
            style = "yellow" if entry.deprecated else None
            table.add_row(*map(escape, texts), models, f"{entry.reads:,}", style=style)
        screen.print(table)


def _by_view(entries: list[Entry]) -> list[list[Entry]]:
    """The features by view; for a view without features among the entries, the view itself."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.usecase, entry.view), []).append(entry)
    return [[e for e in group if e.kind == "feature"] or group for group in groups.values()]


def _freshness(entry: Entry) -> str:
    """Age of the newest row, and the declared limit."""
    freshness = entry.freshness
    if freshness.age_s is None:
        return "no row yet"
    age = f"{_span(freshness.age_s)} old"
    if freshness.allowed_s is None:
        return age
    return f"{'' if freshness.fresh else 'STALE: '}{age}, {_span(freshness.allowed_s)} allowed"


def _span(seconds: float) -> str:
    span = timedelta(seconds=round(seconds))
    if span < timedelta(hours=1):
        return f"{span.seconds // 60} min"
    if span < timedelta(days=2):
        return f"{span / timedelta(hours=1):.3g} h"
    return f"{span / timedelta(days=1):.3g} days"


def _deprecation(entry: Entry) -> str | None:
    if entry.deprecated is None:
        return None
    return f"deprecated: {entry.deprecated}" + (f"; use {entry.replaced_by}" if entry.replaced_by else "")


def _show(entry: Entry) -> None:
    newest = f"{entry.freshness.newest.isoformat()}, " if entry.freshness.newest else ""
    lines = {
        "description": entry.description,
        "deprecated": _deprecation(entry),
        "kind": entry.kind if entry.kind == "view" else f"feature of {entry.view}",
        "type": entry.type,
        "entity": ", ".join(entry.entity),
        "owner": entry.owner,
        "tags": ", ".join(f"{key}={value}" for key, value in entry.tags.items()),
        "freshness": newest + _freshness(entry),
        "table": str(entry.table),
        "upstream": listed(entry.upstream),
        "features": ", ".join(entry.features),
        "services": listed(entry.services),
        "models": listed(entry.models, entry.models_unknown),
        "reads": f"{entry.reads:,}" + (f", by {entry.reads_from}" if entry.reads_from else ""),
        "profile": entry.profile or "none yet: materialise the profile",
    }
    out().print(f"[bold]{escape(entry.name)}[/]", style="yellow" if entry.deprecated else None)
    out().print(fields(lines))
