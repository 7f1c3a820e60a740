"""Submitting trainings from Python, without a word of the orchestrator.

    from throughline.jobs import TrainingRequest, submit
    job = submit(TrainingRequest(usecase="returns", trainer="lightgbm", parameters={"lr": 0.1}))
    print(job.wait().results["model"])

Owns: how a request travels to the graph and what comes back. Does not own: its words (`experiment/request.py`), what
is done (`assets/experiments.py`). The command line says the same in options (`cli/train.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from throughline.experiment.request import SearchRequest, TrainingRequest, check
from throughline.foundation.clock import data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.graph.client import Graph, JobRun, RunEvent
from throughline.usecase import get_usecase, load_usecases

__all__ = ["Job", "JobRun", "SearchRequest", "TrainingRequest", "jobs", "submit"]


@dataclass(frozen=True)
class Job:
    """A submitted training."""

    graph: Graph
    run_id: str

    def state(self) -> JobRun:
        return self.graph.job(self.run_id)

    def wait(self, on_event: Callable[[RunEvent], None] = lambda event: None, timeout_s: float = 86_400) -> JobRun:
        """Until it has ended, telling each event once. Raises `ThroughlineError` with the cause when it failed."""
        outcome = self.graph.follow(self.run_id, on_event, timeout_s)
        if not outcome.succeeded:
            cause = outcome.errors[0] if outcome.errors else f"it ended as {outcome.status}"
            raise ThroughlineError(f"Training {self.run_id} did not succeed: {cause}")
        return self.state()

    def cancel(self) -> None:
        self.graph.cancel(self.run_id)


def submit(request: TrainingRequest, settings: Settings | None = None) -> Job:
    """Start a training. What can be known to be wrong with it is refused at once, before anything is started."""
    settings = settings or load_settings()
    usecase = get_usecase(request.usecase)
    check(settings, usecase, request, data_clock(settings, usecase.clock_start(settings)).now())
    said = request.model_dump(exclude={"usecase", "search"}, exclude_none=True)
    if request.search:
        said |= request.search.model_dump()
    graph = Graph(settings)
    config = {"ops": {f"{usecase.name}__experiments__model": {"config": said}}}
    return Job(graph, graph.launch(job=f"{usecase.name}_train", config=config))


def jobs(settings: Settings | None = None, limit: int = 20) -> list[JobRun]:
    """The newest trainings, submitted ones and the pipeline's own, newest first."""
    names = [f"{usecase}_{kind}" for usecase in load_usecases() for kind in ("train", "retrain")]
    return Graph(settings or load_settings()).jobs(names, limit)
