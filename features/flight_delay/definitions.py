"""Feast definitions of the use case: entities, a feature view per tick table, the service the model is fed by.

What a feature is, its unit and its tags are said here and nowhere else; what a table is, in dbt's schema.yml.
A feature that should not be used any more has the tags `deprecated` (why) and, where there is one, `replaced_by`.
"""

from __future__ import annotations

from collections.abc import Callable

from feast import Entity, FeatureService, FeatureView, Field
from feast.data_source import DataSource
from feast.types import Float64
from feast.value_type import ValueType

_ENTITIES = {"origin": "origin", "carrier": "carrier", "destination": "dest", "aircraft": "tailnum"}

# Per view: entity, tags, and per feature its unit and what it says. Late is more than 15 minutes; early is negative.
_VIEWS: dict[str, tuple[str, dict[str, str], dict[str, tuple[str, str]]]] = {
    "origin_ticks": (
        "origin",
        {"topic": "punctuality"},
        {
            "origin_departures_2h": ("flights", "Departures from the airport in the last 2 hours."),
            "origin_delay_2h": ("minutes", "Mean departure delay at the airport over the last 2 hours."),
            "origin_late_share_2h": ("share", "Share of the airport's departures that were late, last 2 hours."),
            "origin_delay_6h": ("minutes", "Mean departure delay at the airport over the last 6 hours."),
            "origin_late_share_24h": ("share", "Share of the airport's departures that were late, last 24 hours."),
        },
    ),
    "carrier_ticks": (
        "carrier",
        {"topic": "punctuality"},
        {
            "carrier_delay_3h": ("minutes", "Mean departure delay of the carrier over the last 3 hours."),
            "carrier_late_share_24h": ("share", "Share of the carrier's departures that were late, last 24 hours."),
            "carrier_delay_24h": ("minutes", "Mean departure delay of the carrier over the last 24 hours."),
            "carrier_late_share_168h": ("share", "Share of the carrier's departures that were late, last 7 days."),
        },
    ),
    "destination_ticks": (
        "destination",
        {"topic": "punctuality"},
        {
            "dest_delay_6h": ("minutes", "Mean arrival delay at the destination over the last 6 hours."),
            "dest_delay_24h": ("minutes", "Mean arrival delay at the destination over the last 24 hours."),
            "dest_late_share_24h": ("share", "Share of arrivals at the destination that were late, last 24 hours."),
            "dest_late_share_168h": ("share", "Share of arrivals at the destination that were late, last 7 days."),
        },
    ),
    "aircraft_ticks": (
        "aircraft",
        {"topic": "aircraft"},
        {
            "aircraft_delay_12h": ("minutes", "Mean departure delay of the aircraft over the last 12 hours."),
            "aircraft_delay_168h": ("minutes", "Mean departure delay of the aircraft over the last 7 days."),
            "aircraft_departures_168h": ("flights", "How often the aircraft departed in the last 7 days."),
            "aircraft_seats": ("seats", "Seats of the aircraft, from the register."),
            "aircraft_age_years": ("years", "Calendar years since the aircraft was built, from the register."),
        },
    ),
    "weather_ticks": (
        "origin",
        {"topic": "weather"},
        {
            "weather_temp": ("°F", "Air temperature at the airport, newest observation."),
            "weather_dewpoint": ("°F", "Dew point at the airport, newest observation."),
            "weather_humidity": ("%", "Relative humidity at the airport, newest observation."),
            "weather_wind_speed": ("mph", "Wind speed at the airport, newest observation; null where above 250."),
            "weather_precipitation": ("inches", "Precipitation at the airport in the hour of the newest observation."),
            "weather_pressure": ("hPa", "Sea level pressure at the airport, newest observation; often not reported."),
            "weather_visibility": ("miles", "Visibility at the airport, newest observation; 10 is the most reported."),
        },
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
            schema=[
                Field(name=name, dtype=Float64, description=description, tags={"unit": unit})
                for name, (unit, description) in features.items()
            ],
            source=source(table),
            tags=tags,
            online=True,
        )
        for table, (entity, tags, features) in _VIEWS.items()
    ]
    return [*entities.values(), *views, FeatureService(name="flight_delay_v1", features=views)]
