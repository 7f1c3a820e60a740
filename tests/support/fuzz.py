"""Requests that no client of ours sends: strategies from what a use case declares, and raw bytes on a connection.

Owns: making them and the rule for their answers. Does not own: the processes they are sent to.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Sequence
from typing import Any

import httpx
from hypothesis import strategies as st

from throughline.usecase import UseCase
from throughline.usecase.requests import example_instance

TIMEOUT_S = 20
NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64 - 1, 10**40]),
    st.floats(),  # NaN and infinities, too: Python's JSON writes them
)
# A lone surrogate is written as \ud800, which is JSON and no text.
TEXTS = st.one_of(
    st.text(st.characters(), max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Cf", "Zs", "Lu"]), max_size=5),
    st.sampled_from(
        ["", " ", "\0", "\ud800", "\u3000JFK", "JFK\u200d", "9999-12-31T23:59:59-23:59", "0001-01-01", "x" * 9000]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
_HEADERS = {
    "content-type": ["application/json", "application/octet-stream", "text/plain", "application/cloudevents+json", ";"],
    "inference-header-content-length": ["0", "5", "-1", "x", "99999999999999999999", "٣"],
    "x-throughline-traffic": ["production", "test", "shadow", "load_test", "other", ""],
    "x-throughline-revision": ["", "v1", "\xff"],
    "ce-specversion": ["1.0", "0.3", ""],
    "ce-id": ["1", "%E2%82%AC", "%", ""],
    "ce-source": ["s", "urn:test:1", "%ZZ"],
    "ce-type": ["t", "io.throughline.prediction"],
    "ce-subject": ["flight_delay", "x"],
    "ce-time": ["2013-04-01T04:00:00Z", "9999-12-31T23:59:59-23:59", "now"],
    "accept": ["*/*", "text/html", "application/json;q=2"],
}  # fmt: skip
HEADERS = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in _HEADERS.items()})


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """`content` with one to three of its parts replaced, removed or repeated, at any depth."""
    for _ in range(draw(st.integers(1, 3))):
        content = _changed_once(draw, content)
    return content


def _changed_once(draw: st.DrawFn, content: Any) -> Any:
    keys: Sequence[Any] = (
        list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    )
    if not keys or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    key, how = draw(st.sampled_from(keys)), draw(st.sampled_from(["deeper", "deeper", "remove", "add"]))
    made = dict(content) if isinstance(content, dict) else list(content)
    if how == "deeper":
        made[key] = _changed_once(draw, made[key])
    elif how == "remove":
        del made[key]
    elif isinstance(made, dict):
        made[draw(TEXTS)] = draw(JSON)
    else:
        made.insert(key, made[key])
    return made


def v1_body(usecase: UseCase) -> dict[str, Any]:
    return {"instances": [example_instance(usecase)]}


def v2_body(usecase: UseCase) -> dict[str, Any]:
    kinds = {"string": "BYTES", "timestamp": "BYTES", "integer": "INT64", "number": "FP64"}
    example = example_instance(usecase)
    return {
        "id": "1",
        "inputs": [
            {"name": name, "datatype": kinds[field.type], "shape": [1], "data": [example[name]]}
            for name, field in usecase.request.items()
        ],
        "outputs": [{"name": "score", "parameters": {"binary_data": False}}],
        "parameters": {"binary_data_output": False},
    }


def bodies(*good: Any) -> st.SearchStrategy[bytes]:
    """Bytes of a body: something like one of `good`, any JSON, or no JSON."""
    content = st.one_of(*(changed(one) for one in good), JSON)
    text = content.map(lambda value: json.dumps(value).encode())
    cut = st.tuples(text, st.integers(0, 40)).map(lambda pair: pair[0][: -pair[1] or None])
    return st.one_of(text, text, cut, st.binary(max_size=60))


def require_answer(answer: httpx.Response) -> None:
    """A success, or a refusal of the caller in one line; 503 for what cannot be done now, with its reason."""
    assert answer.status_code < 500 or answer.status_code == 503, (answer.request.url, answer.status_code, answer.text)
    if answer.is_error and answer.request.method != "HEAD":
        if answer.headers["content-type"].startswith("application/json"):
            content = answer.json()
            error = content["error"] if "error" in content else content["refused"][0]["error"]  # of a batch
        else:
            error = answer.text  # by the HTTP library, of what is no request
        assert isinstance(error, str)
        assert error
        assert "\n" not in error
        assert "Traceback" not in error


# Raw connections


def exchange(port: int, *parts: bytes, half_close: bool = False, pause_s: float = 0) -> bytes:
    """All that comes back on one connection after `parts` were sent; b"" when it was closed without a word."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            for part in parts:
                connection.sendall(part)
                if pause_s:
                    connection.settimeout(pause_s)
                    try:  # an early refusal ends it
                        received += connection.recv(1 << 16)
                        break
                    except TimeoutError:
                        connection.settimeout(TIMEOUT_S)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(1 << 16):
                received += more
        except ConnectionError:
            pass  # the server closed it while we were sending
    return received


def statuses(received: bytes) -> list[int]:
    """Of the responses in what came back, in order."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def post(path: str, body: bytes, *headers: str, length: int | None = None, close: bool = True) -> bytes:
    """A request as bytes; `length`: what it claims, where that is not the truth."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body) if length is None else length}",
        *(["Connection: close"] if close else []),
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
