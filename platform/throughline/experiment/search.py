"""A search for parameters on weeks before the holdout: trials, which of them end early, what is kept of them.

Owns: the study, its trials as runs, resuming it, the plot. Does not own: training (`train.py`), the samplers and
pruners (Optuna), which parameters may be changed (the declaration).

Trials train on rows before the search's own holdout, which is as long as the evaluation's and ends where that begins,
and are judged by log loss on the rows between. The evaluation's weeks are never seen. The declared parameters are the
first trial. A study is known by what it searches: started again after a crash, or with more trials, it goes on.
With one trial at a time it is repeatable; of several at once the order in which they end decides what is tried next.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from throughline.experiment.recipe import Recipe, flat, recipe_of
from throughline.experiment.request import SearchRequest
from throughline.experiment.selection import select_features, with_features
from throughline.experiment.train import Run, exclusive, fit
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import combine
from throughline.launch.protocol import LaunchFailed
from throughline.mlflow.tracking import client_of, tracked_run
from throughline.records import DatasetRecord
from throughline.usecase import Choices, Range, UseCase

if TYPE_CHECKING:
    import optuna

TRAINER = "trainer"
GRID_POINTS = 4
# A trial that fails for these reasons says something about its parameters; any other ends the search.
_FAILED_TRIAL = {"bad_parameters", "out_of_memory", "timeout"}
Space = Mapping[str, Choices | Range]


@dataclass(frozen=True)
class Found:
    """The best parameters as a recipe, and the dataset with the features that were kept."""

    recipe: Recipe
    dataset: DatasetRecord
    run_id: str


@dataclass(frozen=True)
class Window:
    """Judged are rows predicted in [validation_from, until); trained on is what was known before."""

    validation_from: datetime
    until: datetime


def window_of(usecase: UseCase, dataset: DatasetRecord) -> Window:
    length: timedelta = usecase.evaluation.holdout
    return Window(dataset.holdout_from - length, dataset.holdout_from)


def spaces_of(usecase: UseCase, trainers: Iterable[str], fixed: Iterable[str] = ()) -> dict[str, Space]:
    """Per trainer what may change and is not `fixed`; a member's parameter as MEMBER.NAME. Raises when nothing may."""
    spaces: dict[str, dict[str, Choices | Range]] = {}
    for name in trainers:
        declared = usecase.trainers[name]
        space = dict(declared.search)
        for member in declared.members:
            space |= {f"{member}.{key}": value for key, value in usecase.trainers[member].search.items()}
        if free := {key: value for key, value in space.items() if key not in set(fixed)}:
            spaces[name] = free
    if not spaces:
        raise ThroughlineError(
            f"{', '.join(trainers)} of {usecase.name}: no `search` is declared of what is not set; "
            "declare what may vary."
        )
    return spaces


def search(
    run: Run,
    usecase: UseCase,
    trainers: Iterable[str],
    dataset: DatasetRecord,
    request: SearchRequest,
    fixed: Mapping[str, Any] | None = None,
) -> Found:
    """Search over the trainers that compete, with parameters that are `fixed`. Raises when no trial came to its end."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fixed = fixed or {}
    bases = {name: recipe_of(run.settings, usecase, name, fixed) for name in trainers}
    spaces = spaces_of(usecase, bases, fixed)
    window = window_of(usecase, dataset)
    client = client_of(run.settings)
    study_name = combine(
        dataset.fingerprint, *(base.fingerprint for base in bases.values()), str(spaces), request.sampler,
        request.pruner, str(request.select_features),
    )[:16]  # fmt: skip
    with exclusive(run, f"search-{study_name}"):
        study = _study(run, study_name, spaces, request, seed=next(iter(bases.values())).seed)
        tags = {"throughline.search": study_name, "throughline.usecase": usecase.name}
        told = {**request.model_dump(), "trainers": ", ".join(spaces), "validation_from": window.validation_from}
        with tracked_run(client, usecase.name, tags, told, resume=study.user_attrs.get("run_id")) as run_id:
            if "run_id" not in study.user_attrs:
                study.set_user_attr("run_id", run_id)
                for name, space in spaces.items():
                    study.enqueue_trial(_as_declared(bases[name], name, space, spaces))
            if request.select_features:
                if (kept := study.user_attrs.get("features")) is None:
                    kept = select_features(run, next(iter(bases.values())), dataset, window.validation_from, run_id)
                    study.set_user_attr("features", sorted(kept))
                dataset = with_features(dataset, set(kept))
            trials = _Trials(run, usecase, study, spaces, fixed, dataset, window, run_id)
            cores = os.cpu_count() or 1
            workers = max(base.processes * base.threads for base in bases.values())
            trials.run_all(request.trials, min(request.parallel, max(1, cores // workers)))
            _keep(client, run_id, study)
            if not _finished(study):
                raise ThroughlineError(
                    f"None of {len(study.trials)} trials came to its end: see their runs in MLflow for the reasons."
                )
            best = study.best_trial
            trainer, overrides = _said(best.params, spaces)
            run.tell("search", best=best.number, validation_log_loss=best.value, trials=len(study.trials))
            return Found(recipe_of(run.settings, usecase, trainer, {**fixed, **overrides}), dataset, run_id)


class _Trials:
    """Runs trials, several at once if asked, and tells the study how they ended."""

    def __init__(
        self,
        run: Run,
        usecase: UseCase,
        study: optuna.Study,
        spaces: Mapping[str, Space],
        fixed: Mapping[str, Any],
        dataset: DatasetRecord,
        window: Window,
        parent: str,
    ) -> None:
        self.run, self.usecase, self.study, self.spaces, self.fixed = run, usecase, study, spaces, fixed
        self.dataset, self.window, self.parent = dataset, window, parent
        self.prunes = len(spaces) == 1  # trainers' epochs do not compare
        self._stop = threading.Event()

    def run_all(self, wanted: int, parallel: int) -> None:
        """Until `wanted` trials have ended, those of earlier attempts included."""
        left = iter(range(wanted - len(_ended(self.study))))
        with ThreadPoolExecutor(parallel, thread_name_prefix="trial") as pool:
            under_way = set()
            try:
                while True:
                    while len(under_way) < parallel and next(left, None) is not None:
                        under_way.add(pool.submit(self._one, self.study.ask()))
                    if not under_way:
                        return
                    # In short waits: an interrupt of this thread must find it
                    done, under_way = wait(under_way, timeout=0.5, return_when=FIRST_COMPLETED)
                    for trial in done:
                        trial.result()
            finally:
                self._stop.set()  # whatever still runs is cancelled before the pool is left

    def _one(self, trial: optuna.Trial) -> None:
        from optuna.trial import TrialState

        trainer, overrides = _suggested(trial, self.spaces)
        recipe = recipe_of(self.run.settings, self.usecase, trainer, {**self.fixed, **overrides})
        pruned = threading.Event()

        def on_event(event: dict[str, Any]) -> None:
            loss = event.get("validation_loss")
            if event["event"] != "epoch" or loss is None or "member" in event or not self.prunes:
                return
            trial.report(loss, event["epoch"])
            if trial.should_prune():
                pruned.set()

        def cancelled() -> bool:
            theirs = self.run.cancelled is not None and self.run.cancelled()
            return pruned.is_set() or self._stop.is_set() or theirs

        told = replace(self.run, on_event=on_event, cancelled=cancelled)
        client = client_of(self.run.settings)
        tags = {"mlflow.parentRunId": self.parent, "mlflow.runName": f"trial {trial.number}"}
        state, value = TrialState.FAIL, None
        folder = Path(tempfile.mkdtemp(prefix="throughline-trial-"))
        began = time.monotonic()
        try:
            with tracked_run(client, self.usecase.name, tags, flat(recipe)) as run_id:
                try:
                    report = fit(
                        told,
                        self.dataset,
                        recipe,
                        folder / "output",
                        run_id=run_id,
                        validation_from=self.window.validation_from,
                    )
                    state, value = TrialState.COMPLETE, report.validation_log_loss
                    for name in ("validation_log_loss", "validation_auc"):
                        if (metric := getattr(report, name)) is not None:
                            client.log_metric(run_id, name, metric)
                except LaunchFailed as failure:
                    if failure.reason == "cancelled" and pruned.is_set():
                        state = TrialState.PRUNED
                    elif failure.reason not in _FAILED_TRIAL:
                        raise
                    client.set_tag(run_id, "throughline.trial", state.name if pruned.is_set() else str(failure))
        finally:
            self.study.tell(trial, value, state)
            shutil.rmtree(folder, ignore_errors=True)
        self.run.tell(
            "trial",
            number=trial.number,
            state=state.name.lower(),
            validation_log_loss=value,
            seconds=round(time.monotonic() - began, 1),
            **{name: v if isinstance(v, int | float | str) else str(v) for name, v in trial.params.items()},
        )


def _study(run: Run, name: str, spaces: Mapping[str, Space], request: SearchRequest, seed: int) -> optuna.Study:
    import optuna

    run.folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{run.folder / 'search.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
    )
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="minimize",
        sampler=_sampler(request.sampler, spaces, seed),
        pruner=_pruner(request.pruner),
        load_if_exists=True,
    )
    running = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])
    for trial in running:  # nobody else runs this study: whoever ran them is gone
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    if running or study.trials:
        run.tell("search", note=f"goes on after {len(_ended(study))} trials")
    return study


def _sampler(name: str, spaces: Mapping[str, Space], seed: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    if name == "grid":
        if len(spaces) > 1:
            raise ThroughlineError(
                "A grid is over one trainer's parameters: name the trainer, or take another sampler."
            )
        ((trainer, space),) = spaces.items()
        return samplers.GridSampler(
            {_named(trainer, key, spaces): _points(value) for key, value in space.items()}, seed
        )
    if name == "cmaes":
        return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return samplers.RandomSampler(seed) if name == "random" else samplers.TPESampler(seed=seed)


def _pruner(name: str) -> optuna.pruners.BasePruner:
    from optuna import pruners

    return {
        "median": lambda: pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
        "hyperband": pruners.HyperbandPruner,
        "asha": pruners.SuccessiveHalvingPruner,
        "none": pruners.NopPruner,
    }[name]()


def _points(value: Choices | Range) -> list[Any]:
    """Of a range as many points as a grid takes, ends included."""
    if isinstance(value, Choices):
        return list(range(len(value.choices)))
    spread = np.geomspace if value.log else np.linspace
    points = spread(value.low, value.high, GRID_POINTS)
    return sorted({round(point) for point in points}) if value.whole else points.tolist()


def _suggested(trial: optuna.Trial, spaces: Mapping[str, Space]) -> tuple[str, dict[str, Any]]:
    trainer = next(iter(spaces)) if len(spaces) == 1 else trial.suggest_categorical(TRAINER, list(spaces))
    for key, value in spaces[trainer].items():
        name = _named(trainer, key, spaces)
        if isinstance(value, Choices):  # by place: Optuna's storage takes no lists
            trial.suggest_categorical(name, list(range(len(value.choices))))
        elif value.whole:
            trial.suggest_int(name, int(value.low), int(value.high), log=value.log)
        else:
            trial.suggest_float(name, value.low, value.high, log=value.log)
    return _said(trial.params, spaces)


def _as_declared(base: Recipe, trainer: str, space: Space, spaces: Mapping[str, Space]) -> dict[str, Any]:
    """The trial that is what the recipe says; values that the space does not hold are left to the sampler."""
    of = {"": base.parameters, **{member.trainer: member.parameters for member in base.members}}
    params: dict[str, Any] = {} if len(spaces) == 1 else {TRAINER: trainer}
    for key, value in space.items():
        member, _, name = key.rpartition(".")
        declared = of[member].get(name)
        if isinstance(value, Choices):
            if declared in value.choices:
                params[_named(trainer, key, spaces)] = value.choices.index(declared)
        elif declared is not None and value.low <= declared <= value.high:
            params[_named(trainer, key, spaces)] = declared
    return params


def _said(params: Mapping[str, Any], spaces: Mapping[str, Space]) -> tuple[str, dict[str, Any]]:
    trainer = params.get(TRAINER) or next(iter(spaces))
    overrides = {}
    for key, value in spaces[trainer].items():
        name = _named(trainer, key, spaces)
        if name in params:
            overrides[key] = value.choices[params[name]] if isinstance(value, Choices) else params[name]
    return trainer, overrides


def _named(trainer: str, key: str, spaces: Mapping[str, Space]) -> str:
    return key if len(spaces) == 1 else f"{trainer}.{key}"


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _keep(client: Any, run_id: str, study: optuna.Study) -> None:
    """The trials as a table and as a page of plots, with the search's run."""
    with tempfile.TemporaryDirectory() as folder:
        table, page = Path(folder) / "trials.csv", Path(folder) / "search.html"
        study.trials_dataframe().to_csv(table, index=False)
        page.write_text(_page(study))
        for file in (table, page):
            client.log_artifact(run_id, str(file), "search")
    if _finished(study):
        client.log_metric(run_id, "validation_log_loss", study.best_value)


def _page(study: optuna.Study) -> str:
    from optuna import visualization

    plots: list[Callable[..., Any]] = [visualization.plot_optimization_history]
    if len(_finished(study)) > 1 and len(study.best_params) > 1:
        plots += [visualization.plot_param_importances, visualization.plot_parallel_coordinate]
    if any(trial.intermediate_values for trial in study.trials):
        plots.append(visualization.plot_intermediate_values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that importances of few trials are rough, one sees
        figures = [
            plot(study, target_name="log loss") if plot is not visualization.plot_intermediate_values else plot(study)
            for plot in plots
        ]
    parts = [figure.to_html(full_html=False, include_plotlyjs=number == 0) for number, figure in enumerate(figures)]
    return f"<!doctype html><meta charset=utf-8><title>Search</title>{''.join(parts)}"
