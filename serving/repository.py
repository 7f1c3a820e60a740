"""The served revisions: loaded at the start and on request, each use case's set replaced as a whole.

Owns: KServe's model repository for the revisions of one home. Does not own: how a model is loaded and tried
(`loading.py`), which revision answers (`deployed.py`), which ones are deployed (`throughline.rollout`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from kserve.errors import ModelNotFound, ModelNotReady
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from starlette.concurrency import run_in_threadpool

from serving.deployed import QUICK_S, Deployed
from serving.loading import Loaded, load, try_out, verify
from serving.metrics import Metrics
from serving.model import UseCaseModel
from serving.predictor import Predictor, Reader
from serving.workers import FROM_PEER, Peers
from throughline.foundation.clock import data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.records import Revision, RevisionSet
from throughline.rollout.revision import FILE, only, read_revisions
from throughline.usecase import UseCase
from throughline.usecase.requests import BadRequest

log = logging.getLogger(__name__)

BATCH = 32  # requests read together where reading is a round trip to another process
_ALIASES = {"stable": "champion", "canary": "challenger"}

OpenReader = Callable[[Settings, UseCase], Reader]


class RevisionRefused(ThroughlineError):
    """A revision that cannot be served; what was served before stays."""


class Repository(ModelRepository):
    """The models by use case. `load` builds a new one and replaces the served one by one assignment."""

    def __init__(
        self,
        settings: Settings,
        usecases: Mapping[str, UseCase],
        open_reader: OpenReader,
        publish: Callable[[Sequence[dict[str, Any]]], None],
        metrics: Metrics,
    ) -> None:
        super().__init__(str(settings.serving_home))
        self.usecases = usecases
        self._settings = settings
        self._open_reader = open_reader
        self._publish = publish
        self._metrics = metrics
        self._readers: dict[str, Reader] = {}
        self._loading = threading.Lock()
        self._refusals: dict[str, dict[str, str]] = {}

    def load_models(self) -> None:
        """Load whatever was deployed. One bad revision keeps neither other use cases nor the stable one of its own from
        being served."""
        for name in self.usecases:
            folder = self._settings.serving_home / name
            if (folder / FILE).exists():
                try:
                    self._load(name, self._that_load(folder))
                except ThroughlineError as error:
                    self._refused(name, f"refused: {error}")

    def load(self, name: str) -> bool:
        """Serve what the use case's file names. Raises `RevisionRefused`; then what was served goes on."""
        if name not in self.usecases:
            raise ModelNotFound(name)
        try:
            self._load(name, self._revisions(self._settings.serving_home / name))
        except ThroughlineError as error:
            self._refused(name, f"refused: {error}")
            raise RevisionRefused(f"Revision of {name} refused: {error}") from error
        self._refusals.pop(name, None)
        return True

    def unload(self, name: str) -> None:
        """Serve a use case no more; requests that were accepted are answered."""
        model = self.models.get(name)
        super().unload(name)
        self._metrics.deployed(name, [])
        self._refused(name, "unloaded by a request")
        if isinstance(model, UseCaseModel):
            model.deployed.close()

    def served(self) -> list[dict[str, Any]]:
        """What serves now, one entry per revision."""
        return [
            predictor.revision.model_dump(exclude={"sha256", "file", "weight", "deployed_at"})
            | {
                "share": predictor.revision.weight,
                "alias": _ALIASES.get(predictor.revision.role),
                "loaded_at": predictor.loaded.at.isoformat(),
            }
            for model in self._served()
            for predictor in model.deployed.predictors.values()
        ]

    def refusals(self) -> dict[str, dict[str, str]]:
        """Why what was deployed is not served: use case -> `why`, and `since` when (ISO 8601, UTC)."""
        return self._refusals

    def _refused(self, name: str, why: str) -> None:
        self._refusals[name] = {"why": why, "since": datetime.now(UTC).isoformat(timespec="seconds")}
        log.error("%s: %s", name, why)

    def close(self) -> None:
        """Answer what was accepted."""
        for model in self._served():
            model.deployed.close()

    def _served(self) -> list[UseCaseModel]:
        return [model for model in list(self.models.values()) if isinstance(model, UseCaseModel)]

    def _revisions(self, folder: Path) -> RevisionSet:
        revisions = read_revisions(folder)
        if revisions is None:
            raise ThroughlineError(f"nothing was deployed to {folder}")
        if revisions.usecase != folder.name:
            raise ThroughlineError(f"{folder / FILE} holds revisions of {revisions.usecase}")
        return revisions

    def _that_load(self, folder: Path) -> RevisionSet:
        """The deployed set, or its stable revision alone where another one cannot be loaded."""
        revisions = self._revisions(folder)
        try:
            for revision in revisions.revisions:
                if revision.role != "stable":
                    self._loaded(folder, revision)
        except ThroughlineError as error:
            self._refused(folder.name, f"refused: {error}")
            return only(revisions.stable.model_copy(update={"weight": 1.0}))
        return revisions

    def _loaded(self, folder: Path, revision: Revision) -> Loaded:
        """The model that serves already, or loaded now. Raises `ThroughlineError` naming the revision."""
        model = self.models.get(folder.name)
        held = model.deployed.predictors.get(revision.revision) if isinstance(model, UseCaseModel) else None
        try:
            if held is not None and held.revision.sha256 == revision.sha256:
                verify(self._settings, folder, revision)
                return held.loaded
            try_out(self._settings, folder, revision)
            return load(self._settings, folder, revision)
        except ThroughlineError as error:
            raise ThroughlineError(f"{revision.revision}: {error}") from error

    def _load(self, name: str, revisions: RevisionSet) -> None:
        usecase, folder = self.usecases[name], self._settings.serving_home / name
        with self._loading:
            loaded = {revision: self._loaded(folder, revision) for revision in revisions.revisions}
            reader = self._reader(usecase)
            clock = data_clock(self._settings, usecase.clock_start(self._settings))
            predictors = {
                revision.revision: Predictor(
                    usecase, revision, own, reader, clock, self._publish, self._metrics.of(revision)
                )
                for revision, own in loaded.items()
            }
            times = {revision: predictor.warm_up() for revision, predictor in predictors.items()}
            stable_s = times[revisions.stable.revision]
            dropped = partial(self._count_dropped, name)
            batch = self._settings.micro_batch or (1 if reader.near else BATCH)
            quick = reader.near and batch == 1 and (stable_s is None or stable_s < QUICK_S)
            before = self.models.get(name)
            self.update(
                UseCaseModel(
                    usecase, Deployed(revisions, predictors, quick, batch, dropped, self._settings.traffic), folder
                )
            )
            self._metrics.deployed(name, loaded.items())
        if isinstance(before, UseCaseModel):
            before.deployed.close()
        log.info("%s serves %s", name, ", ".join(f"{one.revision} ({one.role})" for one in revisions.revisions))

    def _count_dropped(self, name: str, revision: str) -> None:
        self._metrics.dropped[name, revision] += 1

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


def _timed(event: Any) -> Any:
    """With the time that CloudEvents may leave out, and that KServe demands."""
    return {"time": datetime.now(UTC).isoformat(), **event} if isinstance(event, dict) else event


def known_model(repository: Repository, name: str) -> UseCaseModel:
    """What serves a use case. Raises `ModelNotFound` for another name, `ModelNotReady` when nothing serves it."""
    model = repository.models.get(name)
    if isinstance(model, UseCaseModel):
        return model
    if name in repository.usecases:
        raise ModelNotReady(name, "No revision is served: `throughline status` names the reason.")
    raise ModelNotFound(name)


class RevisionLoader(ModelRepositoryExtension):
    """KServe's load and unload, with the reason of a refusal, and results in the form that its gRPC service reads."""

    def __init__(self, repository: Repository, peers: Peers | None = None) -> None:
        super().__init__(repository)
        self._repository = repository
        self._peers = peers

    # KServe annotates both with None; its gRPC service reads name and state of what they return.
    async def load(self, model_name: str) -> dict[str, Any]:  # ty: ignore[incompatible-method-override]  # see above
        await run_in_threadpool(self._repository.load, model_name)
        await self._by_peers("load", model_name)
        return {"name": model_name, "load": True}

    async def unload(self, model_name: str) -> dict[str, Any]:  # ty: ignore[incompatible-method-override]  # see above
        await super().unload(model_name)
        await self._by_peers("unload", model_name)
        return {"name": model_name, "unload": True}

    async def _by_peers(self, verb: str, model_name: str) -> None:
        if self._peers is None or FROM_PEER.get():
            return
        try:
            await run_in_threadpool(self._peers.load, verb, model_name)
        except ThroughlineError as error:
            raise RevisionRefused(f"Revision of {model_name} refused: {error}") from error


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
        structured = bool(headers) and headers.get("content-type", "").startswith("application/cloudevents")
        try:
            if structured:
                body = _timed(orjson.loads(body))
            decoded = super().decode(body, headers, *args, **kwargs)
        # KServe decodes unchecked: KeyError, TypeError, struct.error and more, all caused by what was sent.
        except Exception as error:
            reason = str(error) if type(error).__module__.startswith("kserve") else type(error).__name__
            raise BadRequest("body", f"cannot be decoded ({reason[:200]})") from None
        if structured and not decoded[1]:
            raise BadRequest("body", "is not a CloudEvent (specversion, type, source, id and data)")
        return decoded

    def encode(self, model_name: str, response: Any, headers: Any, req_attributes: Any) -> Any:
        try:
            return super().encode(model_name, response, headers, req_attributes)
        except KeyError as error:  # of a CloudEvent without the attributes its answer repeats
            raise BadRequest("body", f"is not a complete CloudEvent ({error} is missing)") from None

    def _known(self, name: str) -> None:
        if name in self._repository.usecases:
            known_model(self._repository, name)
