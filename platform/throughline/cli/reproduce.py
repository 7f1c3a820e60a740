"""`throughline reproduce`: rebuild a model version and compare.

Owns: options, the printed verdict. Does not own: what is compared (`experiment/reproduce.py`).
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from throughline.cli.arguments import Model
from throughline.cli.output import console, emit, out
from throughline.experiment.reproduce import reproduce as rebuild
from throughline.experiment.train import Run
from throughline.foundation.settings import load_settings


def reproduce(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Rebuild a version from the registry's record alone, and compare. Registers nothing."""
    with console.status(f"rebuilding {model}") as status:

        def show(event: dict[str, Any]) -> None:
            status.update(f"rebuilding {model}: {event['event']} {event.get('epoch', '')}")

        found = rebuild(Run(load_settings(), on_event=show), model)

    def text() -> None:
        verdict = "identical" if found.identical else "agrees within the tolerance" if found.agrees else "DIFFERS"
        out().print(
            f"[bold]{model}[/]: {verdict}, digest {found.digest[:12]} (registered {found.registered_digest[:12]})"
        )
        for key, values in found.metrics.items():
            out().print(f"  {key}: registered {values.registered}, rebuilt {values.rebuilt}")
        out().print(f"  commit {found.commit[:12]}, lock {found.lock}")
        for note in found.notes:
            out().print(f"  {note}")

    emit(as_json, found.model_dump(mode="json"), text)
    if not found.agrees:
        raise typer.Exit(1)
