"""`throughline explain PREDICTION_ID`: what each feature added to the score of a prediction.

Owns: the table on the terminal, and the JSON of `--json`: prediction_id, model_name, model_version, decision, score,
base_value, explanations (feature, value, contribution; the largest first), and with `--top` rest: what the others add.
Does not own: the explanation (`throughline.lineage.explained`).
"""

from __future__ import annotations

from typing import Any

import typer
from rich.markup import escape

from throughline.cli.arguments import AsJson, PredictionId
from throughline.cli.output import columns, emit, out, prediction_line
from throughline.foundation.settings import load_settings
from throughline.lineage.explained import explain_logged

BAR = 24  # columns of the longest bar


def explain(
    prediction_id: PredictionId,
    top: int | None = typer.Option(None, "--top", min=1, help="Only the features that matter most."),
    as_json: AsJson = False,
) -> None:
    """Explain a logged prediction, from the features it was made of, by the model version that made it."""
    explained = explain_logged(load_settings(), prediction_id)
    if top is not None:
        explained["rest"] = sum(each["contribution"] for each in explained["explanations"][top:])
        explained["explanations"] = explained["explanations"][:top]
    emit(as_json, explained, lambda: _show(explained))


def _show(explained: dict[str, Any]) -> None:
    out().print(prediction_line(explained))
    table = columns("feature", "value", "adds", "", right=("value", "adds"))
    table.add_row("[dim]mean of the rows compared with[/]", "", f"{explained['base_value']:.4f}", "")
    most = max((abs(each["contribution"]) for each in explained["explanations"]), default=0) or 1.0
    for each in explained["explanations"]:
        adds = each["contribution"]
        bar = f"[{'red' if adds > 0 else 'blue'}]{'█' * round(BAR * abs(adds) / most)}[/]"
        table.add_row(escape(each["feature"]), _value(each["value"]), f"{adds:+.4f}", bar)
    if "rest" in explained:
        table.add_row("[dim]all others[/]", "", f"{explained['rest']:+.4f}", "")
    table.add_row("[bold]score[/]", "", f"[bold]{explained['score']:.4f}[/]", "")
    out().print(table)


def _value(value: float | str | None) -> str:
    if value is None:
        return "[dim]missing[/]"
    return escape(value) if isinstance(value, str) else f"{value:.6g}"
