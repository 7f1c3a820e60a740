"""A page of plots per table version: one self-contained HTML file with SVG charts, kept under the home.

Owns: drawing, and where pages are. Does not own: the figures (`profile.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import polars as pl

from throughline.featurestore.profile import Bar, ColumnProfile, DayFigures, number, profile
from throughline.foundation.files import write_atomic
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import open_table, read
from throughline.records import FeatureRecord, FeatureStoreRecord, FeatureViewRecord

SAMPLE = 100_000
_NOT_SHOWN = ("ingestion_run_id",)
_SPINE = "The spine: rows to predict and their labels, a row for each time something became known."


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
    _forget({page.parent for page in pages.values()}, settings.retention_days)
    return pages


def sample(settings: Settings, table: TableReference, rows: int = SAMPLE) -> tuple[pl.DataFrame, int]:
    """At most `rows` rows of the table, in its order, and N where every Nth row was taken."""
    every = max(1, -(-open_table(settings.lakehouse / table.table, table.version).count() // rows))
    return read(settings, table).gather_every(every).collect(), every


def _forget(folders: Iterable[Path], days: int) -> None:
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
    name = table.name
    features = {feature.name: feature for feature in view.features} if view else {}
    first = [column for column in columns if column.name in features]
    rest = [column for column in columns if column.name not in features]
    rows = columns[0].rows if columns else 0
    days = columns[0].days if columns else []
    facts = [f"{rows:,} rows" if every == 1 else f"{rows:,} rows sampled, every {_nth(every)}"]
    if days:
        facts.append(f"{len(days)} days, {days[0].day} to {days[-1].day}")
    if view:
        facts += [f"entity {', '.join(view.entities)}", f"owner {view.owner}"]
    nav = "".join(
        f'<a href="{escape(address)}"{" class=here" if label == name else ""}>{escape(label)}</a>'
        for label, address in links
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(str(table))}</title>"
        f'<meta name=viewport content="width=device-width"><style>{_STYLE}</style>'
        f"<nav>{nav}</nav><header><h1>{escape(name)}<small>@{table.version}</small></h1>"
        f"<p>{escape(view.description if view else _SPINE)}</p>"
        f"<p class=facts>{''.join(f'<span>{escape(fact)}</span>' for fact in facts)}</p></header>"
        f"{_overview(columns) if days else ''}<p class=legend>{_LEGEND if days else ''}</p>"
        f"<main>{''.join(_card(column, features.get(column.name)) for column in [*first, *rest])}</main></html>\n"
    )


def _nth(every: int) -> str:
    ending = "th" if 11 <= every % 100 <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(every % 10, "th")
    return f"{every:,}{ending}"


# A card per column


def _card(column: ColumnProfile, feature: FeatureRecord | None) -> str:
    tags = feature.tags if feature else {}
    unit = tags.get("unit", "")
    figures = [("missing", f"{column.null_share:.1%}", "bad" if column.null_share > 0.2 else "")]
    if column.numeric and column.mean is not None:
        figures += [
            ("mean", _number(column.mean), ""),
            ("deviation", _number(column.deviation), ""),
            ("range", f"{_number(column.minimum)} … {_number(column.maximum)}", ""),
        ]
    else:
        figures.append(("different", f"{column.distinct:,}", ""))
    facts = "".join(f"<span class='{kind}'><b>{value}</b>{label}</span>" for label, value, kind in figures)
    warning = f"<p class=warning>deprecated: {escape(tags['deprecated'])}</p>" if "deprecated" in tags else ""
    sources = ", ".join(feature.upstream or []) if feature else ""
    charts = _histogram(column.bars) if column.numeric else _categories(column)
    return (
        f"<section><h2>{escape(column.name)}<small>{escape(unit)}</small></h2>"
        f"<p>{escape(feature.description if feature else '')}</p>{warning}<p class=figures>{facts}</p>"
        f"{charts}{_by_day(column.days)}"
        f"{f'<p class=from>from {escape(sources)}</p>' if sources else ''}</section>"
    )


WIDTH, BASE, GUTTER = 320, 84, 34
RARE = 0.01  # values rarer than this are not drawn
_NO_VALUE = "<p class=none>no value</p>"
_LEGEND = (
    "Below, per column: how its values are distributed, then by day their median within the band of 10 to 90 % "
    "(of a column with a handful of values: the mean)."
)


def _histogram(bars: Sequence[Bar]) -> str:
    if not bars:
        return _NO_VALUE
    most, total = max(bar.rows for bar in bars), sum(bar.rows for bar in bars)
    step = WIDTH / len(bars)
    drawn = [
        f'<rect x="{n * step:.1f}" y="{BASE - 1 - height:.1f}" width="{max(step - 1, 0.5):.1f}" height="{height:.1f}">'
        f"<title>{escape(bar.label)}: {bar.rows:,} rows, {bar.rows / total:.1%}</title></rect>"
        for n, bar in enumerate(bars)
        for height in [max(BASE * 0.97 * bar.rows / most, 1 if bar.rows else 0)]
    ]
    ends = _ends(bars[0].label, bars[-1].label, BASE + 13)
    return f'<svg viewBox="0 0 {WIDTH} {BASE + 17}" class=bars>{"".join(drawn)}{ends}</svg>'


def _categories(column: ColumnProfile) -> str:
    most = max((bar.rows for bar in column.bars), default=0)
    if most < RARE * column.rows:
        return f"<p class=none>the most frequent value is in {most:,} rows</p>" if most else _NO_VALUE
    lines = "".join(
        f"<tr><th>{escape(bar.label)}<td><i style='width:{100 * bar.rows / most:.1f}%'></i>"
        f"<td>{bar.rows / column.rows:.1%}"
        for bar in column.bars
    )
    return f"<table>{lines}</table>"


def _by_day(days: Sequence[DayFigures]) -> str:
    """A line of each day's middle in a band from its 10 to its 90 % quantile; gaps where a day has no value."""
    if sum(day.middle is not None for day in days) < 2:
        return ""
    drawn_values = [value for day in days for value in (day.low, day.middle, day.high) if value is not None]
    bottom, top = min(drawn_values), max(drawn_values)
    scale = (top - bottom) or 1.0
    step, height = (WIDTH - GUTTER) / len(days), 62
    place = {day.day: GUTTER + (n + 0.5) * step for n, day in enumerate(days)}

    def points(run: Iterable[DayFigures], figure: str) -> list[str]:
        return [
            f"{place[day.day]:.1f},{4 + height * (1 - (value - bottom) / scale):.1f}"
            for day in run
            if (value := getattr(day, figure)) is not None
        ]

    drawn = []
    for has_value, group in groupby(days, key=lambda day: day.middle is not None):
        run = list(group) if has_value else []
        if band := points(run, "high") + points(reversed(run), "low"):
            drawn.append(f'<polygon class=band points="{" ".join(band)}"/>')
        if run:
            drawn.append(f'<polyline points="{" ".join(points(run, "middle"))}"/>')
    for day in days:
        if day.middle is None:
            continue
        spread = "" if day.low is None else f", 10 to 90 %: {_number(day.low)} to {_number(day.high)}"
        drawn.append(
            f'<rect class=touch x="{place[day.day] - step / 2:.1f}" y="0" width="{step:.1f}" height="{height + 8}">'
            f"<title>{day.day}: {_number(day.middle)}{spread}</title></rect>"
        )
    scales = (
        f'<text x="{GUTTER - 4}" y="12" class=end>{_number(top)}</text>'
        f'<text x="{GUTTER - 4}" y="{height + 5}" class=end>{_number(bottom)}</text>'
        f"{_ends(str(days[0].day), str(days[-1].day), height + 20, GUTTER)}"
    )
    return f'<svg viewBox="0 0 {WIDTH} {height + 24}" class=days>{"".join(drawn)}{scales}</svg>'


def _ends(left: str, right: str, y: float, x: float = 0) -> str:
    return f'<text x="{x}" y="{y}">{escape(left)}</text><text x="{WIDTH}" y="{y}" class=end>{escape(right)}</text>'


# The table as a whole


def _overview(columns: Sequence[ColumnProfile]) -> str:
    """Rows by day; below, a line per column, darker on days with more missing values."""
    days = columns[0].days
    left, line, rows_height, width = 190, 17, 46, 1100
    step = (width - left) / len(days)
    most = max(day.rows for day in days)
    drawn = [f'<text x="{left - 8}" y="{rows_height - 4}" class=end>rows</text>']
    drawn += [
        f'<rect class=rows x="{left + n * step:.1f}" y="{rows_height - height:.1f}" width="{max(step - 1, 0.6):.1f}" '
        f'height="{height:.1f}"><title>{day.day}: {day.rows:,} rows</title></rect>'
        for n, day in enumerate(days)
        for height in [rows_height * 0.95 * day.rows / most]
    ]
    for m, column in enumerate(columns):
        y = rows_height + 8 + m * line
        drawn.append(f'<text x="{left - 8}" y="{y + 11}" class=end>{escape(column.name)}</text>')
        drawn.append(f'<rect class=track x="{left}" y="{y}" width="{width - left}" height="{line - 4}"/>')
        drawn += _missing(column.days, left, step, y, line - 4)
    height = rows_height + 8 + len(columns) * line
    ends = (
        f'<text x="{left}" y="{height + 12}">{days[0].day}</text>'
        f'<text x="{width}" y="{height + 12}" class=end>{days[-1].day}</text>'
    )
    return (
        "<figure><figcaption>Rows by day, and missing values by column: darker days have more of them."
        f'</figcaption><svg viewBox="0 0 {width} {height + 18}">{"".join(drawn)}{ends}</svg></figure>'
    )


def _missing(days: Sequence[DayFigures], left: float, step: float, y: float, height: float) -> list[str]:
    """Adjacent days with about the same share of missing values are one mark: a constant year is one, not 365."""
    marks, n = [], 0
    for share, run in groupby(days, key=lambda day: round(day.null_share * 20) / 20 or (day.null_share > 0) * 0.02):
        alike = list(run)
        if share:
            span = f"{alike[0].day}" if len(alike) == 1 else f"{alike[0].day} to {alike[-1].day}"
            mean = sum(day.null_share for day in alike) / len(alike)
            marks.append(
                f'<rect class=missing x="{left + n * step:.1f}" y="{y}" width="{len(alike) * step:.1f}" '
                f'height="{height}" opacity="{0.15 + 0.85 * share:.2f}">'
                f"<title>{span}: {mean:.1%} missing</title></rect>"
            )
        n += len(alike)
    return marks


def _number(value: float | None) -> str:
    return "none" if value is None else number(value)


_STYLE = """
:root{--ground:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#667385;--line:#e3e7ec;--main:#2a6f97;--band:#2a6f9733;
--bad:#c8553d}
@media(prefers-color-scheme:dark){:root{--ground:#12171d;--card:#1b222b;--ink:#e6ebf1;--soft:#93a1b2;--line:#2b3541;
--main:#6db3dc;--band:#6db3dc33;--bad:#e8806a}}
*{box-sizing:border-box}
html{background:var(--ground);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
body{margin:0 auto;max-width:1240px;padding:18px 24px 48px}
nav{display:flex;flex-wrap:wrap;gap:4px;margin-bottom:22px}
nav a{color:var(--soft);text-decoration:none;padding:4px 11px;border-radius:14px}
nav a.here,nav a:hover{background:var(--card);color:var(--ink);box-shadow:0 0 0 1px var(--line)}
h1{font-size:27px;margin:0;letter-spacing:-.01em}h1 small,h2 small{color:var(--soft);font-weight:400;margin-left:.4em}
h2{font-size:15.5px;margin:0}h2 small{font-size:13px}
header p{margin:4px 0 0}.facts span{color:var(--soft);margin-right:18px;font-size:14px}
figure{margin:22px 0;padding:16px 18px 10px;background:var(--card);border:1px solid var(--line);border-radius:10px}
figcaption{color:var(--soft);font-size:13px;margin-bottom:8px}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:16px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px 12px}
section p{margin:2px 0 0;color:var(--soft);font-size:13.5px}
.figures{display:flex;flex-wrap:wrap;gap:4px 22px;margin:8px 0 10px!important}
.figures b{display:block;color:var(--ink);font-weight:600;font-size:14.5px;white-space:nowrap}
.figures span{font-size:12px;line-height:1.25}.legend{color:var(--soft);font-size:13px;margin:0 2px 10px}
.figures .bad b,.warning{color:var(--bad)!important}
.from{font-size:12px!important;margin-top:8px!important;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto;overflow:visible}svg text{font-size:10.5px;fill:var(--soft)}
svg .end{text-anchor:end}.bars rect,.rows{fill:var(--main)}.bars rect:hover,.rows:hover{fill:var(--ink)}
.days{margin-top:10px}.days polyline{fill:none;stroke:var(--main);stroke-width:1.6;stroke-linejoin:round}
.band{fill:var(--band)}.touch{fill:transparent}.touch:hover{fill:var(--band)}
.track{fill:var(--ground)}.missing{fill:var(--bad)}
table{width:100%;border-spacing:0 2px;font-size:13px}th{text-align:left;font-weight:400;white-space:nowrap;
padding-right:8px;width:1%}td:last-child{color:var(--soft);text-align:right;width:3.6em}
td i{display:block;height:10px;background:var(--main);border-radius:2px;min-width:1px}
"""
