"""Events of predictions as a model server makes them, and their CloudEvents forms."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import polars as pl

from throughline.events.cloudevent import EVENT_TYPE, encode
from throughline.events.schema import InferenceEvent, parse_line, to_line, to_rows

NOW = datetime(2013, 4, 1, 4, tzinfo=UTC)


def prediction(**changes: object) -> dict[str, Any]:
    """What a server gives its outbox for one prediction."""
    return {
        "id": uuid.uuid4(),
        "subject": "flight_delay",
        "time": NOW,
        "wall_time": datetime(2026, 1, 1, tzinfo=UTC),
        "model_name": "flight_delay",
        "model_version": 3,
        "revision": "v3-abc",
        "role": "stable",
        "row_key": "2013-04-01T13:00:00Z|B6|1018|JFK",
        "request": {"origin": "JFK", "tailnum": None},
        "features": {"hour": 9.0, "wind": None},
        "feature_times": {"weather": NOW, "aircraft": None},
        "flags": ["unknown_entity:aircraft"],
        "score": 0.25,
        "decision": "late",
        "latency_ms": 1.5,
        **changes,
    }


def event(sequence: int = 1, source: str = "urn:test:1", **changes: object) -> InferenceEvent:
    return InferenceEvent(**prediction(source=source, sequence=sequence, **changes))


def rows(events: Iterable[InferenceEvent]) -> pl.DataFrame:
    """Rows of the inference log, as the collector makes them."""
    return to_rows([parse_line(to_line(each))[1] for each in events])


def structured(sequence: int = 1, source: str = "urn:test:1", /, **changes: object) -> dict[str, Any]:
    """The event as JSON; `changes` by name, of attributes and data alike."""
    made = json.loads(encode(prediction(), source, sequence))
    for name, value in changes.items():
        (made if name in made and name != "data" else made["data"])[name] = value
    return made


def binary(cloud_event: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    """Headers and body of binary mode. Attributes are percent-encoded as the HTTP binding demands (3.1.3.2)."""
    attributes = {name: value for name, value in cloud_event.items() if name not in ("data", "datacontenttype")}
    kept = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
    headers = {f"ce-{name}": quote(str(value), safe=kept) for name, value in attributes.items()}
    assert headers["ce-type"] == EVENT_TYPE
    return headers | {"content-type": "application/json"}, json.dumps(cloud_event["data"]).encode()
