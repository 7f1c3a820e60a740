"""An evaluation as a page, one HTML file that needs nothing else, and the filling of this folder's templates. Pure.

Does not own: the numbers (`evaluate.py`), the drawings (`plots.py`), where a page goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib import resources
from typing import Any

from throughline.evaluation import plots
from throughline.records import EvaluationRecord, GateDecision

METRICS = ("log_loss", "auc", "brier", "ece")


def render(evaluation: EvaluationRecord, decision: GateDecision | None = None) -> str:
    """The page; with a decision it begins with that and its reasons."""
    e = evaluation
    pictures = {
        "reliability": plots.reliability_plot(e.reliability) if e.reliability else "",
        "slices": plots.slices_plot(e.slices) if e.slices else "",
        "importance": plots.importance_plot(e.importance) if e.importance else "",
        "missing": plots.bars_plot(e.missing, "rise of log loss") if e.missing else "",
    }
    values = {"e": e, "decision": decision, "shown": min(plots.SHOWN, len(e.slices))}
    return fill("report.html.j2", values, pictures)


def fill(
    template: str,
    values: Mapping[str, Any],
    pictures: Mapping[str, str] | None = None,
    finalize: Callable[[Any], Any] | None = None,
) -> str:
    """A template with its values. `pictures` (SVG) are markup, other texts are not; `finalize` escapes for Markdown."""
    from jinja2 import Environment, StrictUndefined  # postpones jinja2, which deciding does not need
    from markupsafe import Markup

    environment = Environment(
        autoescape=finalize is None, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=finalize
    )
    environment.filters |= {"time": _time, "number": number}
    text = resources.files("throughline.evaluation").joinpath(template).read_text()
    drawn = {name: Markup(svg) for name, svg in (pictures or {}).items()}
    return environment.from_string(text).render(**values, metrics=METRICS, plots=drawn)


def number(value: float | None) -> str:
    """Four digits after the point, and words where there is no number."""
    if value is None or math.isnan(value):
        return "cannot be computed"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"


def _time(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M}"
