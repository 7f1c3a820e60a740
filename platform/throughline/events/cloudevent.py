"""The CloudEvent of one prediction as the server writes it: structured mode, one line of JSON.

Owns: the event's type, which fields are attributes, content types. Does not own: the typed record (`schema.py`).
It is part of the process that answers: it imports neither pydantic nor polars.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

EVENT_TYPE = "throughline.prediction.v1"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"

# Fields that are attributes of the CloudEvent; all others are its data.
ATTRIBUTES = ("id", "source", "subject", "time", "sequence")
_HEAD = frozenset(ATTRIBUTES)


def encode(event: Mapping[str, Any], source: str, sequence: int) -> bytes:
    """The fields of an `InferenceEvent` except source and sequence as a CloudEvent without line ends.

    Instants are written in UTC with `Z`, NaN and infinity as null. Raises `TypeError` for what JSON cannot hold: lone
    surrogates, integers beyond 64 bits, mappings with other keys than texts, unknown types.
    """
    return orjson.dumps(
        {
            "specversion": "1.0",
            "type": EVENT_TYPE,
            "datacontenttype": "application/json",
            "id": event["id"],
            "source": source,
            "subject": event["subject"],
            "time": event["time"],
            "sequence": str(sequence),  # CloudEvents integers have 32 bits
            "data": {name: value for name, value in event.items() if name not in _HEAD},
        },
        option=orjson.OPT_UTC_Z,
    )
