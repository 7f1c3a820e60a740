"""The target on this machine: one model server with several revisions and a router in it.

Owns: the file of revisions, the request to load it, what serves, the counts at `/metrics`, replayed requests. Does not
own: which revisions are to serve (`strategy.py`), loading and routing (`serving`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of
from throughline.foundation.settings import Settings
from throughline.monitoring.outcomes import losses
from throughline.records import ModelRecord, RevisionSet
from throughline.rollout import placing
from throughline.rollout.endpoint import error_of
from throughline.rollout.revision import FILE, read_revisions, write_revisions
from throughline.rollout.scrape import look_of
from throughline.rollout.target import SHADOW, Capabilities, Look, Refused, Served, in_effect
from throughline.usecase import UseCase

LOAD_TIMEOUT_S = 120  # a revision is checked in a process of its own first, which has its own limit
TIMEOUT_S = 10
REPLAY_S = 5.0  # of requests at once, whatever a revision makes of them


class LocalTarget:
    """The model server of a home."""

    capabilities = Capabilities(weights=True, sticky=True, mirror=True)

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.url("model_http")

    def address(self, usecase: str) -> str:
        return f"{self._url}/v1/models/{usecase}:predict"

    def place(self, usecase: UseCase, model: ModelRecord) -> None:
        placing.place(self._settings, usecase, model)

    def apply(self, revisions: RevisionSet) -> None:
        folder = self._settings.serving_home / revisions.usecase
        try:
            previous = read_revisions(folder)
        except ThroughlineError:
            previous = None  # it could not be served either
        write_revisions(folder, revisions)
        with self._server(LOAD_TIMEOUT_S) as server:
            try:
                self._load(server, revisions)
            except (ThroughlineError, httpx.HTTPError):
                _put_back(server, folder, revisions.usecase, previous)
                raise

    def observe(self, usecase: str) -> tuple[Served, ...]:
        with self._server(TIMEOUT_S) as server:
            entries = server.get("/v1/throughline/revisions").raise_for_status().json()
            return tuple(
                Served(revision=entry["revision"], role=entry["role"], weight=entry["share"])
                for entry in entries
                if entry["usecase"] == usecase
            )

    def evidence(self, usecase: str) -> Look:
        with self._server(TIMEOUT_S) as server:
            text = server.get("/metrics").raise_for_status().text
            return look_of(text, usecase, losses(self._settings, usecase), datetime.now(UTC))

    def replay(self, usecase: str, revisions: Sequence[str], instances: Sequence[dict[str, Any]]) -> None:
        until = time.monotonic() + REPLAY_S
        refused, answers = "", 0
        with self._server(TIMEOUT_S) as server:
            for number, instance in enumerate(instances):
                # each is the first to answer as often as the others, which find warm caches
                first = number % len(revisions)
                for revision in (*revisions[first:], *revisions[:first]):
                    headers = {"X-Throughline-Revision": revision, "X-Throughline-Traffic": SHADOW}
                    # a revision that does not answer in time is in no count: what cannot be said goes back
                    with contextlib.suppress(httpx.TimeoutException):
                        answer = server.post(
                            f"/v1/models/{usecase}:predict", json={"instances": [instance]}, headers=headers
                        )
                        if answer.is_client_error:
                            refused = error_of(answer)
                        else:
                            answers += 1
                if time.monotonic() > until:
                    break
        if refused and not answers:
            raise ThroughlineError(f"The model server refuses all replayed requests: {refused}")

    def _load(self, server: httpx.Client, revisions: RevisionSet) -> None:
        usecase = revisions.usecase
        names = ", ".join(str(revision.model) for revision in revisions.revisions)
        answer = server.post(f"/v2/repository/models/{usecase}/load")
        if answer.status_code == httpx.codes.CONFLICT:
            raise Refused(f"The model server refused {names}: {error_of(answer)}")
        if answer.is_error:
            raise ThroughlineError(f"The model server did not load {names}: {error_of(answer)}")
        ready = server.get(f"/v2/models/{usecase}/ready")
        served = self.observe(usecase)
        if ready.is_error or not in_effect(revisions, served):
            now = ", ".join(f"{one.revision} ({one.role} {one.weight:g})" for one in served)
            raise ThroughlineError(
                f"The model server loaded {names} but serves {now or 'nothing'} (ready: {not ready.is_error}): "
                "see its log."
            )

    @contextmanager
    def _server(self, timeout: float) -> Generator[httpx.Client]:
        with client_of(self._settings, "model_http", timeout) as server:
            try:
                yield server
            except (httpx.HTTPError, ValueError, KeyError) as error:
                raise ThroughlineError(
                    f"The model server at {self._url} does not answer as it should ({error}): "
                    "see `throughline status`, start it with `throughline up`."
                ) from error


def _put_back(server: httpx.Client, folder: Path, usecase: str, previous: RevisionSet | None) -> None:
    """Disk and server as before; a server that refused the new set never stopped serving the old one."""
    if previous is None:
        (folder / FILE).unlink(missing_ok=True)
    else:
        write_revisions(folder, previous)
    # A server that cannot be reached reads the file when it starts.
    with contextlib.suppress(httpx.HTTPError):
        server.post(f"/v2/repository/models/{usecase}/{'load' if previous else 'unload'}")
