"""An evaluation as a page: one HTML file that needs nothing else. Pure.

Owns: what the page says. Does not own: the numbers (`evaluate.py`), the drawings (`plots.py`), where the page goes.
"""

from __future__ import annotations

import math
from importlib import resources

from throughline.evaluation import plots
from throughline.records import EvaluationRecord, GateDecision, Interval, Metrics


def render(evaluation: EvaluationRecord, decision: GateDecision | None = None) -> str:
    """The page; with a decision it begins with that and its reasons."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    template = resources.files("throughline.evaluation").joinpath("report.html.j2").read_text()
    judged: list[tuple[str, Metrics]] = [("candidate", evaluation.candidate)]
    for who in ("champion", "simple_rule", "constant"):
        if (metrics := getattr(evaluation, who)) is not None:
            judged.append((who, metrics))
    drawn = {
        "reliability": plots.reliability_plot(evaluation.reliability) if evaluation.reliability else "",
        "slices": plots.slices_plot(evaluation.slices) if evaluation.slices else "",
        "importance": plots.importance_plot(evaluation.importance) if evaluation.importance else "",
        "missing": plots.bars_plot(evaluation.missing, "rise of log loss") if evaluation.missing else "",
    }

    def intervals(who: str, metric: str) -> Interval | None:
        return evaluation.intervals.get(who, {}).get(metric)

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(template)
    return page.render(
        e=evaluation,
        decision=decision,
        judged=judged,
        intervals=intervals,
        over=intervals("over_champion", "log_loss"),
        plots={name: Markup(svg) for name, svg in drawn.items()},
        shown=min(plots.SHOWN, len(evaluation.slices)),
        number=number,
    )


def number(value: float | None) -> str:
    """As a reader takes it in: four digits behind the point, and words where there is none."""
    if value is None or math.isnan(value):
        return "cannot be had"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"
