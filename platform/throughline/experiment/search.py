"""A search for parameters on weeks before the holdout.

Owns: the trials and their MLflow runs, which weeks they are judged on. Does not own: training (`train.py`), the study
(`study.py`), what varies (`space.py`).

Trials train on rows before the search's own holdout, which is as long as the evaluation's and ends where that begins,
and are judged by log loss on the rows between; the evaluation's weeks are never read. The declared parameters are the
first trial. A study's name is its fingerprint: started again, or with more trials, it is resumed. With one trial at a
time it is repeatable; with several, the order in which they end decides what is tried next.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughline.experiment.recipe import Recipe, flat, recipe_of
from throughline.experiment.request import SearchRequest
from throughline.experiment.selection import select_features, with_features
from throughline.experiment.space import SearchSpace, space_of
from throughline.experiment.study import log_study, open_study, trials_of
from throughline.experiment.train import Run, exclusive, fit
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import combine
from throughline.launch.protocol import LaunchFailed
from throughline.mlflow.tags import Tags
from throughline.mlflow.tracking import client_of, set_tags, tracked_run
from throughline.records import DatasetRecord
from throughline.usecase import UseCase

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient

# The reasons for which a trial fails by its own parameters; any other ends the search.
_FAILED_TRIAL = {"bad_parameters", "out_of_memory", "timeout"}


@dataclass(frozen=True)
class Found:
    """The best parameters as a recipe, the dataset with the features that were kept, the search's MLflow run."""

    recipe: Recipe
    dataset: DatasetRecord
    run_id: str


def search(
    run: Run,
    usecase: UseCase,
    trainers: Collection[str],
    dataset: DatasetRecord,
    request: SearchRequest,
    fixed: Mapping[str, Any] | None = None,
) -> Found:
    """Search over `trainers`, with `fixed` parameters in every trial. Raises when no trial was completed."""
    fixed = fixed or {}
    bases = {name: recipe_of(run.settings, usecase, name, fixed) for name in trainers}
    first = next(iter(bases.values()))
    space = space_of(usecase, bases, fixed)
    validation_from = dataset.holdout_from - usecase.evaluation.holdout
    name = combine(
        dataset.fingerprint,
        *(base.fingerprint for base in bases.values()),
        str(space),
        request.model_dump_json(include={"sampler", "pruner", "select_features"}),
    )[:16]
    client = client_of(run.settings)
    with exclusive(run, f"search-{name}"):
        study = open_study(run, name, space, request, first.seed)
        tags = Tags(search=name, usecase=usecase.name)
        values = {**request.model_dump(), "trainers": ", ".join(space.trainers), "validation_from": validation_from}
        with tracked_run(client, usecase.name, tags, values, resume=study.user_attrs.get("run_id")) as run_id:
            if "run_id" not in study.user_attrs:
                study.set_user_attr("run_id", run_id)
                for trainer in space.trainers:
                    study.enqueue_trial(space.declared(bases[trainer]))
            if request.select_features:
                if (kept := study.user_attrs.get("features")) is None:
                    kept = sorted(select_features(run, first, dataset, validation_from, run_id))
                    study.set_user_attr("features", kept)
                dataset = with_features(dataset, set(kept))
            cores = os.cpu_count() or 1
            workers = max(base.processes * base.threads for base in bases.values())
            trials = _Trials(run, usecase, study, space, fixed, dataset, validation_from, run_id, client)
            trials.run_all(request.trials, min(request.parallel, max(1, cores // workers)))
            log_study(client, run_id, study)
            if not trials_of(study, "COMPLETE"):
                raise ThroughlineError(
                    f"None of {len(study.trials)} trials was completed: their runs in MLflow have the reasons."
                )
            best = study.best_trial
            trainer, overrides = space.overrides(best.params)
            run.report("search", best=best.number, validation_log_loss=best.value, trials=len(study.trials))
            return Found(recipe_of(run.settings, usecase, trainer, {**fixed, **overrides}), dataset, run_id)


@dataclass
class _Trials:
    """Runs trials, up to `parallel` at once, and gives the study their results."""

    run: Run
    usecase: UseCase
    study: optuna.Study
    space: SearchSpace
    fixed: Mapping[str, Any]
    dataset: DatasetRecord
    validation_from: datetime
    parent: str
    client: MlflowClient
    _stop: threading.Event = field(default_factory=threading.Event)

    def run_all(self, wanted: int, parallel: int) -> None:
        """Until `wanted` trials have ended, those of earlier attempts included."""
        left = iter(range(wanted - len(trials_of(self.study, "COMPLETE", "PRUNED"))))
        with ThreadPoolExecutor(parallel, thread_name_prefix="trial") as pool:
            running = set()
            try:
                while True:
                    while len(running) < parallel and next(left, None) is not None:
                        running.add(pool.submit(self._run_one, self.study.ask()))
                    if not running:
                        return
                    # In short waits, so that an interrupt reaches this thread.
                    done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for trial in done:
                        trial.result()
            finally:
                self._stop.set()  # cancels the trials that still run, before the pool is left

    def _run_one(self, trial: optuna.Trial) -> None:
        from optuna.trial import TrialState  # postpones optuna

        trainer, overrides = self.space.suggest(trial)
        recipe = recipe_of(self.run.settings, self.usecase, trainer, {**self.fixed, **overrides})
        pruned, began = threading.Event(), time.monotonic()
        state, loss = TrialState.FAIL, None
        tags = {"mlflow.parentRunId": self.parent, "mlflow.runName": f"trial {trial.number}"}
        try:
            with (
                tracked_run(self.client, self.usecase.name, tags, flat(recipe)) as run_id,
                tempfile.TemporaryDirectory(prefix="throughline-trial-") as folder,
            ):
                try:
                    loss = self._fit(trial, recipe, Path(folder) / "output", run_id, pruned)
                    state = TrialState.COMPLETE
                except LaunchFailed as failure:
                    if failure.reason == "cancelled" and pruned.is_set():
                        state = TrialState.PRUNED
                    elif failure.reason not in _FAILED_TRIAL:
                        raise
                    set_tags(self.client, run_id, trial=state.name if pruned.is_set() else str(failure))
        finally:
            self.study.tell(trial, loss, state)
        self.run.report(
            "trial",
            number=trial.number,
            state=state.name.lower(),
            validation_log_loss=loss,
            seconds=round(time.monotonic() - began, 1),
            **{name: v if isinstance(v, int | float | str) else str(v) for name, v in trial.params.items()},
        )

    def _fit(
        self, trial: optuna.Trial, recipe: Recipe, output: Path, run_id: str, pruned: threading.Event
    ) -> float | None:
        """The validation log loss. Sets `pruned` and cancels the training when the pruner gives the trial up."""

        def on_event(event: dict[str, Any]) -> None:
            loss = event.get("validation_loss")
            # The epochs of different trainers, or of an ensemble's members, do not compare.
            if event["event"] == "epoch" and loss is not None and "member" not in event and not self.space.competing:
                trial.report(loss, event["epoch"])
                if trial.should_prune():
                    pruned.set()

        def cancelled() -> bool:
            return pruned.is_set() or self._stop.is_set() or (self.run.cancelled is not None and self.run.cancelled())

        run = replace(self.run, on_event=on_event, cancelled=cancelled)
        report = fit(run, self.dataset, recipe, output, run_id=run_id, validation_from=self.validation_from)
        for name in ("validation_log_loss", "validation_auc"):
            if (metric := getattr(report, name)) is not None:
                self.client.log_metric(run_id, name, metric)
        return report.validation_log_loss
