"""An OpenLineage receiver in the test's own process, which refuses what the specification's classes refuse."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import dataset_version_dataset, error_message_run, parent_run, tags_run

FACETS = {
    "parent": parent_run.ParentRunFacet,
    "errorMessage": error_message_run.ErrorMessageRunFacet,
    "tags": tags_run.TagsRunFacet,
    "version": dataset_version_dataset.DatasetVersionDatasetFacet,
}


class Receiver:
    """`events` that were taken, in order; `status` of the next answers; `requests`: how many came, taken or not."""

    def __init__(self) -> None:
        self.events: list[RunEvent] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.status = 201
        self.requests = 0
        self.url = ""

    def jobs(self) -> list[tuple[str, str]]:
        """Job and state of each event."""
        return [(event.job.name, event.eventType.value) for event in self.events]


def typed(event: dict[str, Any]) -> RunEvent:
    """The event as the specification's class. Raises for anything that is missing, unknown or of the wrong form."""
    event = dict(event)
    assert event.pop("schemaURL").endswith("RunEvent")
    return RunEvent(
        eventType=RunState[event.pop("eventType")],
        run=Run(**_faceted(event.pop("run"))),
        job=Job(**_faceted(event.pop("job"))),
        inputs=[InputDataset(**_faceted(each)) for each in event.pop("inputs", [])],
        outputs=[OutputDataset(**_faceted(each)) for each in event.pop("outputs", [])],
        **event,
    )


def _faceted(part: dict[str, Any]) -> dict[str, Any]:
    facets = {}
    for name, facet in part.get("facets", {}).items():
        fields = {"producer" if key == "_producer" else key: value for key, value in facet.items()}
        made = FACETS[name](**{key: value for key, value in fields.items() if key != "_schemaURL"})
        assert facet["_schemaURL"] == made._schemaURL
        facets[name] = made
    return {**part, "facets": facets}


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver on a free port of this machine, for the time of the block."""
    here = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            here.requests += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if here.status < 300:
                here.events.append(typed(json.loads(body)))
                here.headers.append(dict(self.headers))
                here.paths.append(self.path)
            self.send_response(here.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
