"""Pushed rows, beside the table that a feature view is computed into: `TABLE` and `TABLE_pushed`.

A pushed row has the columns of the table: `event_timestamp` is when it happened, `available_at` when it was pushed.
It is read from then on, unless a row that happened later is known by then (Feast's `filter_by_created_timestamp`).

Owns: reading both tables as one source, each at its version. Does not own: how rows are written (`push.py`).
"""

from __future__ import annotations

import json
from typing import Any

from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto

from throughline.featurestore.delta_source import DeltaSource
from throughline.featurestore.layout import KNOWN, PUSHED

_TIMES = ("timestamp_field", "created_timestamp_column", "field_mapping")
_FIELDS = ("name", "path", "version", *_TIMES, "description", "tags", "owner")


class PushedSource(DeltaSource):
    """A table at a version, and the rows pushed beside it at another.

    Of a computed and a pushed row with one event time the pushed one counts: a computed row knows only what came before
    its event time, so engines read it as created a microsecond earlier.
    """

    def __init__(self, *, pushed_version: int, tags: dict[str, str] | None = None, **kwargs: Any) -> None:
        kwargs["created_timestamp_column"] = kwargs.get("created_timestamp_column") or KNOWN
        super().__init__(tags={**(tags or {}), "pushed_version": str(pushed_version)}, **kwargs)
        self.pushed_version = pushed_version

    __hash__ = DeltaSource.__hash__

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and isinstance(other, PushedSource)

    @property
    def created_column(self) -> str:
        return self.column(self.created_timestamp_column or KNOWN)

    @property
    def pushed(self) -> DeltaSource:
        """The table of pushed rows."""
        times = {name: getattr(self, name) for name in _TIMES}
        return DeltaSource(
            name=f"{self.name}{PUSHED}", path=f"{self.path}{PUSHED}", version=self.pushed_version, **times
        )

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> DeltaSource:
        version = json.loads(data_source.custom_options.configuration)["pushed_version"]
        return with_pushed(DeltaSource.from_proto(data_source), version)

    def _to_proto_impl(self) -> DataSourceProto:
        proto = super()._to_proto_impl()
        options = json.loads(proto.custom_options.configuration)
        proto.custom_options.configuration = json.dumps({**options, "pushed_version": self.pushed_version}).encode()
        return proto


def with_pushed(source: DeltaSource, version: int | None) -> DeltaSource:
    """The source with the rows pushed beside it at a version; the source itself when there are none (None)."""
    if version is None:
        return source
    return PushedSource(pushed_version=version, **{name: getattr(source, name) for name in _FIELDS})


def tables_of(source: DeltaSource) -> list[DeltaSource]:
    """The tables that a source reads: its own and, where there is one, that of pushed rows."""
    return [source, source.pushed] if isinstance(source, PushedSource) else [source]
