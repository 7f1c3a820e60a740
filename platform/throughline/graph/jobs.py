"""Submits training requests from Python; the caller needs no knowledge of the orchestrator.

    from throughline.graph.jobs import TrainingRequest, submit
    job = submit(TrainingRequest(usecase="returns", trainer="lightgbm", parameters={"lr": 0.1}))
    print(job.wait().results["model"])

Owns: how a request travels to the graph and what comes back. Does not own: its fields (`experiment/request.py`),
carrying it out (`assets/experiments.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from throughline.experiment.request import SearchRequest, TrainingRequest, check
from throughline.foundation.clock import data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.graph.client import Graph, JobRun, RunEvent, RunOutcome
from throughline.usecase import get_usecase, load_usecases

__all__ = ["Job", "JobRun", "SearchRequest", "TrainingRequest", "jobs", "submit"]


@dataclass(frozen=True)
class Job:
    """A submitted training."""

    graph: Graph
    run_id: str

    def wait(self, on_event: Callable[[RunEvent], None] = lambda event: None, timeout_s: float = 86_400) -> JobRun:
        """Blocks until it has ended; `on_event` gets each event once. Raises `ThroughlineError` when it failed."""
        return self.succeeded(self.graph.follow(self.run_id, on_event, timeout_s))

    def succeeded(self, outcome: RunOutcome) -> JobRun:
        """The results of a run that has ended. Raises `ThroughlineError` with the cause when it failed."""
        if not outcome.succeeded:
            raise ThroughlineError(f"Training failed: {outcome.cause} (`throughline jobs logs {self.run_id}`).")
        return self.graph.job(self.run_id)


def submit(request: TrainingRequest, settings: Settings | None = None) -> Job:
    """Start a training. Raises for what is known to be wrong before anything is started."""
    settings = settings or load_settings()
    usecase = get_usecase(request.usecase)
    check(settings, usecase, request, data_clock(settings, usecase.clock_start(settings)).now())
    graph = Graph(settings)
    config = request.model_dump(mode="json", exclude={"usecase"}, exclude_none=True)
    ops = {f"{usecase.name}__experiments__model": {"config": config}}
    return Job(graph, graph.launch(job=f"{usecase.name}_train", config={"ops": ops}))


def jobs(settings: Settings | None = None, limit: int = 20) -> list[JobRun]:
    """The newest trainings, submitted ones and the pipeline's own, newest first."""
    names = [f"{usecase}_{kind}" for usecase in load_usecases() for kind in ("train", "retrain")]
    return Graph(settings or load_settings()).jobs(names, limit)
