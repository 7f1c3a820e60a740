"""Asking the collector how the inference log stands."""

from __future__ import annotations

import httpx

from throughline.access import auth_headers
from throughline.errors import ThroughlineError
from throughline.records import InferenceLogRecord, TableVersion
from throughline.settings import Settings
from throughline.usecase import UseCase

LAYER, TABLE = "monitoring", "inference_log"


def snapshot(settings: Settings, usecase: UseCase) -> InferenceLogRecord:
    """Have everything received so far written, and pin the log of the use case. Raises when the collector is away."""
    try:
        with httpx.Client(base_url=settings.url("collector"), headers=auth_headers(settings), timeout=60) as client:
            flushed = client.post("/flush").raise_for_status().json()
            counted = client.get("/status").raise_for_status().json()
    except httpx.HTTPError as error:
        raise ThroughlineError(
            f"The collector at {settings.url('collector')} does not answer ({error}): start it with `throughline up`."
        ) from error
    version = flushed["version"].get(usecase.name)
    return InferenceLogRecord(
        table=TableVersion(table=f"{usecase.name}/{LAYER}/{TABLE}", version=version) if version is not None else None,
        received=counted["received"],
        written=counted["written"],
        lost=counted["lost"],
    )
