"""Prediction over REST without a web framework between the connection and the model.

Owns: `POST /v1/models/NAME:predict` and `POST /v2/models/NAME[/versions/VERSION]/infer`, as ASGI middleware in front of
KServe's application, which has all other paths: its generic endpoints cost more per request than the prediction. Also
the versions in V2 paths, which KServe does not have. CloudEvents as requests are left to KServe.
"""

from __future__ import annotations

import re
import time
from typing import Any

import orjson
from kserve.protocol.infer_type import InferRequest
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.metrics import Metrics
from serving.middleware import MAX_BODY, BodyTooLarge, respond_error
from serving.model import UseCaseModel
from serving.repository import Repository, known_model
from serving.workers import FROM_PEER, PEER_HEADER
from throughline.usecase.requests import BadRequest

_V1 = re.compile(r"/v1/models/([^/:]+):predict")
_V2 = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_VERSION = re.compile(r"(/v2/models/([^/]+))/versions/([^/]+)(/ready)?")
_JSON_LENGTH = "inference-header-content-length"
_CLOUDEVENTS = "application/cloudevents"
_JSON = (b"content-type", b"application/json")


class ModelRoutes:
    """ASGI middleware: answers predictions, resolves versions in paths, and passes everything else on."""

    def __init__(self, app: ASGIApp, repository: Repository, metrics: Metrics) -> None:
        self._app = app
        self._repository = repository
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if scope["method"] != "POST":
            if versioned := _VERSION.fullmatch(path):
                await self._versioned(versioned, scope, receive, send)
            else:
                await self._app(scope, receive, send)
            return
        v1 = _V1.fullmatch(path)
        matched = v1 or _V2.fullmatch(path)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if PEER_HEADER in headers:
            FROM_PEER.set(True)
        if not matched or "ce-specversion" in headers or headers.get("content-type", "").startswith(_CLOUDEVENTS):
            await self._app(scope, receive, send)
            return
        arrived = time.perf_counter()
        name, protocol = matched[1], "v1" if v1 else "v2"
        try:
            body = await _read(headers, receive)
            if body is None:
                return  # the caller went away
            model = known_model(self._repository, name)
            if v1:
                content, extra = orjson.dumps(await model.predict_v1(_parse(body), headers, arrived)), None
            else:
                content, extra = await _infer(model, body, headers, arrived, matched[2])
            status = 200
            await _respond(send, content, extra)
        except Exception as error:  # the boundary of a request
            status = await respond_error(error, send)
        if name in self._repository.usecases:
            self._metrics.requests[name, protocol, str(status)] += 1

    async def _versioned(self, path: re.Match[str], scope: Scope, receive: Receive, send: Send) -> None:
        """Metadata and readiness of a version: those of its use case, when it is served."""
        try:
            known_model(self._repository, path[2]).deployed.require_version(path[3])
        except Exception as error:  # the boundary of a request
            await respond_error(error, send)
            return
        plain = path[1] + (path[4] or "")
        await self._app({**scope, "path": plain, "raw_path": plain.encode()}, receive, send)


async def _infer(
    model: UseCaseModel, body: bytes, headers: dict[str, str], arrived: float, version: str | None
) -> tuple[bytes, int | None]:
    """The answer's body, and how much of it is JSON where tensors follow it."""
    length = headers.get(_JSON_LENGTH)
    if length is not None and not (length.isascii() and length.isdigit() and int(length) <= len(body)):
        raise BadRequest(_JSON_LENGTH, "is not the length of the JSON in the body")
    try:
        request = InferRequest.from_bytes(body, len(body) if length is None else int(length), model.name)
    # KServe decodes unchecked: KeyError, TypeError, struct.error and more, all caused by what was sent.
    except Exception as error:
        reason = str(error) if type(error).__module__.startswith("kserve") else type(error).__name__
        raise BadRequest("body", f"cannot be decoded ({reason[:200]})") from None
    answer, json_length = (await model.predict_v2(request, headers, arrived, version)).to_rest()
    content = answer if isinstance(answer, bytes) else orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return content, json_length


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest("body", f"is not JSON ({str(error)[:120]})") from None


async def _read(headers: dict[str, str], receive: Receive) -> bytes | None:
    """The body; None when the caller ends the connection before it is whole."""
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY:
        raise BodyTooLarge
    message = await receive()
    body = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise BodyTooLarge
    return None if message["type"] == "http.disconnect" else body


async def _respond(send: Send, content: bytes, json_length: int | None) -> None:
    headers = [_JSON, (b"content-length", str(len(content)).encode())]
    if json_length is not None:
        headers = [
            (b"content-type", b"application/octet-stream"),
            (_JSON_LENGTH.encode(), str(json_length).encode()),
            headers[1],
        ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
