"""What assets are given: settings, the data clock, dbt, the launchers, and where records are kept."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dagster import AssetExecutionContext, AssetIn, InputContext, IOManager, OutputContext
from dagster_dbt import DbtCliResource

from throughline.featurestore import dbt
from throughline.foundation import tags
from throughline.foundation.clock import data_clock
from throughline.foundation.settings import Settings
from throughline.launch import LAUNCHERS, Launcher
from throughline.records import Record
from throughline.records.store import load_record, save_record
from throughline.usecase import UseCase

# By the name that a declaration gives them.
Launchers = Mapping[str, Launcher]


class RecordIOManager(IOManager):
    """Hands records from asset to asset as JSON files: typed, readable, never a pickle."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def handle_output(self, context: OutputContext, obj: Record) -> None:
        save_record(self._settings, tuple(context.asset_key.path), obj)

    def load_input(self, context: InputContext) -> Record:
        return load_record(self._settings, tuple(context.asset_key.path), context.dagster_type.typing_type)


def resources(settings: Settings) -> Mapping[str, Any]:
    return {
        "settings": settings,
        "launchers": LAUNCHERS,
        "io_manager": RecordIOManager(settings),
        "dbt_cli": DbtCliResource(
            dbt_executable=dbt.executable(), project_dir=str(dbt.PROJECT), profiles_dir=str(dbt.PROJECT)
        ),
    }


def as_of(context: AssetExecutionContext, settings: Settings, usecase: UseCase) -> datetime:
    """The instant (UTC) up to which this run may know anything.

    The data clock, unless a tag of the run states another: a replay brings a whole day's deliveries before it
    replays that day hour by hour; whatever reads them filters by knowledge time.
    """
    stated = context.run.tags.get(tags.AS_OF)
    if stated is not None:
        return datetime.fromisoformat(stated)
    return clock_now(settings, usecase)


def clock_now(settings: Settings, usecase: UseCase) -> datetime:
    """What the data clock of this home shows (UTC)."""
    return data_clock(settings, usecase.clock_start(settings)).now()


def record_of(usecase: UseCase, room: str, name: str) -> AssetIn:
    """The record that another asset of the use case hands over."""
    return AssetIn(key=[usecase.name, room, name])
