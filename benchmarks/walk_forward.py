"""`python -m benchmarks.walk_forward USECASE`: quality month by month, of models trained before each.

For each local month and trainer: train on all rows that were known when the month began, score every row predicted in
it. Rows come from the home's newest training dataset, whose features are point in time whatever month they are of; it
must reach to the end of the last month (a home made with THROUGHLINE_DATA_UNTIL set to its end).
With `--search N` each trainer is there twice, as declared and with what N trials found on the weeks before the month;
trials are kept in MLflow, which must run then.
Owns: the months, the table. Does not own: training, the metrics. Nothing is registered; else no service is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl

from benchmarks.report import progress
from throughline.experiment.recipe import recipe_of
from throughline.experiment.request import SearchRequest
from throughline.experiment.search import search
from throughline.experiment.spec import MODEL_FILE, REPORT_FILE, TrainingReport
from throughline.experiment.train import Run, fit
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import combine
from throughline.foundation.settings import load_settings
from throughline.lakehouse.table import scan
from throughline.models.metrics import metrics_of
from throughline.models.served_model import ServedModel
from throughline.records import DatasetRecord
from throughline.records.store import load_record
from throughline.usecase import UseCase, get_usecase

MEAN = "mean"


def months(first: date, until: date) -> Iterator[tuple[date, date]]:
    """Each month from `first` on that ends by `until`: (its first day, the next one's)."""
    while True:
        following = date(first.year + first.month // 12, first.month % 12 + 1, 1)
        if following > until:
            return
        yield first, following
        first = following


def measure(
    run: Run, usecase: UseCase, dataset: DatasetRecord, trainers: list[str], first: date, until: date, trials: int
) -> dict[str, dict[str, dict[str, float]]]:
    """trainer -> month -> {auc, log_loss, brier, ece, rows, seconds}, and their mean over the months.

    A trainer whose parameters `trials` trials have found is there as `TRAINER, searched`; with 0 there is none.
    """
    rows = scan(dataset.path, dataset.table.version)
    found: dict[str, dict[str, dict[str, float]]] = {}
    # An ensemble leaves its members' models beside its own: they need not be trained a second time.
    order = sorted(trainers, key=lambda name: not usecase.trainers[name].members)
    for begin, end in months(first, until):
        start, stop = usecase.day_start(begin), usecase.day_start(end)
        identity = combine(dataset.fingerprint, str(begin))
        known = dataset.model_copy(update={"holdout_from": start, "fingerprint": identity})
        month = rows.filter(pl.col("prediction_time").is_between(start, stop, closed="left")).collect()
        with tempfile.TemporaryDirectory() as folder:
            recipes = {name: recipe_of(run.settings, usecase, name) for name in order}
            for name in order if trials else ():
                searched = search(run, usecase, [name], known, SearchRequest(trials=trials))
                recipes[f"{name}, searched"] = searched.recipe
            for name, recipe in recipes.items():
                output = _made(Path(folder), name) or Path(folder) / name
                if not output.exists():
                    fit(run, known, recipe, output)
                report = TrainingReport.model_validate_json((output / REPORT_FILE).read_text())
                scores = ServedModel.load(output / MODEL_FILE, report.sha256, threads=2).score(month)
                metrics = metrics_of(scores, month["label"].to_numpy())
                row = {**metrics.model_dump(), "seconds": round(report.seconds, 1)}
                found.setdefault(name, {})[f"{begin:%Y-%m}"] = row
                progress(f"{begin:%Y-%m} {name}: AUC {metrics.auc:.4f}, log loss {metrics.log_loss:.4f}")
    for by_month in found.values():
        each = list(by_month.values())
        by_month[MEAN] = {key: sum(month[key] for month in each) / len(each) for key in each[0]}
    return found


def _made(folder: Path, trainer: str) -> Path | None:
    return next(iter(folder.glob(f"*-{trainer}/")), None)


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """AUC / log loss per month and trainer, as Markdown."""
    names = list(found)
    lines = [f"| month | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for month in found[names[0]]:
        cells = [f"{found[name][month]['auc']:.4f} / {found[name][month]['log_loss']:.4f}" for name in names]
        lines.append(f"| {month} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.walk_forward", description=__doc__.splitlines()[0])
    parser.add_argument("usecase")
    parser.add_argument(
        "--first", type=date.fromisoformat, help="first day of the first month; else the replay's start"
    )
    parser.add_argument("--until", type=date.fromisoformat, help="exclusive; else the end of the replay")
    parser.add_argument("--trainers", nargs="*", help="else all that are declared")
    parser.add_argument("--search", type=int, default=0, metavar="TRIALS", help="also with searched parameters")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args()
    settings, usecase = load_settings(), get_usecase(chosen.usecase)
    dataset = load_record(settings, (usecase.name, "training", "dataset"), DatasetRecord)
    until = chosen.until or usecase.replay.end
    if dataset.as_of < usecase.day_start(until):
        raise ThroughlineError(
            f"The dataset of this home ends on {dataset.as_of:%Y-%m-%d}: make one that reaches {until}, in a home with "
            f"THROUGHLINE_DATA_UNTIL={until}."
        )
    trainers = chosen.trainers or list(usecase.trainers)
    began = datetime.now(UTC)
    found = measure(
        Run(settings), usecase, dataset, trainers, chosen.first or usecase.replay.until, until, chosen.search
    )
    sys.stdout.write(table(found) + "\n")
    if chosen.json:
        seconds = (datetime.now(UTC) - began).total_seconds()
        sys.stdout.write(json.dumps({"benchmark": "walk_forward", "seconds": seconds, "figures": found}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
