"""The served revisions: loaded at the start and on request, each replaced as a whole.

Owns: KServe's model repository for the revisions of one home. Does not own: how a revision is loaded (`predictor.py`),
which one is deployed (`throughline.rollout`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kserve.errors import ModelNotFound, ModelNotReady
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from starlette.concurrency import run_in_threadpool

from serving.batching import Batcher
from serving.metrics import Metrics
from serving.model import UseCaseModel
from serving.predictor import PendingRequest, Predictor, Publish, Reader, load_served
from throughline.foundation.clock import data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.rollout.revision import FILE, read_revisions
from throughline.usecase import UseCase
from throughline.usecase.requests import BadRequest

log = logging.getLogger(__name__)

_ALIASES = {"stable": "champion", "canary": "challenger"}

OpenReader = Callable[[Settings, UseCase], Reader]


class RevisionRefused(ThroughlineError):
    """A revision that cannot be served; the one served before stays."""


class Repository(ModelRepository):
    """The models by use case. `load` builds a new model and replaces the served one by one assignment."""

    def __init__(
        self,
        settings: Settings,
        usecases: Mapping[str, UseCase],
        open_reader: OpenReader,
        publish: Publish,
        metrics: Metrics,
    ) -> None:
        super().__init__(str(settings.serving_home))
        self.usecases = usecases
        self._settings = settings
        self._open_reader = open_reader
        self._publish = publish
        self._metrics = metrics
        self._readers: dict[str, Reader] = {}
        self._batchers: dict[str, Batcher[tuple[Predictor, PendingRequest], Any]] = {}
        self._loading = threading.Lock()

    def load_models(self) -> None:
        """Load whatever was deployed; one bad revision does not keep the others from being served."""
        for name in self.usecases:
            if (self._settings.serving_home / name / FILE).exists():
                try:
                    self.load(name)
                except RevisionRefused as refused:
                    log.error("%s", refused)

    def load(self, name: str) -> bool:
        if name not in self.usecases:
            raise ModelNotFound(name)
        usecase, folder = self.usecases[name], self._settings.serving_home / name
        with self._loading:
            try:
                revisions = read_revisions(folder)
                if revisions is None:
                    raise ThroughlineError(f"nothing was deployed to {folder}")
                if revisions.usecase != name:
                    raise ThroughlineError(f"{folder / FILE} holds revisions of {revisions.usecase}")
                revision = revisions.stable
                predictor = Predictor(
                    usecase,
                    revision,
                    load_served(self._settings, folder, revision),
                    self._reader(usecase),
                    data_clock(self._settings, usecase.clock_start(self._settings)),
                    self._publish,
                    self._metrics.observe,
                )
                predictor.warm_up()
            except ThroughlineError as error:
                raise RevisionRefused(f"Revision of {name} refused: {error}") from error
            if name not in self._batchers:
                self._batchers[name] = Batcher(_predict)
            self.update(UseCaseModel(predictor, self._batchers[name], folder))
        log.info("%s serves revision %s", name, revision.revision)
        return True

    def served(self) -> list[dict[str, Any]]:
        """What serves now, one entry per revision."""
        predictors = [model.predictor for model in list(self.models.values()) if isinstance(model, UseCaseModel)]
        return [
            predictor.revision.model_dump(exclude={"sha256", "file", "weight", "deployed_at"})
            | {
                "share": predictor.revision.weight,
                "alias": _ALIASES.get(predictor.revision.role),
                "loaded_at": predictor.loaded_at.isoformat(),
            }
            for predictor in predictors
        ]

    def close(self) -> None:
        for batcher in self._batchers.values():
            batcher.close()

    def _reader(self, usecase: UseCase) -> Reader:
        reader = self._readers.get(usecase.name)
        try:
            if reader is None:
                reader = self._readers[usecase.name] = self._open_reader(self._settings, usecase)
            else:
                reader.reload()
        except Exception as error:  # a store raises its own errors, many kinds
            log.exception("The features of %s cannot be read", usecase.name)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ThroughlineError(f"its features cannot be read ({reason})") from error
        return reader


def _predict(batch: Sequence[tuple[Predictor, PendingRequest]]) -> list[Any]:
    """Results in order; while a revision is being replaced a batch may belong to two predictors."""
    results: list[Any] = [None] * len(batch)
    for predictor in dict.fromkeys(predictor for predictor, _ in batch):
        places = [place for place, (owner, _) in enumerate(batch) if owner is predictor]
        for place, result in zip(places, predictor.predict([batch[place][1] for place in places]), strict=True):
            results[place] = result
    return results


class RevisionLoader(ModelRepositoryExtension):
    """KServe's load and unload, with the reason of a refusal, and results in the form that its gRPC service reads."""

    def __init__(self, repository: Repository) -> None:
        super().__init__(repository)
        self._repository = repository

    # KServe annotates both with None; its gRPC service reads name and state of what they return.
    async def load(self, model_name: str) -> dict[str, Any]:  # ty: ignore[incompatible-method-override]  # see above
        await run_in_threadpool(self._repository.load, model_name)
        return {"name": model_name, "load": True}

    async def unload(self, model_name: str) -> dict[str, Any]:  # ty: ignore[incompatible-method-override]  # see above
        await super().unload(model_name)
        return {"name": model_name, "unload": True}


class RevisionDataPlane(DataPlane):
    """KServe's data plane, with two differences: a declared use case without a revision is not ready instead of
    unknown, and a body that cannot be decoded is a fault of the caller."""

    def __init__(self, repository: Repository) -> None:
        super().__init__(repository)
        self._repository = repository

    def get_model_from_registry(self, name: str) -> Any:
        self._known(name)
        return super().get_model_from_registry(name)

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        self._known(model_name)
        return await super().model_ready(model_name, disable_predictor_health_check)

    def decode(self, body: Any, headers: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().decode(body, headers, *args, **kwargs)
        # KServe decodes unchecked: KeyError, TypeError, struct.error and more, all caused by what was sent.
        except Exception as error:
            reason = str(error) if type(error).__module__.startswith("kserve") else type(error).__name__
            raise BadRequest("body", f"cannot be decoded ({reason[:200]})") from None

    def encode(self, model_name: str, response: Any, headers: Any, req_attributes: Any) -> Any:
        try:
            return super().encode(model_name, response, headers, req_attributes)
        except KeyError as error:  # of a CloudEvent without the attributes its answer repeats
            raise BadRequest("body", f"is not a complete CloudEvent ({error} is missing)") from None

    def _known(self, name: str) -> None:
        if name in self._repository.usecases and self._repository.get_model(name) is None:
            raise ModelNotReady(name, "No revision is served: deploy one.")
