"""Names of the feature tables and of the columns they share, their pins, and the file of the Feast registry.

Imports no Feast, so that whatever only reads tables can use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from throughline.featurestore.online_format import store_folder
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, pin
from throughline.usecase import UseCase

LAYER = "features"
EVENT_TIME = "event_timestamp"
KNOWN = "available_at"  # knowledge time: since when a row is known
PUSHED = "_pushed"  # what the name of a table of pushed rows ends with; see pushed.py


def registry_file(settings: Settings, usecase: UseCase) -> Path:
    return store_folder(settings, usecase.name) / "registry.db"


def pin_sources(settings: Settings, usecase: UseCase, tables: Iterable[str]) -> list[TableReference]:
    """The feature tables at their newest versions, then the tables of rows pushed beside them, where there are any."""
    names = [f"{usecase.name}/{LAYER}/{table}" for table in tables]
    pushed = [f"{name}{PUSHED}" for name in names]
    return [pin(settings, name) for name in names] + [
        pin(settings, name) for name in pushed if current_version(settings.lakehouse / name) is not None
    ]
