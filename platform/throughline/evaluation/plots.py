"""Pictures of an evaluation, as SVG for a page. Pure. Owns: drawing. Does not own: numbers, or where pictures go."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from throughline.records import GlobalImportance, ReliabilityBin, SliceMetrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"candidate": "#2a6f97", "champion": "#e07a1f"}
SHOWN = 40
FEATURES_SHOWN = 20


def reliability_plot(bins: Mapping[str, Sequence[ReliabilityBin]]) -> str:
    """Predicted against observed share of positives, a line per model; the dots grow with their rows."""
    figure, axes = _figure(4.6, 4.4)
    axes.plot([0, 1], [0, 1], color="0.75", linewidth=1)
    for name, of in bins.items():
        predicted, observed = [one.mean_score for one in of], [one.outcome_rate for one in of]
        most = max(one.rows for one in of)
        axes.plot(predicted, observed, color=COLOURS[name], linewidth=1.2, label=name)
        axes.scatter(predicted, observed, s=[8 + 60 * one.rows / most for one in of], color=COLOURS[name])
    highest = max((max(one.mean_score, one.outcome_rate) for of in bins.values() for one in of), default=1.0)
    limit = min(1.0, 1.1 * max(highest, 0.05))
    axes.set(xlabel="predicted", ylabel="observed", xlim=(0, limit), ylim=(0, limit))
    axes.legend(frameon=False)
    return _svg(figure)


def slices_plot(slices: Sequence[SliceMetrics]) -> str:
    """Per slice the log loss saved against a constant and, with its interval, lost against the champion."""
    shown = sorted(slices, key=lambda one: one.log_loss_under_constant)[:SHOWN][::-1]
    rival = any(one.log_loss_over_champion is not None for one in shown)
    figure, axes = _figure(8.2, 0.6 + 0.24 * len(shown), columns=2 if rival else 1)
    left, right = axes if rival else (axes, None)
    places = range(len(shown))
    left.barh(places, [one.log_loss_under_constant for one in shown], color=COLOURS["candidate"], height=0.7)
    left.set_yticks(places, [f"{one} ({one.metrics.rows:,})" for one in shown], fontsize=8)
    left.axvline(0, color="0.4", linewidth=0.8)
    left.set_xlabel("log loss saved against a constant")
    if right is not None:
        for place, one in enumerate(shown):
            if (span := one.over_champion_interval) is not None:
                right.plot([span.low, span.high], [place, place], color="0.6", linewidth=2)
            right.plot(one.log_loss_over_champion, place, "o", color=COLOURS["champion"], markersize=4)
        right.axvline(0, color="0.4", linewidth=0.8)
        right.set_yticks([])
        right.set_ylim(left.get_ylim())
        right.set_xlabel("log loss over the champion, 95 % by day")
    return _svg(figure)


def bars_plot(values: Mapping[str, float], label: str) -> str:
    """A bar per name, the largest on top."""
    shown = sorted(values.items(), key=lambda item: item[1])
    figure, axes = _figure(7.0, 0.6 + 0.26 * len(shown))
    axes.barh([name for name, _ in shown], [value for _, value in shown], color=COLOURS["candidate"], height=0.7)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel(label)
    return _svg(figure)


def importance_plot(importance: GlobalImportance) -> str:
    """Mean absolute contribution of the features that matter most, in probability."""
    shown = dict(list(importance.features.items())[:FEATURES_SHOWN])
    return bars_plot(shown, f"mean |contribution| to the probability, {importance.rows} rows")


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """Without pyplot, which keeps a state for the whole process."""
    from matplotlib.figure import Figure  # postpones matplotlib

    figure = Figure(figsize=(width, max(1.2, height)), layout="constrained")
    axes = figure.subplots(1, columns)
    for one in axes if columns > 1 else (axes,):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The drawing alone: a page has one XML declaration at most. Texts stay texts, so that a page can be searched."""
    from matplotlib import rc_context  # postpones matplotlib

    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "throughline"}):
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = drawn.getvalue()
    return text[text.index("<svg") :]
