"""Whatever is sent to model server and collector: no 500, no crash, and good requests beside it are answered."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import fuzz
from tests.support.events import prediction
from tests.support.load import home_under_load
from throughline.foundation.settings import Settings
from throughline.usecase import get_usecase

pytestmark = pytest.mark.e2e

NAME = "flight_delay"
USECASE = get_usecase(NAME)
V1, V2 = f"/v1/models/{NAME}:predict", f"/v2/models/{NAME}/infer"
GOOD = json.dumps(fuzz.v1_body(USECASE)).encode()
EVENT = json.loads(json.dumps(prediction() | {"source": "urn:test:1", "sequence": 1}, default=str))
STRUCTURED = {
    "specversion": "1.0",
    "type": "io.throughline.prediction",
    "source": "urn:test:1",
    "subject": NAME,
    "id": "b5c0c5b2-6d1a-4b0e-9b8e-000000000001",
    "time": "2013-04-01T04:00:00Z",
    "sequence": 1,
    "data": {key: value for key, value in EVENT.items() if key not in ("id", "subject", "time", "source", "sequence")},
}

# Every route there is; {} is a name, also one that nobody has. The served model is not unloaded.
ROUTES = {
    "model_http": [
        ("GET", "/"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/v1/models"), ("GET", "/v1/models/{}"),
        ("POST", "/v1/models/{}:predict"), ("POST", "/v1/models/{}:explain"), ("GET", "/v2"), ("GET", "/v2/models"),
        ("GET", "/v2/health/live"), ("GET", "/v2/health/ready"), ("GET", "/v2/models/{}"),
        ("GET", "/v2/models/{}/ready"), ("GET", "/v2/models/{}/versions/{}"),
        ("GET", "/v2/models/{}/versions/{}/ready"), ("POST", "/v2/models/{}/infer"),
        ("POST", "/v2/models/{}/versions/{}/infer"), ("POST", "/v2/repository/models/{}/load"),
        ("POST", "/v2/repository/index"), ("GET", "/v1/throughline/revisions"), ("GET", "/v1/throughline/refusals"),
    ],
    "collector": [
        ("POST", "/"), ("POST", "/flush"), ("GET", "/status"), ("GET", "/health"), ("GET", "/metrics"),
        ("POST", "/v1/feedback/{}"), ("POST", "/v1/sources/{}/{}"), ("POST", "/v1/sources/{}/{}/flush"),
    ],
}  # fmt: skip
NAMES = st.one_of(
    st.just(NAME), st.sampled_from(["", "..", "%", "1", "flights", "x" * 3000, "ü", "\0"]), st.text(max_size=8)
)
# quick by default; `make drill` sends many more
MANY = [150, pytest.param(2000, marks=pytest.mark.drill(minutes=1))]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Settings]:
    with home_under_load(tmp_path_factory.mktemp("home")) as settings:
        yield settings


@pytest.fixture
def served(home: Settings) -> Iterator[Settings]:
    """Afterwards both processes answer, and nothing unexpected was logged meanwhile."""
    logs = {name: home.home / f"{name}.log" for name in ("model-server", "collector")}
    before = {name: path.stat().st_size for name, path in logs.items()}
    yield home
    assert httpx.post(home.url("model_http") + V1, content=GOOD).status_code == 200
    assert httpx.get(home.url("collector") + "/health").status_code == 200
    assert httpx.post(home.url("collector") + "/flush", timeout=30).json()["failed"] == {}
    for name, path in logs.items():
        logged = path.read_bytes()[before[name] :].decode(errors="replace")
        assert "Traceback" not in logged, logged[-3000:]


def send_many(
    home: Settings, examples: int, service: str, requests: st.SearchStrategy[tuple[str, str, bytes, dict]]
) -> None:
    """Each a method, path, body and headers."""
    afresh = httpx.Limits(max_keepalive_connections=0)  # a kept connection may be closed just when it is used
    with httpx.Client(base_url=home.url(service), timeout=30, limits=afresh) as client:

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(requests)
        def sent(request: tuple[str, str, bytes, dict]) -> None:
            method, path, body, headers = request
            raw = {name.encode(): value.encode("utf-8", "replace") for name, value in headers.items()}
            fuzz.require_answer(client.request(method, path, content=body, headers=raw))

        sent()


@pytest.mark.parametrize("examples", MANY)
@pytest.mark.parametrize(("path", "good"), [(V1, fuzz.v1_body(USECASE)), (V2, fuzz.v2_body(USECASE))], ids=["v1", "v2"])
def test_no_prediction_request_is_answered_with_a_500(served: Settings, path: str, good: Any, examples: int) -> None:
    requests = st.tuples(st.just("POST"), st.just(path), fuzz.bodies(good), fuzz.HEADERS)
    send_many(served, examples, "model_http", requests)


@pytest.mark.parametrize("examples", MANY)
@pytest.mark.parametrize("service", ROUTES)
def test_no_route_answers_with_a_500_whatever_the_names_bodies_and_headers(
    served: Settings, service: str, examples: int
) -> None:
    good = [fuzz.v1_body(USECASE), fuzz.v2_body(USECASE), STRUCTURED, [STRUCTURED]]
    methods = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW"])
    paths = st.sampled_from(ROUTES[service]).flatmap(
        lambda route: st.tuples(
            st.one_of(st.just(route[0]), st.just(route[0]), methods),
            st.tuples(NAMES, NAMES).map(lambda names: route[1].format(*(quote(name, safe="") for name in names))),
        )
    )
    requests = st.tuples(paths, fuzz.bodies(*good), fuzz.HEADERS).map(lambda parts: (*parts[0], *parts[1:]))
    send_many(served, examples, service, requests)


@pytest.mark.parametrize("examples", MANY)
def test_no_event_is_answered_with_a_500_and_none_stops_the_log(served: Settings, examples: int) -> None:
    binary = {f"ce-{name}": value for name, value in STRUCTURED.items() if name != "data"} | {"ce-sequence": "1"}
    kinds = {
        "application/json": (STRUCTURED["data"], {name: str(value) for name, value in binary.items()}),
        "application/cloudevents+json": (STRUCTURED, {}),
        "application/cloudevents-batch+json": ([STRUCTURED, STRUCTURED], {}),
    }
    requests = st.sampled_from(sorted(kinds)).flatmap(
        lambda kind: st.tuples(
            st.just("POST"),
            st.just("/"),
            fuzz.bodies(kinds[kind][0]),
            fuzz.HEADERS.map(lambda more: {**more, **kinds[kind][1], "content-type": kind}),
        )
    )
    send_many(served, examples, "collector", requests)
    status = httpx.get(served.url("collector") + "/status").json()
    assert status["failure"] is None if "failure" in status else status["problems"] == []


# Raw connections: each case is what is sent, and the statuses that may come back; none: closed without a word.

REFUSED = {400, 404, 405, 413, 414, 415, 421, 422, 431, 501}
Case = Callable[[str], tuple[list[bytes], set[int]]]
CASES: dict[str, Case] = {
    "a body that claims to be too long": lambda path: ([fuzz.post(path, b"{}", length=1 << 40)], REFUSED),
    "a body that is too long": lambda path: ([fuzz.post(path, b" " * (9 << 20))], REFUSED),
    "a chunked body that is too long": lambda path: (
        [_chunked(path), *([b"100000\r\n" + b" " * (1 << 20) + b"\r\n"] * 10), b"0\r\n\r\n"],
        REFUSED,
    ),
    "deep nesting": lambda path: ([fuzz.post(path, b"[" * 200_000)], REFUSED),
    "deep nesting that is closed": lambda path: ([fuzz.post(path, b"[" * 50_000 + b"]" * 50_000)], REFUSED),
    "numbers that are none": lambda path: ([fuzz.post(path, b'{"instances": [NaN, Infinity, 1e999]}')], REFUSED),
    "no JSON": lambda path: ([fuzz.post(path, b"\xff\xfe\0")], REFUSED),
    "two lengths": lambda path: ([fuzz.post(path, b"{}", "Content-Length: 5")], REFUSED),
    "a length and chunks": lambda path: ([fuzz.post(path, b"0\r\n\r\n", "Transfer-Encoding: chunked")], REFUSED),
    "a negative length": lambda path: ([fuzz.post(path, b"{}", length=-1)], REFUSED),
    "a chunk whose size is no number": lambda path: ([_chunked(path), b"xyz\r\n"], REFUSED),
    "no host": lambda path: ([f"POST {path} HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode()], REFUSED),
    "a foreign host": lambda path: ([f"GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode()], REFUSED),
    "an absolute address": lambda path: (
        [f"GET http://evil.example{path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode()],
        REFUSED,
    ),
    "a header without end": lambda path: (
        [f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ".encode() + b"x" * (1 << 20)],
        REFUSED,
    ),
    "a thousand headers": lambda path: ([fuzz.post(path, b"{}", *(f"X-{n}: {n}" for n in range(1000)))], REFUSED),
    "control characters in a header": lambda path: ([fuzz.post(path, b"{}", "X: a\0b\x01")], REFUSED),
    "no HTTP": lambda path: ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], REFUSED),
    "HTTP/2": lambda path: ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], REFUSED),
    "a request line of nothing": lambda path: ([b"\r\n\r\n\r\n"], REFUSED),
    "half a request, then silence": lambda path: ([fuzz.post(path, b'{"instances":', length=5000)], REFUSED),
}


def _chunked(path: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", "Transfer-Encoding: chunked"]
    return ("\r\n".join(lines) + "\r\nConnection: close\r\n\r\n").encode()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("service", "path"),
    [("model_http", V1), ("model_http", V2), ("model_http", f"/v1/models/{NAME}:explain"), ("collector", "/")],
)
def test_a_broken_request_is_refused_or_closed_and_harms_nobody(
    served: Settings, service: str, path: str, case: str
) -> None:
    parts, allowed = CASES[case](path)
    received = fuzz.statuses(fuzz.exchange(served.port(service), *parts, half_close=True))
    assert set(received) <= allowed, received


def test_requests_in_one_piece_are_answered_in_order(served: Settings) -> None:
    good, bad = fuzz.post(V1, GOOD, close=False), fuzz.post(V1, b"{}", close=False)
    received = fuzz.exchange(served.port("model_http"), good + bad + good + bad + fuzz.post(V2, b"[]"))
    assert fuzz.statuses(received) == [200, 400, 200, 400, 400]


def test_a_caller_that_closes_its_half_gets_all_its_answers(served: Settings) -> None:
    one = fuzz.post(V1, GOOD, close=False)
    for _ in range(30):
        for requests in (1, 3):
            received = fuzz.exchange(served.port("model_http"), one * requests, half_close=True)
            assert fuzz.statuses(received) == [200] * requests
        received = fuzz.exchange(served.port("collector"), b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n", half_close=True)
        assert fuzz.statuses(received) == [421]


def test_callers_that_send_a_byte_at_a_time_or_go_away_do_not_hold_up_others(served: Settings) -> None:
    request = fuzz.post(V1, GOOD)
    slow = []
    try:
        for place in range(60):
            connection = socket.create_connection(("127.0.0.1", served.port("model_http")), timeout=20)
            connection.sendall(request[: 1 + place])
            slow.append(connection)
        with httpx.Client(base_url=served.url("model_http")) as client:
            for _ in range(20):
                assert client.post(V1, content=GOOD).status_code == 200
        for connection in slow[30:]:
            connection.close()
        for place, connection in enumerate(slow[:30]):  # the others go on, byte by byte
            for byte in request[1 + place : 40]:
                connection.sendall(bytes([byte]))
            connection.sendall(request[max(40, 1 + place) :])
        assert [fuzz.statuses(connection.recv(1 << 16)) for connection in slow[:30]] == [[200]] * 30
    finally:
        for connection in slow:
            connection.close()


def test_callers_that_leave_in_the_middle_are_forgotten(served: Settings) -> None:
    with httpx.Client(base_url=served.url("model_http")) as client:
        for place in range(40):
            with socket.create_connection(("127.0.0.1", served.port("model_http")), timeout=20) as connection:
                connection.sendall(fuzz.post(V1, GOOD)[: 100 + 5 * place])
            assert client.post(V1, content=GOOD).status_code == 200
    until = time.monotonic() + 20
    while _open_requests(served) > 0:
        assert time.monotonic() < until
        time.sleep(0.1)


def _open_requests(home: Settings) -> int:
    """Connections to the model server that are not listening and not ours in this moment."""
    import psutil

    port = home.port("model_http")
    return sum(1 for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status in ("CLOSE_WAIT",))
