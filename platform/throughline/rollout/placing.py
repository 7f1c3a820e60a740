"""The files of a version in the serving home: its signed folder, the rows that explanations compare with,
the statement of its release.

Owns: fetching and checking them. Does not own: the registry (`registry`), loading (`serving`).
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from throughline.evaluation import background
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.records import ModelRecord
from throughline.registry import statement
from throughline.registry.decisions import released
from throughline.registry.verification import verified
from throughline.registry.versions import fetch
from throughline.usecase import UseCase


def place(settings: Settings, usecase: UseCase, model: ModelRecord) -> None:
    """Copy the registered folder of `model` to the serving home, and the rows that explanations of it compare with; and
    state its release, without which no server loads it.

    Raises `ThroughlineError` when the history has no release of it, or its folder cannot be fetched as registered.
    """
    decision = released(settings, usecase.name, model)
    if decision is None:
        raise ThroughlineError(f"{model.reference} is not deployed: the history has no release of its registered file.")
    folder = settings.serving_home / usecase.name
    place_folder(settings, model, folder / str(model.version))
    background.place(settings, model, folder)
    statement.issue(settings, usecase.name, decision)


def place_folder(settings: Settings, model: ModelRecord, folder: Path) -> None:
    """Have the version's signed folder at `folder`. A copy there that is verified stays: a rollback needs no registry.

    Raises `ThroughlineError` when the registry's folder is refused, too.
    """
    if folder.exists():
        with contextlib.suppress(ThroughlineError):  # the history records the refusal; the registry's replaces it
            verified(settings, model, folder)
            return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        fetched = fetch(settings, model, Path(scratch) / "new").parent
        if folder.exists():
            folder.replace(Path(scratch) / "old")
        fetched.replace(folder)
