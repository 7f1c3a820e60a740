"""Pictures of an evaluation, as bytes. Owns: drawing. Does not own: numbers (`metrics.py`) or where pictures go."""

from __future__ import annotations

import numpy as np

from throughline.evaluation.metrics import reliability


def reliability_plot(scores: np.ndarray, labels: np.ndarray, title: str) -> bytes:
    """A PNG: predicted against observed share of positives, with the rows per bin as the size of the dots."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    predicted, observed, rows = zip(*reliability(np.asarray(scores), np.asarray(labels)), strict=True)
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.scatter(predicted, observed, s=[10 + 190 * count / max(rows) for count in rows], color="#2a6f97")
    axes.plot(predicted, observed, color="#2a6f97", linewidth=1)
    limit = min(1.0, 1.1 * max(*predicted, *observed, 0.05))
    axes.set(title=title, xlabel="predicted", ylabel="observed", xlim=(0, limit), ylim=(0, limit))
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    return image.getvalue()
