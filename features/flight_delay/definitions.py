"""Feast definitions of the use case: entities, a feature view per tick table, the feature service of the models.

Owns: meaning, unit and tags of each feature. Does not own: what a table is (dbt's schema.yml). A deprecated feature has
the tags `deprecated` (why) and, where there is a replacement, `replaced_by`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from feast import Entity, FeatureService, FeatureView, Field
from feast.data_source import DataSource
from feast.types import Float64
from feast.value_type import ValueType

# Entity -> the column that is its key, and that column's type. A view of several entities is keyed by all of them.
_ENTITIES = {
    "origin": ("origin", ValueType.STRING),
    "carrier": ("carrier", ValueType.STRING),
    "destination": ("dest", ValueType.STRING),
    "aircraft": ("tailnum", ValueType.STRING),
    "flight": ("flight", ValueType.INT64),
}

# Declares the windows and statistics of each table; their meaning is below.
_MODELS = Path(__file__).parents[1] / "models" / "flight_delay" / "schema.yml"

# Per view: entities, tags, and the unit and description of each feature, or statistic of its grid ({span}: the window).
# Late is more than 15 minutes; early is negative. Overdue: should have left and has not.
_VIEWS: dict[str, tuple[list[str], dict[str, str], dict[str, tuple[str, str]]]] = {
    "origin_ticks": (
        ["origin"],
        {"topic": "punctuality"},
        {
            "departures": ("flights", "Departures from the airport in the last {span}."),
            "delay": ("minutes", "Mean departure delay at the airport over the last {span}."),
            "late_share": ("share", "Share of the airport's departures that were late, last {span}."),
            "origin_overdue_5h": ("flights", "Overdue flights at the airport, scheduled in the last 5 hours."),
            "origin_scheduled_3h": ("flights", "Departures from the airport scheduled for the next 3 hours."),
            "origin_so_far_2h": ("minutes", "Mean delay so far of flights scheduled in the last 2 hours."),
            "origin_overdue_share_2h": ("share", "Share of flights overdue of those scheduled in the last 2 hours."),
            "nearby_late_share_2h": ("share", "Share late so far of the last 2 hours' flights of all origins."),
        },
    ),
    "carrier_ticks": (
        ["carrier"],
        {"topic": "punctuality"},
        {
            "delay": ("minutes", "Mean departure delay of the carrier over the last {span}."),
            "late_share": ("share", "Share of the carrier's departures that were late, last {span}."),
            "carrier_late_so_far_4h": ("share", "Share late so far of the carrier's flights of the last 4 hours."),
            "carrier_overdue_share_4h": ("share", "Share overdue of the carrier's flights of the last 4 hours."),
        },
    ),
    "station_ticks": (
        ["origin", "carrier"],
        {"topic": "punctuality"},
        {
            "delay": ("minutes", "Mean arrival delay of the carrier's flights from the origin over the last {span}."),
            "station_late_so_far_4h": (
                "share",
                "Share late so far of the carrier's flights from the origin, last 4 hours.",
            ),
            "station_overdue_share_4h": (
                "share",
                "Share overdue of the carrier's flights from the origin, last 4 hours.",
            ),
        },
    ),
    "destination_ticks": (
        ["destination"],
        {"topic": "punctuality"},
        {
            "delay": ("minutes", "Mean arrival delay at the destination over the last {span}."),
            "late_share": ("share", "Share of arrivals at the destination that were late, last {span}."),
        },
    ),
    "route_ticks": (
        ["origin", "destination"],
        {"topic": "punctuality"},
        {"delay": ("minutes", "Mean arrival delay on the route over the last {span}.")},
    ),
    "flight_ticks": (
        ["carrier", "flight", "origin"],
        {"topic": "punctuality"},
        {
            "delay": ("minutes", "Mean arrival delay of flights of this number over the last {span}."),
            "late_share": ("share", "Share of flights of this number that arrived late, last {span}."),
        },
    ),
    "aircraft_ticks": (
        ["aircraft"],
        {"topic": "aircraft"},
        {
            "delay": ("minutes", "Mean departure delay of the aircraft over the last {span}."),
            "departures": ("flights", "How often the aircraft departed in the last {span}."),
            "aircraft_spare_minutes": (
                "minutes",
                "Spare time to fly there and back before the next departure, -600 to 1440.",
            ),
            "aircraft_seats": ("seats", "Seats of the aircraft, from the register."),
            "aircraft_age_years": ("years", "Calendar years since the aircraft was built, from the register."),
        },
    ),
    "weather_ticks": (
        ["origin"],
        {"topic": "weather"},
        {
            "weather_temp": ("°F", "Air temperature at the airport, newest observation."),
            "weather_dewpoint": ("°F", "Dew point at the airport, newest observation."),
            "weather_humidity": ("%", "Relative humidity at the airport, newest observation."),
            "weather_wind_speed": ("mph", "Wind speed at the airport, newest observation; null where above 250."),
            "weather_wind_north": ("mph", "Wind from the north, newest observation; from the south negative."),
            "weather_wind_east": ("mph", "Wind from the east, newest observation; from the west negative."),
            "weather_precipitation": ("inches", "Precipitation at the airport in the hour of the newest observation."),
            "weather_pressure": ("hPa", "Sea level pressure at the airport, newest observation; often not reported."),
            "weather_pressure_12h": ("hPa", "Sea level pressure at the airport, newest reported in the last 12 hours."),
            "weather_pressure_change": ("hPa", "Change of sea level pressure at the airport in 3 hours or more."),
            "weather_visibility": ("miles", "Visibility at the airport, newest observation; 10 is the most reported."),
            "weather_visibility_3h": ("miles", "Lowest visibility at the airport in the last 3 hours."),
            "weather_visibility_nearby": ("miles", "Lowest visibility at any of the origins, newest observations."),
        },
    ),
}


def _fields(described: dict[str, tuple[str, str]], grid: dict[str, Any]) -> Iterator[Field]:
    """A field per cell of the grid, and per further feature."""
    windows = grid.get("windows", {})
    cells = [(statistic, window) for window, statistics in windows.items() for statistic in statistics]
    for statistic, window in cells:
        unit, description = described[statistic]
        span = "7 days" if window == "168h" else f"{window[:-1]} hours"
        name = f"{grid['prefix']}_{statistic}_{window}"
        yield Field(name=name, dtype=Float64, description=description.format(span=span), tags={"unit": unit})
    declared = {statistic for statistic, _ in cells}
    for name, (unit, description) in described.items():
        if name not in declared:
            yield Field(name=name, dtype=Float64, description=description, tags={"unit": unit})


def build(source: Callable[[str], DataSource]) -> list[Entity | FeatureView | FeatureService]:
    """All Feast objects of the use case; `source` returns the pinned source of a tick table, by name."""
    models = yaml.safe_load(_MODELS.read_text())["models"]
    grids = {model["name"]: model.get("config", {}).get("meta", {}).get("grid", {}) for model in models}
    entities = {name: Entity(name=name, join_keys=[key], value_type=kind) for name, (key, kind) in _ENTITIES.items()}
    views = [
        FeatureView(
            name=table,
            entities=[entities[name] for name in keyed_by],
            schema=list(_fields(described, grids[table])),
            source=source(table),
            tags=tags,
            online=True,
        )
        for table, (keyed_by, tags, described) in _VIEWS.items()
    ]
    return [*entities.values(), *views, FeatureService(name="flight_delay_v1", features=[*views])]
