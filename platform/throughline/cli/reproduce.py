"""`throughline reproduce`: rebuild a model version and compare.

Owns: options, the printed verdict. Does not own: what is compared (`experiment/reproduce.py`).
"""

from __future__ import annotations

from typing import Any

import typer

from throughline.cli.arguments import AsJson, Model
from throughline.cli.output import console, emit, out
from throughline.experiment.reproduce import reproduce as rebuild
from throughline.experiment.train import Run
from throughline.foundation.settings import load_settings


def reproduce(model: Model, as_json: AsJson = False) -> None:
    """Rebuild a version from what the registry records of it, and compare. Registers nothing."""
    with console.status(f"rebuilding {model}") as status:

        def show(event: dict[str, Any]) -> None:
            status.update(f"rebuilding {model}: {event['event']} {event.get('epoch', '')}")

        found = rebuild(Run(load_settings(), on_event=show), model)
    verdict = "identical" if found.identical else "agrees within the tolerance" if found.agrees else "DIFFERS"
    lines = [
        f"[bold]{model}[/]: {verdict}, digest {found.digest[:12]} (registered {found.registered_digest[:12]})",
        *(f"  {key}: registered {each.registered}, rebuilt {each.rebuilt}" for key, each in found.metrics.items()),
        f"  commit {found.commit[:12]}, lock {found.lock}",
        *(f"  {note}" for note in found.notes),
    ]
    emit(as_json, found.model_dump(mode="json"), lambda: out().print("\n".join(lines)))
    if not found.agrees:
        raise typer.Exit(1)
