"""Reads CloudEvents 1.0 from HTTP requests: binary, structured and batched mode.

Owns: the three modes, decoding of attributes in headers. Does not own: the record (`schema.py`), HTTP (`collector.py`),
how our server writes events (`cloudevent.py`).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from pydantic import ValidationError

from throughline.events.cloudevent import ATTRIBUTES, BATCH, EVENT_TYPE, STRUCTURED
from throughline.events.schema import BadEvent, InferenceEvent
from throughline.foundation.errors import first_problem

_MODES = f"binary mode (ce-* headers), {STRUCTURED} or {BATCH}"


def is_batch(headers: Mapping[str, str]) -> bool:
    return _media_type(headers) == BATCH


def parse_batch(body: bytes) -> list[InferenceEvent | BadEvent]:
    """The events of a batch in order, and for each that cannot be accepted the reason. Raises `BadEvent` when the body
    is no batch at all."""
    events = _json(body, "body")
    if not isinstance(events, list):
        raise BadEvent("body: must be a JSON array of events")
    return [_event_or_reason(each) for each in events]


def parse_one(headers: Mapping[str, str], body: bytes) -> InferenceEvent:
    """The event of a request in binary or structured mode. Raises `BadEvent` naming what is wrong."""
    if _media_type(headers) == STRUCTURED:
        return _from_structured(_json(body, "body"))
    if "ce-specversion" not in headers:
        raise BadEvent(f"ce-specversion: missing; send a CloudEvent in {_MODES}")
    given = {name: headers[f"ce-{name}"] for name in ("specversion", "type", *ATTRIBUTES) if f"ce-{name}" in headers}
    return _event({name: _decoded(name, value) for name, value in given.items()}, _json(body, "data"), "ce-")


def _event_or_reason(event: Any) -> InferenceEvent | BadEvent:
    try:
        return _from_structured(event)
    except BadEvent as refused:
        given = event.get("id") if isinstance(event, dict) else None
        return BadEvent(str(refused), given[:200] if isinstance(given, str) else None)


def _from_structured(event: Any) -> InferenceEvent:
    if not isinstance(event, dict):
        raise BadEvent("event: must be a JSON object")
    data = event.get("data")
    if "data_base64" in event:
        try:
            data = _json(base64.b64decode(event["data_base64"], validate=True), "data_base64")
        except (ValueError, TypeError):
            raise BadEvent("data_base64: not base64") from None
    return _event(event, data, "")


def _event(attributes: Mapping[str, Any], data: Any, prefix: str) -> InferenceEvent:
    if attributes.get("specversion") != "1.0":
        raise BadEvent(f"{prefix}specversion: must be 1.0")
    if attributes.get("type") != EVENT_TYPE:
        raise BadEvent(f"{prefix}type: {ascii(attributes.get('type'))[:80]} is not accepted, only {EVENT_TYPE}")
    if not isinstance(data, dict):
        raise BadEvent("data: must be a JSON object")
    try:
        return InferenceEvent.model_validate(
            {**data, **{name: attributes[name] for name in ATTRIBUTES if name in attributes}}
        )
    except ValidationError as error:
        raise BadEvent(": ".join(first_problem(error))) from None


def _json(content: bytes, what: str) -> Any:
    """JSON as the standard has it: no NaN, no infinity, no lone surrogates, no endless nesting."""
    try:
        return orjson.loads(content)
    except ValueError as error:
        raise BadEvent(f"{what}: not JSON ({str(error)[:120]})") from None


def _decoded(name: str, value: str) -> str:
    """A header as the HTTP binding has it (3.1.3.2): quotes and backslashes removed, then percent-decoded once."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote_to_bytes(value.encode("latin-1")).decode()
    except UnicodeError:
        raise BadEvent(f"ce-{name}: not percent-encoded UTF-8") from None


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()
