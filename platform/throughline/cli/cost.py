"""`throughline cost`: what use cases and their model versions cost, in seconds and bytes.

Owns: the table, and the JSON of `--json`, a list with one object per use case:
    usecase, training_s, training_core_s, serving_s, predictions, table_bytes, model_bytes: totals
    versions     a list of objects, newest first: model (NAME/VERSION), trainer, training_s (of its run, wall clock),
                 search_runs and search_s (trials of the search that chose it), training_core_s (both, times the cores
                 they had), serving_s, requests, predictions (rows, all traffic classes), production_predictions,
                 bytes (null: its folder is not on this machine)
    other_runs, other_training_s, other_core_s   runs that gave no version: failed, given up
    tables       room of the graph -> bytes, kept table versions included
Does not own: the figures, and where they come from (`throughline.views.cost`).
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from throughline.cli.arguments import AsJson
from throughline.cli.output import columns, emit, out
from throughline.foundation.settings import load_settings
from throughline.usecase import get_usecase, load_usecases
from throughline.views.cost import UseCaseCost, cost_of

_UNITS = ("B", "kB", "MB", "GB", "TB")


def cost(
    usecase: Annotated[str | None, typer.Argument(metavar="[USECASE]", help="All of them when not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Seconds of training and serving, and bytes kept, by use case and model version.

    Training is the duration of MLflow runs, serving the latencies in the inference log: both survive restarts.
    """
    settings = load_settings()
    declared = [get_usecase(usecase)] if usecase else list(load_usecases().values())
    found = [cost_of(settings, each) for each in declared]
    emit(as_json, [one.model_dump(mode="json") for one in found], lambda: _show(found))


def _show(found: list[UseCaseCost]) -> None:
    screen = out()
    for one in found:
        screen.print(
            f"[bold]{escape(one.usecase)}[/]  training {seconds(one.training_s)} "
            f"({seconds(one.training_core_s)} of cores), serving {seconds(one.serving_s)} for {one.predictions:,} "
            f"predictions, tables {size(one.table_bytes)}, models {size(one.model_bytes)}"
        )
        numbers = ("training", "search", "cores", "serving", "predictions", "per prediction", "size")
        table = columns("model", "trainer", *numbers, right=numbers)
        for version in one.versions:
            each = version.serving_s / version.predictions if version.predictions else None
            table.add_row(
                str(version.model),
                escape(version.trainer),
                seconds(version.training_s),
                seconds(version.search_s) if version.search_runs else "",
                seconds(version.training_core_s),
                seconds(version.serving_s) if version.requests else "",
                f"{version.predictions:,}",
                "" if each is None else f"{each * 1000:.2f} ms",
                "elsewhere" if version.bytes is None else size(version.bytes),
            )
        if one.other_runs:
            spent = (seconds(one.other_training_s), "", seconds(one.other_core_s))
            table.add_row(f"[dim]{one.other_runs} runs without a version[/]", "", *spent, "", "", "", "")
        screen.print(table)
        rooms = ", ".join(f"{escape(room)} {size(stored)}" for room, stored in one.tables.items())
        screen.print(f"tables: {rooms or 'none'}\n", style="dim")


def seconds(value: float) -> str:
    """With the unit that leaves one to three digits before the point."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes in the largest decimal unit that gives at least 1."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"
