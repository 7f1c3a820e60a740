"""Client of the inference log: waits until it is complete, and pins its version.

Does not own: what a model server sends (`outbox.py`, `shipping.py`), what the collector writes (`collector.py`).
"""

from __future__ import annotations

import time

import httpx

from throughline.events.feedback import feedback_table
from throughline.events.schema import log_table
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of
from throughline.foundation.settings import Settings
from throughline.records import InferenceLogRecord
from throughline.usecase import UseCase


def drain(settings: Settings, url: str, timeout_s: float = 60) -> None:
    """Wait until the model server at `url` has sent all its events and the collector has written them.

    Before that, events on their way are counted as lost. Raises after `timeout_s`, and when a service does not answer.
    """
    deadline = time.monotonic() + timeout_s
    try:
        with client_of(settings, "model_http", 5) as server:
            while "throughline_events_waiting 0.0" not in server.get(f"{url}/metrics").raise_for_status().text:
                if time.monotonic() > deadline:
                    raise ThroughlineError(
                        f"The events of {url} were not sent within {timeout_s:g} s: see whether the collector runs."
                    )
                time.sleep(0.05)
        with client_of(settings, "collector") as collector:
            flushed = collector.post("/flush").raise_for_status().json()
    except httpx.HTTPError as error:
        raise ThroughlineError(
            f"The model server at {url} or its collector does not answer ({error}): run `throughline up`."
        ) from error
    for failure in [*flushed["failed"].values(), *flushed["feedback"]["failed"].values()]:
        raise ThroughlineError(failure)


def snapshot(settings: Settings, usecase: UseCase) -> InferenceLogRecord:
    """Have everything received so far written, and pin the log of the use case. Raises when the collector is down or
    cannot write it."""
    try:
        with client_of(settings, "collector") as client:
            flushed = client.post("/flush").raise_for_status().json()
            counted = client.get("/status").raise_for_status().json()
    except httpx.HTTPError as error:
        raise ThroughlineError(
            f"The collector at {settings.url('collector')} does not answer ({error}): start it with `throughline up`."
        ) from error
    reports = flushed["feedback"]
    if failure := flushed["failed"].get(usecase.name) or reports["failed"].get(usecase.name):
        raise ThroughlineError(failure)
    version, reported = flushed["version"].get(usecase.name), reports["version"].get(usecase.name)
    return InferenceLogRecord(
        table=log_table(usecase.name, version) if version is not None else None,
        feedback=feedback_table(usecase.name, reported) if reported is not None else None,
        received=counted["received"],
        written=counted["written"],
        lost=counted["lost"],
    )
