"""The collector: receives events over HTTP and appends them to the inference log in micro-batches.

    python -m throughline.events.collector

Owns: the endpoint, the journal between receipt and table, the counts. Does not own: the table's content (`table`).

An event is confirmed (202) when it is fsynced to the journal, not when it is in the table: a confirmation takes well
under a millisecond instead of waiting for the next commit, and one fsync covers all requests that wait at that moment.
A journal segment is removed after the commit of its events. A kill between the two makes the next start write the
segment again, and ids that are in the table are dropped: exactly once, wherever the kill falls.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from throughline.access import BearerToken, demanded_token
from throughline.errors import ThroughlineError
from throughline.events.journal import Journal
from throughline.events.schema import BadEvent, InferenceEvent, from_binary
from throughline.events.table import LogTable, SourceCount
from throughline.settings import Settings, load_settings
from throughline.usecase import load_usecases

log = logging.getLogger(__name__)

BATCH_S = 1.0
BATCH_EVENTS = 500
MAX_BODY = 1 << 20


class Collector:
    """Journal and tables of one home; `receive` from the event loop, `write` from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._journal = Journal(settings.serving_home / "spool" / "collector")
        self._writing = threading.Lock()
        self._tables: dict[str, LogTable] = {}
        self._usecases = set(load_usecases())
        self.duplicates = 0
        self.rejected = 0
        self.failure: str | None = None
        # Two counts, each changed by one thread only: events in the journal so far, and those moved on to a table.
        self._kept = sum(len(Journal.read(segment)) for segment in self._journal.sealed())
        self._moved = 0
        self._unsynced: list[tuple[bytes, asyncio.Future[None]]] = []
        self._syncing = False
        self.full = asyncio.Event()
        for usecase in self._usecases:
            self._table(usecase)

    @property
    def pending(self) -> int:
        """Confirmed events that are not in a table yet."""
        return self._kept - self._moved

    async def receive(self, event: InferenceEvent) -> None:
        """Returns when the event is on the disk."""
        if event.subject not in self._usecases:
            raise BadEvent(f"subject: {event.subject} is not a declared use case")
        confirmed = asyncio.get_running_loop().create_future()
        self._unsynced.append((event.model_dump_json().encode(), confirmed))
        if not self._syncing:
            self._syncing = True
            try:
                while self._unsynced:
                    group, self._unsynced = self._unsynced, []
                    await self._sync(group)
            finally:
                self._syncing = False
        await confirmed

    async def _sync(self, group: list[tuple[bytes, asyncio.Future[None]]]) -> None:
        """One write and one fsync for every event that came in while the last one ran."""
        try:
            await asyncio.to_thread(self._journal.append, [line for line, _ in group], sync=True)
        except OSError as error:
            refusal = ThroughlineError(f"The journal cannot be written ({error}): free disk space.")
            for _, confirmed in group:
                if not confirmed.done():
                    confirmed.set_exception(refusal)
            return
        self._kept += len(group)
        for _, confirmed in group:
            if not confirmed.done():
                confirmed.set_result(None)
        if self.pending >= BATCH_EVENTS:
            self.full.set()

    def write(self) -> dict[str, int | None]:
        """Move everything confirmed so far to the tables. Returns the version of each table."""
        with self._writing:
            for segment in self._journal.sealed():
                lines = Journal.read(segment)
                events = defaultdict(list)
                for line in lines:
                    event = InferenceEvent.model_validate_json(line)
                    events[event.subject].append(event)
                for usecase, batch in events.items():
                    self.duplicates += len(batch) - self._table(usecase).append(batch)
                self._journal.remove(segment)
                self._moved += len(lines)
            return {usecase: table.version for usecase, table in sorted(self._tables.items())}

    async def write_for_ever(self) -> None:
        """Write once a second, or as soon as a batch is full. A failed write is reported and tried again."""
        while True:
            try:
                async with asyncio.timeout(BATCH_S):
                    await self.full.wait()
            except TimeoutError:
                pass
            self.full.clear()
            if self.pending:
                try:
                    await run_in_threadpool(self.write)
                    self.failure = None
                except Exception as error:  # delta-rs raises many kinds; the events stay in the journal
                    self.failure = f"The inference log cannot be written ({str(error).splitlines()[0]})."
                    log.exception("%s Tried again every %s s.", self.failure, BATCH_S)

    def status(self) -> dict[str, Any]:
        """Counts since the log began; duplicates and rejected since this start."""
        counts = self._sources()
        written = sum(count.events for count in counts.values())
        return {
            "received": written + self.pending + self.duplicates,
            "written": written,
            "duplicates": self.duplicates,
            "rejected": self.rejected,
            "lost": sum(count.lost for count in counts.values()),
            "pending": self.pending,
            "failure": self.failure,
            "sources": {
                source: {"written": count.events, "highest": count.highest, "lost": count.lost}
                for source, count in counts.items()
            },
        }

    def _sources(self) -> dict[str, SourceCount]:
        """A server numbers the events of all its use cases together, so gaps are counted across the tables."""
        merged: dict[str, SourceCount] = defaultdict(SourceCount)
        for table in self._tables.values():
            for source, count in list(table.sources.items()):
                merged[source].add(count.events, count.highest)
        return dict(merged)

    def close(self) -> None:
        self.write()
        self._journal.close()

    def _table(self, usecase: str) -> LogTable:
        if usecase not in self._tables:
            self._tables[usecase] = LogTable(self._settings, usecase)
        return self._tables[usecase]


def create_app(settings: Settings) -> FastAPI:
    """The HTTP face of a collector for one home; it opens the journal when it starts and closes it when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.collector = collector = await run_in_threadpool(Collector, settings)
        writer = asyncio.create_task(collector.write_for_ever())
        yield
        writer.cancel()
        await run_in_threadpool(collector.close)

    app = FastAPI(title="Throughline collector", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BearerToken, token=demanded_token(settings), exempt=lambda path: path == "/health")

    @app.post("/", status_code=202)
    async def receive(request: Request) -> Response:
        collector: Collector = request.app.state.collector
        try:
            if int(request.headers.get("content-length") or MAX_BODY + 1) > MAX_BODY:
                raise BadEvent(f"body: send a Content-Length of at most {MAX_BODY}")
            await collector.receive(from_binary(request.headers, await request.body()))
        except BadEvent as error:
            collector.rejected += 1
            return JSONResponse({"error": str(error)}, 422)
        return Response(status_code=202)

    @app.post("/flush")
    async def flush(request: Request) -> dict[str, Any]:
        return {"version": await run_in_threadpool(request.app.state.collector.write)}

    @app.get("/status")
    async def status(request: Request) -> dict[str, Any]:
        return request.app.state.collector.status()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return Response(_metrics(request.app.state.collector.status()), media_type="text/plain; version=0.0.4")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.exception_handler(ThroughlineError)
    async def known_error(_: Request, error: ThroughlineError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503)

    return app


def _metrics(status: dict[str, Any]) -> str:
    kinds = {"pending": "gauge", "lost": "gauge"}
    lines = []
    for name in ("received", "written", "duplicates", "rejected", "lost", "pending"):
        kind = kinds.get(name, "counter")
        full = f"throughline_collector_events_{name}" + ("_total" if kind == "counter" else "")
        lines += [f"# TYPE {full} {kind}", f"{full} {status[name]}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = load_settings()
        app = create_app(settings)
        # uvicorn repeats the signal that stopped it when all is written: a stop that was asked for is a success.
        signal.signal(signal.SIGTERM, lambda *_: None)
        uvicorn.run(
            app,
            host=settings.bind,
            port=settings.port("collector"),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=10,
        )
    except ThroughlineError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
