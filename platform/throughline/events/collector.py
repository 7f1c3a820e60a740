"""The collector: takes inference events and pushed rows over HTTP and appends them to tables in micro-batches.

    python -m throughline.events.collector

Owns: the endpoints, the counts. Does not own: the journals between receipt and table (`intake.py`), the content of the
inference log (`table.py`), which rows may be pushed (`sources/push.py`).

An event or a row is confirmed (202) when it is fsynced to the journal, in less than a millisecond, not when it is in
the table; one fsync covers all requests that wait. A journal segment is removed after its rows are committed. After a
kill between the two the next start writes the segment again and drops the ids that are in the table: exactly once.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import polars as pl
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from throughline.events import wire
from throughline.events.schema import BadEvent, InferenceEvent, to_rows
from throughline.events.table import LogTable, SourceCount
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.guard import Guard
from throughline.foundation.security.tokens import BearerToken, demanded_token
from throughline.foundation.settings import Settings, load_settings
from throughline.journal.intake import Intake, counts
from throughline.sources.push import BadRow, NoSuchTable, PushIntake
from throughline.usecase import load_usecases

MAX_BODY = 1 << 20
MAX_BATCH = MAX_ROWS_BODY = 8 << 20


class Collector(Intake):
    """The inference log of one home. The table of an event is the one of its use case."""

    what = "The inference log"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.serving_home / "spool" / "collector")
        self._settings = settings
        self._usecases = set(load_usecases())
        self._tables: dict[str, LogTable] = {}
        self._counted: dict[str, dict[str, SourceCount]] = {}  # of each table as it was read or written last
        for usecase in sorted(self._usecases):
            self._open(usecase)

    async def receive(self, events: Sequence[InferenceEvent | BadEvent]) -> list[tuple[int, BadEvent]]:
        """Returns when the events are on the disk; those that are refused, with their positions."""
        refused, lines = [], []
        for position, event in enumerate(events):
            if isinstance(event, InferenceEvent) and event.subject not in self._usecases:
                event = BadEvent(f"subject: {event.subject[:80]} is not a declared use case", str(event.id))
            if isinstance(event, BadEvent):
                refused.append((position, event))
            else:
                lines.append(event.model_dump_json().encode())
        if lines:
            await self.confirm(lines)
        self.rejected += len(refused)
        return refused

    def parse(self, line: bytes) -> tuple[str, InferenceEvent]:
        event = InferenceEvent.model_validate_json(line)
        return event.subject, event

    def to_rows(self, items: Sequence[InferenceEvent]) -> pl.DataFrame:
        return to_rows(items)

    def append(self, table: str, rows: pl.DataFrame) -> int:
        try:
            return self._table(table).append(rows)
        except Exception:
            self._tables.pop(table, None)  # opened again at the next attempt: it may have been replaced
            raise

    def flush(self, now: bool = True) -> None:
        for usecase in sorted(self._usecases - self._tables.keys()):
            if now or self._due(usecase):
                self._open(usecase)
        super().flush(now)

    def write(self) -> dict[str, Any]:
        """Move everything confirmed so far to the tables: `version` of each, and by use case what `failed`."""
        self.flush()
        return {
            "version": {usecase: table.version for usecase, table in sorted(self._tables.items())},
            "failed": {table: failure.what for table, failure in self.failures.items()},
        }

    def status(self) -> dict[str, Any]:
        """Counts since the log began; duplicates and rejected since this start."""
        sources = self._sources()
        written = sum(count.events for count in sources.values())
        counted = counts(self)
        return {
            "received": written + counted["pending"] + counted["duplicates"] + counted["set_aside"],
            "written": written,
            "lost": sum(count.lost for count in sources.values()),
            **counted,
            "sources": {
                source: {"written": count.events, "highest": count.highest, "lost": count.lost}
                for source, count in sources.items()
            },
        }

    def _sources(self) -> dict[str, SourceCount]:
        """A server numbers the events of all its use cases together, so gaps are counted across the tables."""
        merged: dict[str, SourceCount] = defaultdict(SourceCount)
        for counted in list(self._counted.values()):
            for source, count in list(counted.items()):
                merged[source].add(count.events, count.highest)
        return dict(merged)

    def _open(self, usecase: str) -> None:
        try:
            self._table(usecase)
            self.failures.pop(usecase, None)
        except Exception as error:  # one table that cannot be read must not keep the others from being written
            self._failed(usecase, error)

    def _table(self, usecase: str) -> LogTable:
        if usecase not in self._tables:
            self._tables[usecase] = LogTable(self._settings, usecase)
            self._counted[usecase] = self._tables[usecase].sources
        return self._tables[usecase]


def create_app(settings: Settings) -> ASGIApp:
    """The HTTP application of a collector for one home; its journals are open while it runs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        app.state.collector = await run_in_threadpool(Collector, settings)
        app.state.pushed = await run_in_threadpool(PushIntake, settings, load_usecases())
        intakes: list[Intake] = [app.state.collector, app.state.pushed]
        for intake in intakes:
            intake.start()
        yield
        for intake in intakes:
            await intake.stop()

    app = FastAPI(title="Throughline collector", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BearerToken, token=demanded_token(settings), exempt=lambda path: path == "/health")

    @app.post("/")
    async def receive(request: Request) -> Response:
        """CloudEvents in binary, structured or batched mode. Of a batch the good ones are taken, and the others named;
        422 when none is taken."""
        collector: Collector = request.app.state.collector
        limit = MAX_BATCH if wire.is_batch(request.headers) else MAX_BODY
        if int(request.headers.get("content-length") or limit + 1) > limit:
            return JSONResponse({"error": f"body: send a Content-Length of at most {limit}"}, 413)
        body = await request.body()
        if not wire.is_batch(request.headers):
            for _, refusal in await collector.receive([wire.parse_one(request.headers, body)]):
                return JSONResponse({"error": str(refusal)}, 422)
            return Response(status_code=202)
        events = await run_in_threadpool(wire.parse_batch, body)
        refused = [
            {"position": position, "id": error.event_id, "error": str(error)}
            for position, error in await collector.receive(events)
        ]
        accepted = len(events) - len(refused)
        return JSONResponse({"accepted": accepted, "refused": refused}, 202 if accepted or not refused else 422)

    @app.post("/flush")
    async def flush(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(request.app.state.collector.write)

    @app.post("/v1/sources/{usecase}/{table}", status_code=202)
    async def push(request: Request, usecase: str, table: str) -> dict[str, int]:
        """Rows of a declared table, JSON lines or an array: all of them are kept, or none."""
        intake: PushIntake = request.app.state.pushed
        if int(request.headers.get("content-length") or MAX_ROWS_BODY + 1) > MAX_ROWS_BODY:
            raise BadRow(f"body: send a Content-Length of at most {MAX_ROWS_BODY}")
        rows = await run_in_threadpool(intake.check, usecase, table, await request.body())
        await intake.confirm(rows)
        return {"accepted": len(rows)}

    @app.post("/v1/sources/{usecase}/{table}/flush")
    async def flush_rows(request: Request, usecase: str, table: str) -> dict[str, Any]:
        return {"version": await run_in_threadpool(request.app.state.pushed.write, usecase, table)}

    @app.get("/status")
    async def status(request: Request) -> dict[str, Any]:
        return {**request.app.state.collector.status(), "pushed": request.app.state.pushed.status()}

    @app.get("/health")
    async def health(request: Request) -> JSONResponse:
        """503 when only a restart helps. A table that cannot be written is in `/status`: it is tried again."""
        for intake in (request.app.state.collector, request.app.state.pushed):
            if intake.broken:
                return JSONResponse({"status": "failing", "error": intake.broken}, 503)
        return JSONResponse({"status": "alive"})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        counted = {"events": request.app.state.collector.status(), "rows": request.app.state.pushed.status()}
        return Response(_metrics(counted), media_type="text/plain; version=0.0.4")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.exception_handler(ThroughlineError)
    async def known_error(request: Request, error: ThroughlineError) -> JSONResponse:
        if isinstance(error, BadEvent | BadRow):
            intake = request.app.state.collector if isinstance(error, BadEvent) else request.app.state.pushed
            intake.rejected += 1
            return JSONResponse({"error": str(error)}, 422)
        return JSONResponse({"error": str(error)}, 404 if isinstance(error, NoSuchTable) else 503)

    return Guard(app, settings, "collector", settings.bind, settings.port("collector"))


def _metrics(counted: dict[str, dict[str, Any]]) -> str:
    lines = []
    for what, status in counted.items():
        for name in ("received", "written", "duplicates", "rejected", "set_aside", "lost", "pending"):
            if name in status:
                kind = "gauge" if name in ("lost", "pending", "set_aside") else "counter"
                full = f"throughline_collector_{what}_{name}" + ("_total" if kind == "counter" else "")
                lines += [f"# TYPE {full} {kind}", f"{full} {status[name]}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = load_settings()
        app = create_app(settings)
        # uvicorn raises the signal that stopped it once more at the end: a stop by SIGTERM is a success.
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
