"""Middleware of KServe's endpoints, REST and gRPC: tokens, body size, error responses.

Owns: the one table from exceptions to statuses. KServe answers 500 to some bad requests and shows internals in others;
here a fault of the caller is 4xx with {"error": "field: problem"}, and a fault of ours is 500 without details.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from kserve.errors import (
    InferenceError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ServerNotLive,
    ServerNotReady,
    UnsupportedProtocol,
)
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.deployed import VersionNotServed
from serving.predictor import Unavailable
from serving.repository import RevisionRefused
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.tokens import REFUSAL, allowed
from throughline.usecase.requests import BadRequest

log = logging.getLogger(__name__)

MAX_BODY = 8 << 20
INTERNAL = "internal error: see the log of the model server"


class BodyTooLarge(ThroughlineError):
    """More bytes than a request may have."""

    def __init__(self) -> None:
        super().__init__(f"body: send at most {MAX_BODY} bytes")


# The first match counts. KServe raises NotImplementedError for an endpoint that a model does not have.
_STATUSES: list[tuple[tuple[type[Exception], ...], int, grpc.StatusCode]] = [
    ((BadRequest, InvalidInput, InferenceError), 400, grpc.StatusCode.INVALID_ARGUMENT),
    ((BodyTooLarge,), 413, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ((ModelNotFound, VersionNotServed), 404, grpc.StatusCode.NOT_FOUND),
    ((RevisionRefused,), 409, grpc.StatusCode.FAILED_PRECONDITION),
    ((ModelNotReady, ServerNotReady, ServerNotLive, Unavailable), 503, grpc.StatusCode.UNAVAILABLE),
    ((NotImplementedError, UnsupportedProtocol), 404, grpc.StatusCode.UNIMPLEMENTED),
]


def classify(error: Exception) -> tuple[int, grpc.StatusCode, str]:
    """HTTP status, gRPC status and the text a caller may read."""
    for kinds, status, code in _STATUSES:
        if isinstance(error, kinds):
            return status, code, " ".join(str(error).split()) or "not supported"
    if isinstance(error, RequestValidationError):
        return 400, grpc.StatusCode.INVALID_ARGUMENT, _validation_problem(error)
    return 500, grpc.StatusCode.INTERNAL, INTERNAL


def is_open(path: str) -> bool:
    """Whether a path needs no token: it shows no more than whether server or model are up."""
    return path in ("/", "/v2/health/live", "/v2/health/ready") or (
        path.startswith("/v2/models/") and path.endswith("/ready")
    )


async def respond_error(error: Exception, send: Send) -> int:
    """Send the response that `classify` gives; returns its status."""
    status, _, text = classify(error)
    if status == 500:
        log.error("Request failed", exc_info=error)
    content = orjson.dumps({"error": text})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
    return status


def install(app: FastAPI) -> None:
    """Turn every exception of the app into the response that `classify` gives."""

    async def known_error(_: Request, error: Exception) -> JSONResponse:
        status, _code, text = classify(error)
        if status == 500:
            log.error("Request failed", exc_info=error)
        return JSONResponse({"error": text}, status)

    async def http_error(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):
            raise error
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    for kinds, _, _ in _STATUSES:
        for kind in kinds:
            app.add_exception_handler(kind, known_error)

    async def caller_left(_: Request, __: Exception) -> Response:
        return Response(status_code=400)  # which nobody reads

    app.add_exception_handler(ClientDisconnect, caller_left)
    app.add_exception_handler(RequestValidationError, known_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, known_error)


class BodyMiddleware:
    """ASGI middleware: limits the size of a body, and reads a body of any content type as JSON.

    `curl -d` sends a form's content type, for which KServe hands the raw bytes to the model (V1) or requires the length
    of a binary header (V2).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        length, content_type = headers.get("content-length", "0"), headers.get("content-type", "")
        if content_type.startswith("application/cloudevents-batch"):
            refusal = JSONResponse({"error": "content-type: send one CloudEvent, or plain JSON"}, 415)
            await refusal(scope, receive, send)
            return
        if not length.isdigit() or int(length) > MAX_BODY:
            await respond_error(BodyTooLarge(), send)
            return
        if "inference-header-content-length" not in headers and not content_type.startswith("application/cloudevents"):
            headers["content-type"] = "application/json"
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:
                raise BodyTooLarge
            return message

        await self._app(scope, bounded, send)


class GrpcInterceptor(grpc.aio.ServerInterceptor):
    """Checks the token of every call and turns exceptions into gRPC statuses."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        # grpc's stubs do not declare the attributes of a handler
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method, metadata = handler_call_details.method, dict(handler_call_details.invocation_metadata or ())
        is_open = method.endswith(("/ServerLive", "/ServerReady", "/ModelReady"))
        permitted = is_open or allowed(self._token, metadata.get("authorization"))

        async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
            if not permitted:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, REFUSAL)
            try:
                return await handler.unary_unary(request, context)
            except Exception as error:  # the boundary of the server
                _, code, text = classify(error)
                if code is grpc.StatusCode.INTERNAL:
                    log.error("%s failed", method, exc_info=error)
            await context.abort(code, text)

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )


def _validation_problem(error: RequestValidationError) -> str:
    """The first problem with the JSON body, without the alternatives FastAPI tried."""
    problems = [problem for problem in error.errors() if "bytes" not in problem["loc"]] or list(error.errors())
    first = problems[0]
    if first["type"] == "json_invalid":
        return f"body: is not JSON ({first.get('ctx', {}).get('error', 'cannot be parsed')})"
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "InferenceRequest"))
    return f"{where or 'body'}: {first['msg']}"
