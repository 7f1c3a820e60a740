"""`throughline models`: which versions are registered, and the card of one.

Owns: tables, JSON:
    models       a list of objects, newest first: model (NAME/VERSION), aliases, trainer, dataset (fingerprint),
                 dataset_table, auc (on the rows held out), decision, parent, card (an address in MLflow), registered
    models card  the card as one object (`throughline.evaluation.card.Card`)
Does not own: what a version is (`registry/`).
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from throughline.cli.arguments import AsJson, Model, OneUseCase
from throughline.cli.output import emit, out
from throughline.evaluation.card import render_html, render_markdown
from throughline.evaluation.card_store import current_card
from throughline.foundation.settings import load_settings
from throughline.models import description
from throughline.models.description import VersionSummary
from throughline.registry import versions as registry
from throughline.usecase import get_usecase, load_usecases

app = typer.Typer(invoke_without_command=True)


@app.callback()
def models(context: typer.Context, usecase: OneUseCase = None, as_json: AsJson = False) -> None:
    """List the registered versions, the newest first; `models card` shows the card of one."""
    if context.invoked_subcommand is not None:
        return
    settings = load_settings()
    names = [get_usecase(usecase).name] if usecase else list(load_usecases())
    found = [summary for name in names for summary in description.summaries(settings, name)]
    emit(as_json, [summary.model_dump(mode="json") for summary in found], lambda: _show(found))


@app.command()
def card(
    model: Model,
    html: Annotated[bool, typer.Option("--html", help="Print the page instead of Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """The card of a version, its signature verified, with the history as it stands now."""
    settings = load_settings()
    found = current_card(settings, registry.get(settings, model))
    text = render_html if html else render_markdown
    emit(as_json, found.model_dump(mode="json"), lambda: sys.stdout.write(text(found)))


def _show(found: list[VersionSummary]) -> None:
    if not found:
        out().print("no version is registered yet: `throughline run`, or `throughline train USECASE`")
        return
    table = Table("model", "alias", "trainer", "dataset", "AUC", "decision", "registered (UTC)", box=None)
    for one in found:
        auc = "" if one.auc is None else f"{one.auc:.4f}"
        names = (str(one.model), ", ".join(one.aliases), one.trainer, one.dataset[:12])
        table.add_row(*map(escape, names), auc, one.decision or "", f"{one.registered:%Y-%m-%d %H:%M}")
    out().print(table)
