"""Features of live requests: from entity keys to a row per request, out of the online store.

Owns: the lookup, what is unknown or expired, and how old each value is. Does not own: what happens to unknown entities
(the model's own handling of missing values).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import polars.selectors as cs
from google.protobuf.timestamp_pb2 import Timestamp

from throughline.featurestore.store import open_store
from throughline.foundation.clock import data_clock
from throughline.foundation.settings import Settings
from throughline.usecase import UseCase, load_object

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore, FeatureView
    from feast.protos.feast.types.Value_pb2 import Value

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NO_KEY = -(2**63)  # Feast takes no null for a key; no entity has this number


@dataclass(frozen=True)
class FeatureRead:
    """Features of N requests, in their order.

    values:      N rows: the request's own columns, request-time features and a column per stored feature (null: none).
    event_times: per feature view, N instants (UTC): when the row that was used happened; None where there is none.
    unknown:     per request, the entities for which the store has no row in any view.
    expired:     per feature view with a ttl, N flags: there is a row, but it is too old to be used.
    """

    values: pl.DataFrame
    event_times: dict[str, list[datetime | None]]
    unknown: list[list[str]]
    expired: dict[str, list[bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class Looked:
    """What the online store gives for N entity rows: a list of N per feature and, else, per view.

    there: the store has a row; expired: it is older than the view's ttl, and gives neither values nor an event time.
    """

    values: dict[str, list[float | str | None]]
    event_times: dict[str, list[datetime | None]]
    there: dict[str, list[bool]]
    expired: dict[str, list[bool]]


def look_up(
    store: FeatureStore,
    features: FeatureService | list[str],
    views: Iterable[FeatureView],
    entities: list[dict[str, Any]],
    at: Callable[[], datetime],
) -> Looked:
    """Read `features`, which are all of `views`; `at` is asked for the instant (UTC) at which a row's age is told."""
    response = store.get_online_features(features=features, entity_rows=entities).proto
    position = {name: i for i, name in enumerate(response.metadata.feature_names.val)}
    looked = Looked({}, {}, {}, {})
    for view in views:
        names = [feature.name for feature in view.features]
        times = [_instant(stamp) for stamp in response.results[position[names[0]]].event_timestamps]
        columns = [[_plain(value) for value in response.results[position[name]].values] for name in names]
        looked.there[view.name] = [time is not None for time in times]
        if view.ttl:
            oldest = at() - view.ttl
            looked.expired[view.name] = gone = [time is not None and time < oldest for time in times]
            for column in (times, *columns):
                column[:] = [None if old else value for old, value in zip(gone, column, strict=True)]
        looked.event_times[view.name] = times
        looked.values.update(zip(names, columns, strict=True))
    return looked


def _plain(value: Value) -> float | str | None:
    return getattr(value, kind) if (kind := value.WhichOneof("val")) else None


def _instant(stamp: Timestamp) -> datetime | None:
    """None where there is no row: Feast gives the epoch then."""
    return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000) if stamp.seconds else None


class FeatureReader:
    """Reads the online store of one use case. Reading is thread-safe; `reload` swaps the definitions in one step."""

    def __init__(self, settings: Settings, usecase: UseCase) -> None:
        self._settings = settings
        self._usecase = usecase
        self._derive = load_object(usecase.features.request_features)
        self.reload()

    def reload(self) -> None:
        """Take up definitions registered since."""
        store = open_store(self._settings, self._usecase)
        service = store.get_feature_service(self._usecase.features.service)
        known = {view.name: view for view in store.list_feature_views()}
        views = []
        for projection in service.feature_view_projections:
            view = copy(known[projection.name])
            view.features = projection.features
            views.append(view)
        self._state = store, service, views

    def read(self, requests: pl.DataFrame, at: datetime | None = None) -> FeatureRead:
        """Features of typed requests (columns as declared under `request`, timestamps in UTC).

        A value older than its view's ttl is none, as offline; its age is told at `at`, or else on the data clock.
        """
        store, service, views = self._state
        keys = list(dict.fromkeys(self._usecase.entities.values()))
        rows = requests.select(keys).with_columns(cs.string().fill_null(""), cs.integer().fill_null(NO_KEY)).to_dicts()
        looked = look_up(store, service, views, rows, lambda: at or self._now())
        unknown: list[list[str]] = [[] for _ in rows]
        for entity in self._usecase.entities:
            seen = [looked.there[view.name] for view in views if entity in view.entities]
            for n, names in enumerate(unknown):
                if not any(flags[n] for flags in seen):
                    names.append(entity)
        values = self._derive(requests).hstack(pl.DataFrame(looked.values, strict=False))
        return FeatureRead(values, looked.event_times, unknown, looked.expired)

    def _now(self) -> datetime:
        return data_clock(self._settings, self._usecase.clock_start(self._settings)).now()


def open_reader(settings: Settings, usecase: UseCase) -> FeatureReader:
    """A reader of the use case's online store. Raises Feast's own error when nothing was registered yet."""
    return FeatureReader(settings, usecase)
