"""A page of plots per table version: one self-contained HTML file with SVG charts, kept under the home.

Owns: what a page shows, and where pages are. Does not own: the figures (`profile.py`), the markup
(`profile_page.html.j2`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from throughline.featurestore.profile import ColumnProfile, DayFigures, number, profile
from throughline.foundation.files import write_atomic
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import open_table, read
from throughline.records import FeatureRecord, FeatureStoreRecord, FeatureViewRecord

TEMPLATE = Path(__file__).with_name("profile_page.html.j2")
SAMPLE = 100_000
RARE = 0.01  # values rarer than this are not drawn
_NOT_SHOWN = ("ingestion_run_id",)


def page_of(settings: Settings, table: TableReference) -> Path:
    """The file of a table version's page, whether it exists or not."""
    folder, _, name = table.table.rpartition("/")
    return settings.profiles / folder / f"{name}@{table.version}.html"


def write_pages(settings: Settings, record: FeatureStoreRecord) -> dict[TableReference, Path]:
    """Write a page for each pinned table of the feature store; remove pages older than the retention."""
    views = {view.table: view for view in record.views}
    tables = [*views, record.spine]
    pages = {table: page_of(settings, table) for table in tables}
    for table, page in pages.items():
        rows, every = sample(settings, table)
        links = [(other.name, pages[other].name) for other in tables]
        write_atomic(page, render(table, views.get(table), profile(rows, _NOT_SHOWN), every, links))
    _remove_old({page.parent for page in pages.values()}, settings.retention_days)
    return pages


def sample(settings: Settings, table: TableReference, rows: int = SAMPLE) -> tuple[pl.DataFrame, int]:
    """At most `rows` rows of the table, in its order, and N where every Nth row was taken."""
    every = max(1, -(-open_table(settings.lakehouse / table.table, table.version).count() // rows))
    return read(settings, table).gather_every(every).collect(), every


def _remove_old(folders: Iterable[Path], days: int) -> None:
    """Remove pages older than `days`; those of the pinned versions are new."""
    oldest = time.time() - days * 86_400
    for page in (page for folder in folders for page in folder.glob("*.html")):
        if page.stat().st_mtime < oldest:
            page.unlink()


def render(
    table: TableReference,
    view: FeatureViewRecord | None,
    columns: Sequence[ColumnProfile],
    every: int,
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """The page as HTML; the spine's when there is no view.

    every: each Nth row was sampled; links: names and addresses of the other pages.
    """
    from jinja2 import Environment, StrictUndefined  # postpones jinja2 (0.1 s)

    features: dict[str, FeatureRecord] = {feature.name: feature for feature in view.features} if view else {}
    rows, days = (columns[0].rows, columns[0].days) if columns else (0, [])
    facts = [f"{rows:,} rows" if every == 1 else f"{rows:,} rows sampled, every {_nth(every)}"]
    if days:
        facts.append(f"{len(days)} days, {days[0].day} to {days[-1].day}")
    if view:
        facts += [f"entity {', '.join(view.entities)}", f"owner {view.owner}"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": number,
        "count": "{:,}".format,
        "share": "{:.1%}".format,
        "fixed": "{:.1f}".format,
    }
    return environment.from_string(TEMPLATE.read_text()).render(
        table=table,
        view=view,
        facts=facts,
        links=links,
        days=days,
        columns=sorted(columns, key=lambda column: column.name not in features),
        features=defaultdict(lambda: None, features),
        charts={column.name: _by_day(column.days) for column in columns},
        gaps={column.name: _gaps(column.days) for column in columns},
        rare=RARE,
    )


def _nth(every: int) -> str:
    ending = "th" if 11 <= every % 100 <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(every % 10, "th")
    return f"{every:,}{ending}"


def _by_day(days: Sequence[DayFigures]) -> dict[str, Any] | None:
    """A line of each day's middle in a band from its 10 to its 90 % quantile; gaps where a day has no value.

    None when fewer than two days have a value.
    """
    if sum(day.middle is not None for day in days) < 2:
        return None
    values = [value for day in days for value in (day.low, day.middle, day.high) if value is not None]
    bottom, top = min(values), max(values)
    left, height = 34, 62  # what the template's chart leaves for the scale, and for the line
    step = (320 - left) / len(days)

    def points(run: Iterable[tuple[int, DayFigures]], figure: str) -> list[str]:
        return [
            f"{left + (n + 0.5) * step:.1f},{4 + height * (1 - (value - bottom) / ((top - bottom) or 1.0)):.1f}"
            for n, day in run
            if (value := getattr(day, figure)) is not None
        ]

    runs = [list(run) for known, run in groupby(enumerate(days), lambda each: each[1].middle is not None) if known]
    bands = [points(run, "high") + points(reversed(run), "low") for run in runs]
    return {
        "lines": [" ".join(points(run, "middle")) for run in runs],
        "bands": [" ".join(band) for band in bands if band],
        "marks": [(left + n * step, day) for run in runs for n, day in run],
        "step": step,
        "bottom": bottom,
        "top": top,
        "first": days[0].day,
        "last": days[-1].day,
    }


def _gaps(days: Sequence[DayFigures]) -> list[dict[str, Any]]:
    """Adjacent days with about the same share of missing values are one mark: a constant year is one, not 365."""

    def shade(each: tuple[int, DayFigures]) -> float:
        share = each[1].null_share
        return round(share * 20) / 20 or (share > 0) * 0.02

    gaps = []
    for shared, run in groupby(enumerate(days), shade):
        (first, start), *_ = alike = list(run)
        end = alike[-1][1]
        if shared:
            gaps.append(
                {
                    "first": first,
                    "days": len(alike),
                    "shade": shared,
                    "span": str(start.day) if len(alike) == 1 else f"{start.day} to {end.day}",
                    "mean": sum(day.null_share for _, day in alike) / len(alike),
                }
            )
    return gaps
