"""The feature store as registered, and what the online store holds."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import Field

from throughline.foundation.references import TableReference
from throughline.records.base import Record


class FeatureRecord(Record):
    """One feature as registered, and the feature services that have it."""

    name: str
    type: str
    description: str
    tags: dict[str, str]
    services: list[str]
    upstream: list[str] | None = Field(description="Raw TABLE.COLUMN; None where unknown.")


class FeatureViewRecord(Record):
    """One feature view as registered, on the version of its table that it is pinned to."""

    name: str
    description: str
    owner: str
    tags: dict[str, str]
    entities: list[str]
    table: TableReference
    features: list[FeatureRecord]
    seen_within: timedelta | None = Field(None, description="How long a raw row is seen in it; None: unknown.")


class FeatureStoreRecord(Record):
    """The feature store as registered: every source pinned, and the spine that goes with them."""

    usecase: str
    as_of: datetime
    sources: list[TableReference]
    spine: TableReference
    views: list[FeatureViewRecord] = Field(default_factory=list)


class OnlineStoreRecord(Record):
    """The online store holds, per entity, the newest tick up to `until`."""

    usecase: str
    until: datetime
    sources: list[TableReference]
