"""The collector: takes events, reported outcomes and pushed rows over HTTP, appended to tables in micro-batches.

    python -m throughline.events.collector

Owns: the endpoints. Does not own: the intakes of events (`log_intake.py`), of outcomes (`feedback_intake.py`) and of
rows (`sources/push.py`), the journals between receipt and table (`journal/`).

What was sent is confirmed (202) when it is fsynced to a journal, in less than a millisecond, not when it is in a table;
one fsync covers all requests that wait. A journal segment is removed after its rows are committed. After a kill between
the two the next start writes the segment again and drops the ids that are in the table: exactly once.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from throughline.events import wire
from throughline.events.feedback import BadReport
from throughline.events.feedback_intake import FeedbackIntake, NoSuchUseCase
from throughline.events.log_intake import LogIntake
from throughline.events.schema import BadEvent
from throughline.foundation.connections import HalfClosable
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.guard import Guard
from throughline.foundation.security.tokens import BearerToken, demanded_token
from throughline.foundation.settings import Settings, load_settings
from throughline.journal.intake import Intake
from throughline.sources.push import BadRow, NoSuchTable, PushIntake
from throughline.usecase import load_usecases

MAX_BODY = 1 << 20
MAX_BATCH = MAX_ROWS_BODY = 8 << 20


def create_app(settings: Settings) -> ASGIApp:
    """The HTTP application of a collector for one home; its journals are open while it runs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        usecases = load_usecases()
        app.state.events = await run_in_threadpool(LogIntake, settings, usecases)
        app.state.feedback = await run_in_threadpool(FeedbackIntake, settings, usecases)
        app.state.pushed = await run_in_threadpool(PushIntake, settings, usecases)
        for intake in _intakes(app):
            intake.start()
        yield
        for intake in _intakes(app):
            await intake.stop()

    app = FastAPI(title="Throughline collector", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BearerToken, token=demanded_token(settings), exempt=lambda path: path == "/health")

    @app.post("/")
    async def receive(request: Request) -> Response:
        """CloudEvents in binary, structured or batched mode. Of a batch the good ones are taken, and the others named;
        422 when none is taken."""
        intake: LogIntake = request.app.state.events
        limit = MAX_BATCH if wire.is_batch(request.headers) else MAX_BODY
        if int(request.headers.get("content-length") or limit + 1) > limit:
            return JSONResponse({"error": f"body: send a Content-Length of at most {limit}"}, 413)
        body = await request.body()
        if not wire.is_batch(request.headers):
            for _, refusal in await intake.receive([wire.parse_one(request.headers, body)]):
                return JSONResponse({"error": str(refusal)}, 422)
            return Response(status_code=202)
        events = await run_in_threadpool(wire.parse_batch, body)
        refused = [
            {"position": position, "id": error.event_id, "error": str(error)}
            for position, error in await intake.receive(events)
        ]
        accepted = len(events) - len(refused)
        return JSONResponse({"accepted": accepted, "refused": refused}, 202 if accepted or not refused else 422)

    @app.post("/flush")
    async def flush(request: Request) -> dict[str, Any]:
        """Write everything confirmed so far: `version` by use case, and what `failed`; of reported outcomes under
        `feedback`."""
        events = await run_in_threadpool(request.app.state.events.write)
        return {**events, "feedback": await run_in_threadpool(request.app.state.feedback.write)}

    @app.post("/v1/feedback/{usecase}")
    async def report(request: Request, usecase: str) -> JSONResponse:
        """Outcomes of predictions, one or an array. The good ones are taken, and the others named; 422 when none is."""
        if int(request.headers.get("content-length") or MAX_ROWS_BODY + 1) > MAX_ROWS_BODY:
            return JSONResponse({"error": f"body: send a Content-Length of at most {MAX_ROWS_BODY}"}, 413)
        intake: FeedbackIntake = request.app.state.feedback
        accepted, refused = await intake.receive(usecase, await request.body())
        answer = {"accepted": accepted, "refused": refused}
        if accepted or not refused:
            return JSONResponse(answer, 202)
        return JSONResponse({**answer, "error": refused[0]["error"]}, 422)

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
        return await run_in_threadpool(_status, request.app)

    @app.get("/health")
    async def health(request: Request) -> JSONResponse:
        """503 when only a restart helps. A table that cannot be written is in `/status`: it is tried again."""
        for intake in _intakes(request.app):
            if intake.broken:
                return JSONResponse({"status": "failing", "error": intake.broken}, 503)
        return JSONResponse({"status": "alive"})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        status = await run_in_threadpool(_status, request.app)
        counted = {"events": status, "feedback": status["feedback"], "rows": status["pushed"]}
        return Response(_metrics(counted), media_type="text/plain; version=0.0.4")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.exception_handler(ClientDisconnect)
    async def caller_left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)  # which nobody reads

    @app.exception_handler(ThroughlineError)
    async def known_error(request: Request, error: ThroughlineError) -> JSONResponse:
        refused_by = {BadEvent: "events", BadReport: "feedback", BadRow: "pushed"}.get(type(error))
        if refused_by:
            getattr(request.app.state, refused_by).rejected += 1
            return JSONResponse({"error": str(error)}, 422)
        return JSONResponse({"error": str(error)}, 404 if isinstance(error, NoSuchTable | NoSuchUseCase) else 503)

    return Guard(app, settings, "collector", settings.bind, settings.port("collector"))


def _intakes(app: FastAPI) -> tuple[Intake, ...]:
    return app.state.events, app.state.feedback, app.state.pushed


def _status(app: FastAPI) -> dict[str, Any]:
    return {
        **app.state.events.status(), "feedback": app.state.feedback.status(), "pushed": app.state.pushed.status()
    }  # fmt: skip


def _metrics(counted: dict[str, dict[str, Any]]) -> str:
    lines = []
    for what, status in counted.items():
        for name in (
            "received",
            "written",
            "duplicates",
            "rejected",
            "set_aside",
            "lost",
            "pending",
            "waiting",
            "expired",
        ):
            if name in status:
                kind = "gauge" if name in ("lost", "pending", "set_aside", "waiting", "expired") else "counter"
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
            http=HalfClosable,
            timeout_graceful_shutdown=10,
        )
    except ThroughlineError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
