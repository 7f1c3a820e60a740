"""Runs of the graph and their steps as OpenLineage events, for a lineage server.

Owns: the form of the events, and sending them. Does not own: what a step read and wrote (`assets/lineage_events.py`). A
dataset's namespace is the URI of the lakehouse, its name the table; a step's run has the same id whenever it is sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeVar
from uuid import UUID, uuid5

from throughline.foundation.settings import Settings, in_bucket

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent
    from openlineage.client.facet_v2 import DatasetFacet

NAMESPACE = "throughline"
D = TypeVar("D", "InputDataset", "OutputDataset")
_PRODUCER = "urn:throughline:lineage"
_TIMEOUT_S, _RETRIES, _ALL_S = 5.0, 1, 30.0
_LONGEST_ERROR = 300

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """A table, or another asset by its path; `version` None: unknown."""

    name: str
    version: str | None = None


@dataclass(frozen=True)
class StepRun:
    """A started step; `step` None: the run as a whole, the parent of its steps.

    Instants in UTC; `ended` None: it still runs. `error`: why it failed.
    """

    run_id: str
    job: str
    step: str | None
    started: datetime
    ended: datetime | None = None
    state: Literal["COMPLETE", "FAIL", "ABORT"] | None = None
    error: str | None = None
    inputs: Sequence[Table] = ()
    outputs: Sequence[Table] = ()


def namespace_of(settings: Settings) -> str:
    """The lakehouse as a URI."""
    return f"{'' if in_bucket(settings.lakehouse) else 'file://'}{settings.lakehouse}"


def events_of(step: StepRun, namespace: str) -> list[RunEvent]:
    """START and, once it has ended, COMPLETE, FAIL or ABORT."""
    # postpones openlineage (0.8 s), as the other imports here
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import error_message_run, parent_run

    run_id, name, within = step.run_id, step.job, {}
    if step.step is not None:
        run_id, name = str(uuid5(UUID(step.run_id), step.step)), f"{step.job}.{step.step}"
        within["parent"] = parent_run.ParentRunFacet(
            run=parent_run.Run(runId=step.run_id), job=parent_run.Job(namespace=NAMESPACE, name=step.job)
        )
    error = error_message_run.ErrorMessageRunFacet(
        message=(step.error or "no reason was given")[:_LONGEST_ERROR], programmingLanguage="PYTHON"
    )

    def event(state: RunState, at: datetime) -> RunEvent:
        failed = {"errorMessage": error} if state is RunState.FAIL else {}
        return RunEvent(
            eventType=state,
            eventTime=at.astimezone(UTC).isoformat(),
            run=Run(runId=run_id, facets={**within, **failed}),
            job=Job(namespace=NAMESPACE, name=name),
            inputs=[_dataset(InputDataset, table, namespace) for table in step.inputs],
            outputs=[_dataset(OutputDataset, table, namespace) for table in step.outputs],
            producer=_PRODUCER,
        )

    ended = [event(RunState[step.state], step.ended)] if step.ended and step.state else []
    return [event(RunState.START, step.started), *ended]


def _dataset(kind: type[D], table: Table, namespace: str) -> D:
    from openlineage.client.facet_v2 import dataset_version_dataset

    facet = dataset_version_dataset.DatasetVersionDatasetFacet
    facets: dict[str, DatasetFacet] = {} if table.version is None else {"version": facet(datasetVersion=table.version)}
    return kind(namespace=namespace, name=table.name, facets=facets)


def send(settings: Settings, steps: Iterable[StepRun]) -> str | None:
    """Send the steps to the receiver, in order. Returns why not all were accepted, or None; does not raise then.

    Each event has 5 s and two tries, all together half a minute; after a failed event the others are not sent.
    """
    from requests import RequestException, Timeout  # postpones requests, which openlineage sends with

    sent, until = 0, time.monotonic() + _ALL_S
    events = [event for step in steps for event in events_of(step, namespace_of(settings))]
    client = _client(settings)
    try:
        for event in events:
            if time.monotonic() > until:
                raise Timeout
            client.emit(event)
            sent += 1
    except RequestException as error:
        # not the whole error: it may repeat the request
        reason = f"{sent} of {len(events)} events accepted by {settings.openlineage_url} ({type(error).__name__})"
        log.warning("OpenLineage: %s", reason)
        return reason
    finally:
        client.close()
    return None


def _client(settings: Settings) -> OpenLineageClient:
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport, TokenProvider
    from openlineage.client.transport.http_common import DEFAULT_RETRY_CONFIG

    key = settings.openlineage_key
    config = HttpConfig(
        url=f"{settings.openlineage_url}/",
        timeout=_TIMEOUT_S,
        auth=ApiKeyTokenProvider({"api_key": key.get_secret_value()}) if key else TokenProvider({}),
        retry={**DEFAULT_RETRY_CONFIG, **dict.fromkeys(("total", "read", "connect"), _RETRIES)},
    )
    # by default the client also sends the address of the checkout's git remote, which may hold a password
    quiet = {"facets": {"source_code_location": {"disabled": True}}}
    return OpenLineageClient(transport=HttpTransport(config), config=quiet)
