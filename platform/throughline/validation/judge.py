"""Verdicts on the days of a raw table: which rows are good, which are quarantined, which day is refused; pure.

Owns: the verdicts. A good row of a good day is accepted, every other one quarantined with its reasons. A bad day is
refused as a whole: features of half a day would be wrong. Does not own: single rules (`rules.py`), drift (`drift.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

import polars as pl

from throughline.lakehouse.table import DAY
from throughline.usecase import Expectations, SourceTable, Volume
from throughline.validation.rules import row_reasons, schema_problems

Aspect = Literal["schema", "rows", "unique_key", "volume"]
Result = Literal["pass", "warn", "fail", "cannot_say"]

REASONS = "reasons"


@dataclass(frozen=True)
class Verdict:
    """One aspect of one day; only `fail` refuses the day."""

    aspect: Aspect
    result: Result
    detail: str


@dataclass(frozen=True)
class DayVerdict:
    """A day as delivered: its number of rows, how many of them break a rule, and the verdict on each aspect."""

    day: date
    rows: int
    bad: int
    verdicts: tuple[Verdict, ...] = ()

    @property
    def accepted(self) -> bool:
        return all(verdict.result != "fail" for verdict in self.verdicts)

    @property
    def reason(self) -> str:
        """Why the day was refused."""
        return "; ".join(f"{v.aspect}: {v.detail}" for v in self.verdicts if v.result == "fail")


@dataclass(frozen=True)
class Judgement:
    """Each delivered row is in one of two frames: `good` as delivered, `quarantined` with a list of reasons."""

    good: pl.DataFrame
    quarantined: pl.DataFrame
    days: dict[date, DayVerdict]


def judge(
    rows: pl.DataFrame, table: SourceTable, days: Sequence[date], first: date | None = None, until: date | None = None
) -> Judgement:
    """Judge delivered rows, which have their local `day`, one of `days`. Without expectations every row is good.

    `first`: the day that also holds earlier deliveries. `until`: from this day on too few rows give no verdict.
    """
    expects = table.expects
    problems = schema_problems(rows.drop(DAY).schema, expects) if expects else []
    reasons = pl.repeat([], rows.height, dtype=pl.List(pl.String), eager=True)
    if expects and not problems:
        reasons = row_reasons(rows, expects, table.key)
    judged = rows.with_columns(reasons.alias(REASONS))
    parts = judged.partition_by(DAY, as_dict=True)
    verdicts = {}
    for day in days:
        part = parts.get((day,), judged.clear())
        bad = part.height if problems else part.filter(_is_bad).height
        found: tuple[Verdict, ...] = ()
        if problems:
            found = (Verdict("schema", "fail", "; ".join(problems)),)
        elif expects:
            found = (
                Verdict("schema", "pass", f"{len(expects.all_columns)} columns as declared"),
                _rows(part, bad, expects),
                _unique_key(part, table.key, expects.max_duplicate_share),
                _volume(part.height, expects.rows, is_first=day == first, is_over=until is None or day < until),
            )
        verdicts[day] = DayVerdict(day, part.height, bad, found)
    refused = {day: f"day refused: {verdict.reason}" for day, verdict in verdicts.items() if not verdict.accepted}
    refusal = pl.col(DAY).replace_strict(list(refused), list(refused.values()), default=None, return_dtype=pl.String)
    judged = judged.with_columns(pl.concat_list(REASONS, refusal).list.drop_nulls()) if refused else judged
    return Judgement(judged.filter(~_is_bad).drop(REASONS), judged.filter(_is_bad), verdicts)


_is_bad = pl.col(REASONS).list.len() > 0


def _rows(part: pl.DataFrame, bad: int, expects: Expectations) -> Verdict:
    problems = [
        f"{name} is null in {share:.1%} of the rows, {column.nulls:.1%} allowed"
        for name, column in expects.columns.items()
        if column.nulls is not None and (share := _share(part[name].null_count(), part)) > column.nulls
    ]
    if (share := _share(bad, part)) > expects.max_bad_share:
        problems.insert(0, f"{share:.1%} of the rows are bad, {expects.max_bad_share:.1%} allowed ({worst(part)})")
    return Verdict("rows", "fail" if problems else "pass", "; ".join(problems) or f"{bad} of {part.height} are bad")


def _unique_key(part: pl.DataFrame, key: Sequence[str], allowed: float) -> Verdict:
    repeated = part.height - part.select(key).n_unique()
    detail = f"{repeated} of {part.height} rows repeat {', '.join(key)}"
    if _share(repeated, part) > allowed:
        return Verdict("unique_key", "fail", f"{detail}, {allowed:.1%} allowed")
    return Verdict("unique_key", "pass", detail)


def _volume(rows: int, volume: Volume, is_first: bool, is_over: bool) -> Verdict:
    detail = f"{rows} rows, {volume.at_least} to {volume.at_most or 'any number'} expected"
    if rows < volume.at_least and not is_over:
        return Verdict("volume", "cannot_say", f"{rows} rows, and the day is not over")
    if rows == 0 and volume.empty == "warn":
        return Verdict("volume", "warn", detail)
    too_many = volume.at_most is not None and rows > volume.at_most and not is_first
    return Verdict("volume", "fail" if rows < volume.at_least or too_many else "pass", detail)


def _share(count: int, part: pl.DataFrame) -> float:
    return count / part.height if part.height else 0.0


def worst(rows: pl.DataFrame, most: int = 3) -> str:
    """The reasons that most rows have, with how many."""
    counts = rows[REASONS].explode().drop_nulls().value_counts(name="n").sort("n", REASONS, descending=[True, False])
    return ", ".join(f"{reason} ({n})" for reason, n in counts.head(most).rows())
