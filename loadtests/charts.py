"""Charts over the time of a run, as inline SVG. Pure. Owns: drawing. Does not own: what is drawn (`report.py`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 760, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 26
COLOURS = ("#2a6f97", "#e07a1f", "#b3261e", "#6b7885")

Line = Sequence[tuple[float, float]]


def chart(
    lines: Mapping[str, Line],
    seconds: float,
    unit: str,
    *,
    logarithmic: bool = False,
    marks: Sequence[float] = (),
    bounds: Mapping[str, float] | None = None,
) -> str:
    """Lines of (second, value) with a legend; `marks`: seconds with a vertical line; `bounds`: dashed horizontal ones,
    each in the colour of the line of that name. A value that is not finite breaks its line."""
    bounds = bounds or {}
    values = [value for line in lines.values() for _, value in line if math.isfinite(value)]
    values += [bound for name, bound in bounds.items() if name in lines]
    if not values:
        return ""
    low, high = _span(values, logarithmic)

    def y(value: float) -> float:
        if logarithmic:
            share = (math.log10(max(value, low)) - math.log10(low)) / (math.log10(high) - math.log10(low))
        else:
            share = (value - low) / (high - low)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    def x(second: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * second / seconds

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(", ".join(lines))} in {escape(unit)}">'
    ]
    for tick in _ticks(low, high, logarithmic):
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#e3e8ee"/>',
            f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>',
        ]
    for second in _ticks(0, seconds, False):
        parts.append(f'<text x="{x(second):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{second:g} s</text>')
    parts += [
        f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#9aa5b1" '
        'stroke-dasharray="2 3"/>'
        for mark in marks
    ]
    for place, (name, line) in enumerate(lines.items()):
        colour = COLOURS[place % len(COLOURS)]
        if name in bounds:
            level = y(bounds[name])
            parts.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}" stroke="{colour}" '
                'stroke-dasharray="6 4" opacity=".55"/>'
            )
        for run in _unbroken(line):
            points = " ".join(f"{x(second):.1f},{y(value):.1f}" for second, value in run)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
            if len(run) == 1:
                ((second, value),) = run
                parts.append(f'<circle cx="{x(second):.1f}" cy="{y(value):.1f}" r="2" fill="{colour}"/>')
    parts.append("</svg>")
    legend = "".join(
        f'<span><i style="background:{COLOURS[place % len(COLOURS)]}"></i>{escape(name)}</span>'
        for place, name in enumerate(lines)
    )
    return f'<div class="legend">{legend}<span class="quiet">{escape(unit)}</span></div>{"".join(parts)}'


def _span(values: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    """The ends of the scale: whole decades, or from 0 to a little above the largest."""
    if logarithmic:
        positive = [max(value, 0.01) for value in values]
        low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        return 10.0**low, 10.0 ** max(high, low + 1)
    return 0.0, (max(values) or 1.0) * 1.05


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        return [10.0**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 7)
    return [round(low + step * number, 10) for number in range(int((high - low) / step) + 1)]


def _unbroken(line: Line) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for second, value in line:
        if math.isfinite(value):
            runs[-1].append((second, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
