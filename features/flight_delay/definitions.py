"""Feast definitions of the use case: entities, a feature view per tick table, the service the model is fed by."""

from __future__ import annotations

from collections.abc import Callable

from feast import Entity, FeatureService, FeatureView, Field
from feast.data_source import DataSource
from feast.types import Float64
from feast.value_type import ValueType

_ENTITIES = {"origin": "origin", "carrier": "carrier", "destination": "dest", "aircraft": "tailnum"}

_VIEWS = {
    "origin_ticks": (
        "origin",
        "origin_departures_2h origin_delay_2h origin_late_share_2h origin_delay_6h origin_late_share_24h",
    ),
    "carrier_ticks": (
        "carrier",
        "carrier_delay_3h carrier_late_share_24h carrier_delay_24h carrier_late_share_168h",
    ),
    "destination_ticks": (
        "destination",
        "dest_delay_6h dest_delay_24h dest_late_share_24h dest_late_share_168h",
    ),
    "aircraft_ticks": (
        "aircraft",
        "aircraft_delay_12h aircraft_delay_168h aircraft_departures_168h aircraft_seats aircraft_age_years",
    ),
    "weather_ticks": (
        "origin",
        "weather_temp weather_dewpoint weather_humidity weather_wind_speed weather_precipitation weather_pressure "
        "weather_visibility",
    ),
}


def build(source: Callable[[str], DataSource]) -> list[Entity | FeatureView | FeatureService]:
    """All Feast objects of the use case. `source` gives the pinned source of a tick table by its name."""
    entities = {
        name: Entity(name=name, join_keys=[key], value_type=ValueType.STRING) for name, key in _ENTITIES.items()
    }
    views = [
        FeatureView(
            name=table,
            entities=[entities[entity]],
            schema=[Field(name=feature, dtype=Float64) for feature in features.split()],
            source=source(table),
            online=True,
        )
        for table, (entity, features) in _VIEWS.items()
    ]
    return [*entities.values(), *views, FeatureService(name="flight_delay_v1", features=views)]
