"""Features of live requests: from entity keys to a row per request, out of the online store.

Owns: the lookup, what is unknown, and how old each value is. Does not own: what happens to unknown entities (the
model's own handling of missing values).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl
import polars.selectors as cs

from throughline.featurestore.store import open_store
from throughline.settings import Settings
from throughline.usecase import UseCase, load_object

NO_KEY = -(2**63)  # Feast takes no null for a key; no entity has this number


@dataclass(frozen=True)
class FeatureRead:
    """Features of N requests, in their order.

    values:      N rows: the request's own columns, request-time features and a column per stored feature (null: none).
    event_times: per feature view, N instants (UTC): when the row that was used happened; None where there is none.
    unknown:     per request, the entities for which the store has no row in any view.
    """

    values: pl.DataFrame
    event_times: dict[str, list[datetime | None]]
    unknown: list[list[str]]


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
        entities = {view.name: view.entities for view in store.list_feature_views()}
        views = [
            (view.name, entities[view.name], [feature.name for feature in view.features])
            for view in service.feature_view_projections
        ]
        self._state = store, service, views

    def read(self, requests: pl.DataFrame) -> FeatureRead:
        """Features of typed requests (columns as declared under `request`, timestamps in UTC)."""
        store, service, views = self._state
        keys = list(dict.fromkeys(self._usecase.entities.values()))
        rows = requests.select(keys).with_columns(cs.string().fill_null(""), cs.integer().fill_null(NO_KEY)).to_dicts()
        response = store.get_online_features(features=service, entity_rows=rows).proto
        position = {name: i for i, name in enumerate(response.metadata.feature_names.val)}

        columns: dict[str, list[float | str | None]] = {}
        event_times: dict[str, list[datetime | None]] = {}
        known: dict[str, list[bool]] = {entity: [False] * requests.height for entity in self._usecase.entities}
        for view, entities, features in views:
            for feature in features:
                columns[feature] = [
                    getattr(value, kind) if (kind := value.WhichOneof("val")) else None
                    for value in response.results[position[feature]].values
                ]
            stamps = response.results[position[features[0]]].event_timestamps
            event_times[view] = [datetime.fromtimestamp(s.seconds, UTC) if s.seconds else None for s in stamps]
            for entity in entities:
                known[entity] = [a or t is not None for a, t in zip(known[entity], event_times[view], strict=True)]
        values = self._derive(requests).hstack(pl.DataFrame(columns, strict=False))
        unknown = [[entity for entity, flags in known.items() if not flags[i]] for i in range(requests.height)]
        return FeatureRead(values, event_times, unknown)


def open_reader(settings: Settings, usecase: UseCase) -> FeatureReader:
    """A reader of the use case's online store. Raises Feast's own error when nothing was registered yet."""
    return FeatureReader(settings, usecase)
