"""Raw tables: the source of their rows, and the expectations of columns and days."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Literal

from pydantic import Field, field_validator, model_validator

from throughline.usecase.base import Declared, Duration
from throughline.usecase.feeds import Feed, FilesFeed, PushFeed


class Column(Declared):
    """What a column may hold. Without `nulls` no value may be missing; with it, up to that share of a day's may."""

    type: Literal["string", "integer", "number", "boolean", "timestamp"]
    nulls: float | None = Field(None, gt=0, le=1)
    at_least: float | None = None
    at_most: float | None = None
    values: list[str | int] | None = Field(None, min_length=1)
    pattern: str | None = Field(None, description="A regular expression that the whole text must match.")

    @model_validator(mode="after")
    def _rules_fit_the_type(self) -> Column:
        fitting = {
            "at_least": {"integer", "number"},
            "at_most": {"integer", "number"},
            "values": {"string", "integer"},
            "pattern": {"string"},
        }
        for rule, types in fitting.items():
            if getattr(self, rule) is not None and self.type not in types:
                raise ValueError(f"{rule} is not a rule for type {self.type}, only for {' and '.join(sorted(types))}")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least} is above at_most {self.at_most}")
        wanted = str if self.type == "string" else int
        if self.values is not None and not all(type(value) is wanted for value in self.values):
            raise ValueError(f"values must be of type {self.type}")
        return self

    @field_validator("pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression ({error})") from error
        return pattern


class Volume(Declared):
    """Rows a day, as delivered. The first day also holds earlier deliveries: `at_most` does not hold for it."""

    at_least: int = Field(1, ge=1)
    at_most: int | None = Field(None, ge=1)
    empty: Literal["bad", "warn"] = Field("bad", description="A day without rows: refused, or accepted with a warning.")

    @model_validator(mode="after")
    def _not_upside_down(self) -> Volume:
        if self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least} is above at_most {self.at_most}")
        return self


class Drift(Declared):
    """How far the distribution of the newest days may be from that of the training dataset's days."""

    columns: list[str] = Field(min_length=1)
    psi: float = Field(0.25, gt=0, description="Population stability index; 0.25 is the usual mark of a major shift.")
    window: Duration = timedelta(days=14)
    minimum_rows: int = Field(500, ge=1, description="With fewer rows on either side there is no verdict.")


# Every source delivers these with every row, undeclared.
CONTRACT = {"event_time": Column(type="timestamp"), "available_at": Column(type="timestamp")}


class Expectations(Declared):
    """Rules for a raw table. A row that breaks one is quarantined; a day that breaks one is refused.

    Rules of rows: type, null, range, allowed values, pattern, repeated key. Rules of days: schema, volume, shares of
    nulls, of repeated keys and of bad rows. `drift` refuses nothing, as seasons change distributions, too.
    """

    columns: dict[str, Column] = Field(min_length=1)
    rows: Volume = Volume()
    max_bad_share: float = Field(0.05, ge=0, lt=1)
    max_duplicate_share: float = Field(0.01, ge=0, lt=1)
    drift: Drift | None = None

    @model_validator(mode="after")
    def _columns_are_the_tables_own(self) -> Expectations:
        if given := sorted(set(self.columns) & set(CONTRACT)):
            raise ValueError(f"{', '.join(given)} come with every row: remove them from `columns`")
        if self.drift and (unknown := sorted(set(self.drift.columns) - set(self.columns))):
            raise ValueError(f"{', '.join(unknown)} under `drift` but missing under `columns`")
        return self

    @property
    def all_columns(self) -> dict[str, Column]:
        return {**CONTRACT, **self.columns}


class SourceTable(Declared):
    key: list[str] = Field(min_length=1)
    freshness: Duration | None = None
    static: bool = Field(False, description="A reference table without daily partitions.")
    description: str
    feed: Feed | None = Field(None, alias="from", description="Where its rows come from; unset: `sources.module`.")
    expects: Expectations | None = None

    @model_validator(mode="after")
    def _feed_is_typed(self) -> SourceTable:
        """Text has no types, and pushed rows are checked against the declared columns on arrival."""
        if self.feed is None:
            return self
        if self.expects is None:
            if isinstance(self.feed, PushFeed) or (isinstance(self.feed, FilesFeed) and self.feed.kind != "parquet"):
                raise ValueError("declare `expects.columns`: these rows have no types")
            return self
        columns = self.expects.all_columns
        for name in (self.feed.event_time, self.feed.available_at):
            if name in columns and columns[name].type != "timestamp":
                raise ValueError(f"column {name} is the event or knowledge time: its type is timestamp")
        if isinstance(self.feed, PushFeed):
            known = self.expects.columns.get(self.feed.push)
            if known is None or known.nulls is not None or known.type not in ("string", "integer"):
                raise ValueError(f"`push: {self.feed.push}` is no string or integer column of `expects` without nulls")
        return self

    @model_validator(mode="after")
    def _key_is_declared(self) -> SourceTable:
        if self.expects is None:
            return self
        for name in self.key:
            column = self.expects.all_columns.get(name)
            if column is None:
                raise ValueError(f"key column {name} is missing under `expects.columns`")
            if column.nulls is not None:
                raise ValueError(f"key column {name} may not be null: remove `nulls`")
        return self


class Sources(Declared):
    module: str | None = Field(None, description="Module with `read(table, start, end) -> polars.DataFrame`.")
    tables: dict[str, SourceTable]

    @model_validator(mode="after")
    def _every_table_has_a_source(self) -> Sources:
        if self.module is None and (without := sorted(name for name, table in self.tables.items() if not table.feed)):
            raise ValueError(f"{', '.join(without)} has no source: declare `from` there, or `module` for all")
        return self
