"""What is put under load: the endpoint on this machine, and the requests that it gets.

Owns: which addresses may be loaded, the bodies and headers of good requests. Does not own: when they are sent
(`arrivals.py`), by what (`callers.py`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of, headers_of
from throughline.foundation.settings import Settings, is_loopback
from throughline.lakehouse.table import find_pin, read
from throughline.rollout.endpoint import as_instances
from throughline.usecase import UseCase
from throughline.usecase.requests import example_instance

SAMPLE = 2000
SEED = 2013
TRAFFIC_HEADER = {"X-Throughline-Traffic": "load_test"}


@dataclass(frozen=True)
class Target:
    """The endpoint of one use case. `instances`: what is requested, again and again in this order."""

    settings: Settings
    usecase: UseCase
    url: str
    instances: list[dict[str, Any]]

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80

    @property
    def path(self) -> str:
        return f"/v1/models/{self.usecase.name}:predict"

    @property
    def headers(self) -> dict[str, str]:
        """Every request of a load test names its traffic class: it is never counted as production."""
        return {"Content-Type": "application/json", **TRAFFIC_HEADER, **headers_of(self.settings, "model_http")}

    def bodies(self, rows: int) -> Iterator[bytes]:
        """Bodies of `rows` instances each, without end."""
        source = itertools.cycle(self.instances)
        while True:
            yield json.dumps({"instances": list(itertools.islice(source, rows))}).encode()


def target(settings: Settings, usecase: UseCase, url: str) -> Target:
    return Target(settings, usecase, url, instances(settings, usecase))


def require_loopback(url: str) -> None:
    """A load test is for the endpoint on this machine. Raises `ThroughlineError` for any other."""
    host = urlsplit(url).hostname
    if host is None or not is_loopback(host):
        raise ThroughlineError(f"{url} is not on this machine: load tests are sent to loopback addresses only.")


def instances(settings: Settings, usecase: UseCase) -> list[dict[str, Any]]:
    """Real requests from the use case's spine table, or the declaration's example before that table exists."""
    table = find_pin(settings, f"{usecase.name}/features/{usecase.features.spine}")
    if table is None:
        return [example_instance(usecase)]
    rows = read(settings, table).select(list(usecase.request)).collect()
    return as_instances(usecase, rows.sample(min(SAMPLE, rows.height), shuffle=True, seed=SEED))


def served(settings: Settings, url: str) -> list[str]:
    """Names of the use cases the endpoint serves now. Raises `ThroughlineError` when there is none."""
    try:
        with client_of(settings, "model_http", 10) as server:
            answer = server.get(f"{url}/v1/throughline/revisions").raise_for_status()
    except httpx.HTTPError as error:
        raise ThroughlineError(f"{url} does not answer ({error}): run `make run`.") from error
    names = list(dict.fromkeys(entry["usecase"] for entry in answer.json()))
    if not names:
        raise ThroughlineError(f"{url} serves no model yet: deploy one with `make run`.")
    return names
