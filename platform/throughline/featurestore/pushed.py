"""Rows that were pushed, beside the table that a feature view is computed into: `TABLE` and `TABLE_pushed`.

A pushed row has the columns of the table: `event_timestamp` is when it happened, `available_at` when it was pushed.
A reader sees it from then on, where no row that happened later is known (Feast's `filter_by_created_timestamp`).

Owns: reading both tables as one source, each at its version. Does not own: how rows get there (`push.py`).
"""

from __future__ import annotations

import json
from typing import Any

from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto

from throughline.featurestore.delta_source import DeltaSource

SUFFIX = "_pushed"
KNOWN = "available_at"


class PushedSource(DeltaSource):
    """A table at a version, and the rows pushed beside it at another.

    Of a computed and a pushed row of one instant the pushed one counts: engines put the knowledge of a computed row,
    which is of what came before its instant, a microsecond earlier.
    """

    def __init__(self, *, pushed_version: int, tags: dict[str, str] | None = None, **kwargs: Any) -> None:
        tags = {**(tags or {}), "pushed_version": str(pushed_version)}
        super().__init__(tags=tags, **{"created_timestamp_column": KNOWN, **kwargs})
        self.pushed_version = pushed_version

    __hash__ = DeltaSource.__hash__

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and isinstance(other, PushedSource)

    @property
    def pushed(self) -> DeltaSource:
        return DeltaSource(
            name=f"{self.name}{SUFFIX}",
            path=f"{self.path}{SUFFIX}",
            version=self.pushed_version,
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            field_mapping=self.field_mapping,
        )

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> PushedSource:
        table = DeltaSource.from_proto(data_source)
        version = json.loads(data_source.custom_options.configuration)["pushed_version"]
        return with_pushed(table, version)

    def _to_proto_impl(self) -> DataSourceProto:
        proto = super()._to_proto_impl()
        options = json.loads(proto.custom_options.configuration)
        proto.custom_options.configuration = json.dumps({**options, "pushed_version": self.pushed_version}).encode()
        return proto


def with_pushed(source: DeltaSource, version: int | None) -> DeltaSource:
    """The source, and the rows pushed beside it at a version; as it is when nothing was pushed yet."""
    if version is None:
        return source
    return PushedSource(
        name=source.name,
        path=source.path,
        version=source.version,
        pushed_version=version,
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column or KNOWN,
        field_mapping=source.field_mapping,
        description=source.description,
        tags=source.tags,
        owner=source.owner,
    )
