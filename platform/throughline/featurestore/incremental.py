"""Which days of a feature table to build, by the origin of its content and the origin wanted.

Owns: the rule that after each build a table equals a build of all its days at the same pins (pure), and reading origins
from the tables' commits. Does not own: the SQL (dbt), or the run that executes it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import Any

from throughline.featurestore.layout import LAYER
from throughline.foundation.days import DAY, spans, through
from throughline.foundation.fingerprint import combine
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.content import net_changes
from throughline.lakehouse.delta import Location
from throughline.lakehouse.spark import address, schema_name
from throughline.lakehouse.table import DAY as PARTITION
from throughline.lakehouse.table import INPUTS, KEEPS_CONTENT, Commit, current_version, history
from throughline.records import Record
from throughline.usecase import UseCase


class Origin(Record):
    """What a feature table's content was made from; kept as JSON in the Delta commit that wrote it.

    pins: version per source table; as_of (UTC): rows known later are not read; code: digest of the model and its
    macros; first: the first local day of the data.
    """

    pins: dict[str, int]
    as_of: datetime
    code: str
    first: date


def inputs_of(table: str, commit: Commit) -> list[TableReference] | None:
    """The tables that a commit of USECASE/LAYER/TABLE was made from, by its `inputs` or its `Origin`."""
    if INPUTS in commit.notes:
        return [TableReference.parse(text) for text in json.loads(commit.notes[INPUTS])]
    if "userMetadata" in commit.notes:
        raw = f"{table.partition('/')[0]}/raw"
        pins = Origin.model_validate_json(commit.notes["userMetadata"]).pins
        return [TableReference(f"{raw}/{name}", version) for name, version in sorted(pins.items())]
    return None


@dataclass(frozen=True)
class Build:
    """The local days to build, as inclusive ranges; `whole`: the table is replaced by these days."""

    whole: bool
    ranges: list[tuple[date, date]]
    origin: Origin

    @property
    def days(self) -> list[date]:
        return [day for first, last in self.ranges for day in through(first, last)]

    def __str__(self) -> str:
        if not self.ranges:
            return "nothing changed"
        days = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in self.ranges)
        return f"{'all days' if self.whole else 'days'} {days}"

    def to_dbt(self) -> dict[str, Any]:
        ranges = [[first.isoformat(), last.isoformat()] for first, last in self.ranges]
        as_of = self.origin.as_of.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        return {"whole": self.whole, "ranges": ranges, "as_of": as_of, "origin": self.origin.model_dump_json()}


def plan_build(
    usecase: UseCase,
    built: Origin | None,
    wanted: Origin,
    changed: Mapping[str, set[date] | None],
    seen_within: timedelta,
    requested: Iterable[date] = (),
) -> Build:
    """The days to build so that the table follows from `wanted`; days to come are not built.

    changed:     per source table, the days whose rows differ between the two pins; None: unknown, so all.
    seen_within: how long after its knowledge time a source row is read.
    requested:   days to build also when nothing changed.
    """
    if built is not None and built.as_of > wanted.as_of:  # days built ahead of the clock are kept
        wanted = wanted.model_copy(update={"as_of": built.as_of})
    last = last_day(usecase, wanted.as_of)
    unknown = any(days is None for days in changed.values())
    if built is None or unknown or (built.code, built.first) != (wanted.code, wanted.first):
        return Build(True, [(wanted.first, last)] if last >= wanted.first else [], wanted)
    days = set(requested)
    if wanted.as_of > built.as_of:
        days |= set(through(usecase.local_day(built.as_of), last))  # the last day built was not over
    for day in chain.from_iterable(changed_days or () for changed_days in changed.values()):
        days |= set(_followed(usecase, day, seen_within))
    return Build(False, spans(day for day in days if wanted.first <= day <= last), wanted)


def last_day(usecase: UseCase, as_of: datetime) -> date:
    """The local day of `as_of` (UTC); midnight belongs to the day before."""
    return usecase.local_day(as_of - timedelta(microseconds=1))


def _followed(usecase: UseCase, day: date, seen_within: timedelta) -> Iterable[date]:
    """The days whose ticks read a row that became known on `day`."""
    last_tick = usecase.day_start(day + DAY) + timedelta(hours=1) - timedelta(microseconds=1) + seen_within
    hour = last_tick.replace(minute=0, second=0, microsecond=0)
    return through(day, last_day(usecase, hour))


def read_origin(path: Location) -> Origin | None:
    """The origin of the newest content of the table at `path`; None without a table, or when it is unknown."""
    if current_version(path) is None:
        return None
    for commit in history(path):
        if "userMetadata" in commit.notes:
            return Origin.model_validate_json(commit.notes["userMetadata"])
        if commit.operation not in KEEPS_CONTENT:
            return None
    return None


def model_code(manifest: Mapping[str, Any], unique_id: str) -> str:
    """Digest of a dbt model's SQL and meta with all the project's own macros that it uses, directly or not."""
    node = manifest["nodes"][unique_id]
    project, macros = node["package_name"], manifest["macros"]
    used: set[str] = set()
    materialization = f"macro.{project}.materialization_{node['config']['materialized']}_spark"
    following = [*node["depends_on"]["macros"], materialization]
    while following:
        name = following.pop()
        if name in used or macros.get(name, {}).get("package_name") != project:
            continue
        used.add(name)
        following += macros[name]["depends_on"]["macros"]
    meta = json.dumps(node["config"].get("meta", {}), sort_keys=True)
    return combine(node["raw_code"], meta, *(macros[name]["macro_sql"] for name in sorted(used)))


def plan_builds(
    settings: Settings,
    usecase: UseCase,
    manifest: Mapping[str, Any],
    pins: Mapping[str, int],
    as_of: datetime,
    requested: Collection[date] = (),
) -> dict[str, Build]:
    """The build of every model of the use case, by its table's origin and its sources' changes; `pins` by table."""
    builds = {}
    for unique_id, node in models_of(manifest, usecase).items():
        path = settings.table_path(usecase.name, LAYER, node["name"])
        sources = [source.rpartition(".")[2] for source in node["depends_on"]["nodes"]]
        code = combine(model_code(manifest, unique_id), str(usecase.prediction.lead), usecase.timezone)
        wanted_pins = {name: pins[name] for name in sources}
        wanted = Origin(pins=wanted_pins, as_of=as_of, code=code, first=usecase.first_day(settings))
        built = read_origin(path)
        changed = {
            name: _changed_days(settings, usecase, name, built.pins[name], version)
            for name, version in wanted.pins.items()
            if built is not None and name in built.pins
        }
        seen_within = timedelta(hours=node["config"]["meta"]["seen_within_hours"])
        builds[node["name"]] = plan_build(usecase, built, wanted, changed, seen_within, requested)
    return builds


def plan_late(
    settings: Settings, usecase: UseCase, manifest: Mapping[str, Any], pins: Mapping[str, int]
) -> dict[str, Build]:
    """The builds that new source versions need at the clock of the last build; none before the first build."""
    models = [node["name"] for node in models_of(manifest, usecase).values()]
    origins = [read_origin(settings.table_path(usecase.name, LAYER, name)) for name in models]
    built = [origin.as_of for origin in origins if origin is not None]
    return plan_builds(settings, usecase, manifest, pins, min(built)) if len(built) == len(models) else {}


def source_versions(settings: Settings, usecase: UseCase) -> dict[str, int] | None:
    """The newest version of every source table; None before all are there."""
    found = {name: current_version(settings.table_path(usecase.name, "raw", name)) for name in usecase.sources.tables}
    return None if None in found.values() else {name: version for name, version in found.items() if version is not None}


def _changed_days(settings: Settings, usecase: UseCase, name: str, after: int, until: int) -> set[date] | None:
    if after == until:
        return set()
    net = net_changes(settings.table_path(usecase.name, "raw", name), after, until)
    if net is None or net.is_empty():
        return None if net is None else set()
    # a static table has no days: a change in it may be read on any
    return None if usecase.sources.tables[name].static else set(net[PARTITION].to_list())


def models_of(manifest: Mapping[str, Any], usecase: UseCase) -> dict[str, Any]:
    """The dbt models of a use case: those in the folder of its name, by unique id."""
    return {
        unique_id: node
        for unique_id, node in manifest["nodes"].items()
        if node["resource_type"] == "model" and node["fqn"][1] == usecase.name
    }


def dbt_variables(
    settings: Settings, usecase: UseCase, pins: Mapping[str, int], builds: Mapping[str, Build]
) -> dict[str, Any]:
    """The variables of the dbt project: endpoint, pins, days to build (see dbt_project.yml)."""
    return {
        "spark_remote": settings.spark_url,
        "lakehouse": address(settings.lakehouse),
        "lead_seconds": int(usecase.prediction.lead.total_seconds()),
        "first_day": usecase.first_day(settings).isoformat(),
        "timezone": usecase.timezone,
        "pins": {f"{schema_name(usecase.name, 'raw')}.{name}": version for name, version in pins.items()},
        "builds": {name: build.to_dbt() for name, build in builds.items()},
    }
