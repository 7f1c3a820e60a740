"""An Optuna study in the home: opened or resumed, and kept as a table and plots with its MLflow run.

Owns: storage, samplers and pruners by name, the page. Does not own: trials (`search.py`), what varies (`space.py`).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughline.experiment.request import SearchRequest
from throughline.experiment.space import SearchSpace
from throughline.experiment.train import Run

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient


def open_study(run: Run, name: str, space: SearchSpace, request: SearchRequest, seed: int) -> optuna.Study:
    """The study of this name, new or as it was left. The caller excludes all others (`train.exclusive`)."""
    import optuna  # postpones optuna (1 s)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run.folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{run.folder / 'search.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
    )
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="minimize",
        sampler=_sampler(request.sampler, space, seed),
        pruner=_pruner(request.pruner),
        load_if_exists=True,
    )
    for trial in trials_of(study, "RUNNING"):  # of a process that has ended
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    if study.trials:
        run.report("search", note=f"resumed after {len(trials_of(study, 'COMPLETE', 'PRUNED'))} trials")
    return study


def trials_of(study: optuna.Study, *states: str) -> list[optuna.trial.FrozenTrial]:
    """Trials in one of Optuna's states: RUNNING, COMPLETE, PRUNED, FAIL."""
    from optuna.trial import TrialState  # postpones optuna

    return study.get_trials(deepcopy=False, states=[TrialState[state] for state in states])


def log_study(client: MlflowClient, run_id: str, study: optuna.Study) -> None:
    """Trials and plots as artifacts of the search's run, the best loss as its metric."""
    with tempfile.TemporaryDirectory() as folder:
        table, page = Path(folder) / "trials.csv", Path(folder) / "search.html"
        study.trials_dataframe().to_csv(table, index=False)
        page.write_text(_page(study))
        for file in (table, page):
            client.log_artifact(run_id, str(file), "search")
    if trials_of(study, "COMPLETE"):
        client.log_metric(run_id, "validation_log_loss", study.best_value)


def _sampler(name: str, space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers  # postpones optuna

    return {
        "tpe": lambda: samplers.TPESampler(seed=seed),
        "random": lambda: samplers.RandomSampler(seed),
        "grid": lambda: samplers.GridSampler(space.grid(), seed),
        "cmaes": lambda: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
    }[name]()


def _pruner(name: str) -> optuna.pruners.BasePruner:
    from optuna import pruners  # postpones optuna

    return {
        "median": lambda: pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
        "hyperband": pruners.HyperbandPruner,
        "asha": pruners.SuccessiveHalvingPruner,
        "none": pruners.NopPruner,
    }[name]()


def _page(study: optuna.Study) -> str:
    from optuna import visualization as plots  # postpones optuna

    drawn: list[Callable[..., Any]] = [plots.plot_optimization_history]
    if len(trials_of(study, "COMPLETE")) > 1 and len(study.best_params) > 1:
        drawn += [plots.plot_param_importances, plots.plot_parallel_coordinate]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # importances of few trials are rough, which the plot shows
        figures = [plot(study, target_name="log loss") for plot in drawn]
        if any(trial.intermediate_values for trial in study.trials):
            figures.append(plots.plot_intermediate_values(study))
    parts = [figure.to_html(full_html=False, include_plotlyjs=number == 0) for number, figure in enumerate(figures)]
    return f"<!doctype html><meta charset=utf-8><title>Search</title>{''.join(parts)}"
