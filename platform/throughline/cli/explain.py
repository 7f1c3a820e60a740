"""`throughline explain PREDICTION_ID`: which features made a prediction what it is.

Owns: the table on the terminal, and the JSON of `--json`: prediction_id, model_name, model_version, decision, score,
base_value, explanations (feature, value, contribution; the largest first), and with `--top` rest: what the others add.
Does not own: the explanation (`throughline.lineage.explained`).
"""

from __future__ import annotations

from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from throughline.cli.output import emit, out
from throughline.foundation.settings import load_settings

BAR = 24  # columns of the longest bar


def explain(
    prediction_id: str = typer.Argument(metavar="PREDICTION_ID", help="As the endpoint named it in its answer."),
    top: int | None = typer.Option(None, "--top", min=1, help="Only the features that matter most."),
    as_json: bool = typer.Option(False, "--json", help="Print the explanation as JSON."),
) -> None:
    """Explain a logged prediction, from the features it was made of, by the model version that made it."""
    from throughline.lineage.explained import explain_logged

    told = explain_logged(load_settings(), prediction_id)
    if top is not None:
        told["rest"] = sum(one["contribution"] for one in told["explanations"][top:])
        told["explanations"] = told["explanations"][:top]
    emit(as_json, told, lambda: _show(told))


def _show(told: dict[str, Any]) -> None:
    screen = out()
    screen.print(
        f"[bold]{escape(told['decision'])}[/] score {told['score']:.4f}, "
        f"{escape(told['model_name'])}/{told['model_version']}, prediction_id {told['prediction_id']}"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("feature", "value", "adds", ""):
        table.add_column(heading, justify="right" if heading in {"value", "adds"} else "left", no_wrap=True)
    table.add_row("[dim]mean of the rows compared with[/]", "", f"{told['base_value']:.4f}", "")
    most = max((abs(one["contribution"]) for one in told["explanations"]), default=0) or 1.0
    for one in told["explanations"]:
        adds = one["contribution"]
        bar = "█" * round(BAR * abs(adds) / most)
        table.add_row(escape(one["feature"]), _value(one["value"]), f"{adds:+.4f}", f"[{_colour(adds)}]{bar}[/]")
    if "rest" in told:
        table.add_row("[dim]all others[/]", "", f"{told['rest']:+.4f}", "")
    table.add_row("[bold]score[/]", "", f"[bold]{told['score']:.4f}[/]", "")
    screen.print(table)


def _colour(adds: float) -> str:
    return "red" if adds > 0 else "blue"


def _value(value: float | str | None) -> str:
    if value is None:
        return "[dim]missing[/]"
    return escape(value) if isinstance(value, str) else f"{value:.6g}"
