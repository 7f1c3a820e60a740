"""A service refuses requests of foreign hosts, origins and homes, and its clients recognise their own home."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of, headers_of
from throughline.foundation.security.guard import Guard, host_name
from throughline.foundation.security.home import FILE, HEADER, home_id
from throughline.foundation.settings import DEFAULT_PORTS, Settings, is_loopback

OWN = ["127.0.0.1:8080", "127.0.0.1", "localhost:8080", "LOCALHOST", "localhost.:8080", "127.8.8.8:1", "[::1]:8080"]
FOREIGN = [
    "evil.example",
    "evil.example:8080",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil-localhost",
    "0.0.0.0:8080",
    "192.168.1.7:8080",
    "[fe80::1]:8080",
    "127.0.0.1@evil.example",
    "127.0.0.1:8080@evil.example",
    "evil.example/127.0.0.1",
    "127.0.0.1 evil.example",
    "",
    ":8080",
    "127.1",
    "0x7f000001",
]
CROSS_SITE = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}


class Service:
    """What reaches the application behind a guard, and what a caller gets."""

    def __init__(self, home: Path, bind: str = "127.0.0.1", **values: Any) -> None:
        self.settings = Settings(home=home, bind=bind, **values)
        self.reached: list[str] = []
        self.guard = Guard(self._app, self.settings, "model server", bind, 8080)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append(scope["type"])
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
            await send({"type": "http.response.body", "body": b"{}"})

    def call(self, *headers: tuple[str, str], kind: str = "http") -> tuple[int | None, dict[str, str], str]:
        """Status, headers, and the line of a refusal; None: nothing was sent."""
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request"}

        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        scope = {"type": kind, "method": "POST", "path": "/v2/repository/models/m/unload", "headers": raw}
        asyncio.run(self.guard(scope, receive, send))
        if not sent or sent[0]["type"] != "http.response.start":
            return None, {}, sent[0].get("reason", "") if sent else ""
        given = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], given, json.loads(sent[1]["body"]).get("error", "")


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


@pytest.mark.parametrize("host", OWN)
def test_a_request_for_this_machine_is_served_and_names_the_home(service: Service, host: str) -> None:
    for _ in range(2):  # a repeated header is judged once
        status, headers, _ = service.call(("host", host))
        assert (status, headers) == (200, {"a": "b", HEADER.lower(): f"{home_id(service.settings)} model server"})
    assert service.reached == ["http", "http"]


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_host_is_refused_in_one_line(service: Service, host: str) -> None:
    for _ in range(2):
        status, _, line = service.call(("host", host))
        assert status in (400, 421)
        assert line.startswith("Host: ")
        assert "\n" not in line
    assert service.reached == []


def test_a_request_without_a_host_or_with_two_is_refused(service: Service) -> None:
    for headers in (
        [],
        [("host", "localhost"), ("host", "localhost")],
        [("host", "localhost"), ("host", "evil.example")],
    ):
        assert service.call(*headers)[0] == 400
    assert service.reached == []


@given(st.text(st.characters(max_codepoint=255), max_size=30))
def test_only_a_loopback_name_passes_for_one(tmp_path_factory: pytest.TempPathFactory, host: str) -> None:
    service = Service(tmp_path_factory.getbasetemp())
    status, _, _ = service.call(("host", host))
    name = host_name(host.lower())
    assert (status == 200) == (name is not None and is_loopback(name))


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://evil.example:8080",
        "null",
        "",
        "http://localhost:8081",
        "http://127.0.0.1:8080.evil.example",
        "http://127.0.0.1:8080@evil.example",
        "file://127.0.0.1:8080",
        "http://[",
        "127.0.0.1:8080",
    ],
)
def test_a_foreign_origin_is_refused_in_one_line(service: Service, origin: str) -> None:
    status, _, line = service.call(("host", "127.0.0.1:8080"), ("origin", origin))
    assert (status, line.startswith("Origin: "), "\n" in line) == (403, True, False)
    assert service.reached == []


def test_the_pages_of_the_service_itself_may_send_requests(service: Service) -> None:
    for host in ("127.0.0.1:8080", "localhost:5555"):
        assert service.call(("host", host), ("origin", f"http://{host}"), ("sec-fetch-site", "same-origin"))[0] == 200


def test_a_get_that_a_foreign_page_makes_without_an_origin_is_refused(service: Service) -> None:
    """As by `<img src>`: Dagster executes the mutation in its query."""
    for site in ("cross-site", "same-site"):
        status, _, line = service.call(("host", "localhost"), *(CROSS_SITE | {"sec-fetch-site": site}).items())
        assert (status, line.startswith("Sec-Fetch-Site: ")) == (403, True)
    assert service.reached == []
    in_frame = CROSS_SITE | {"sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
    assert service.call(("host", "localhost"), *in_frame.items())[0] == 403


def test_a_link_on_a_foreign_page_and_an_address_that_was_typed_open_a_page(service: Service) -> None:
    link = CROSS_SITE | {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    typed = link | {"sec-fetch-site": "none"}
    for headers in (link, typed):
        assert service.call(("host", "localhost"), *headers.items())[0] == 200


def test_a_websocket_of_a_foreign_page_is_closed_before_it_is_open(service: Service) -> None:
    status, _, reason = service.call(("host", "localhost"), ("origin", "http://evil.example"), kind="websocket")
    assert (status, reason.startswith("Origin: ")) == (None, True)
    assert service.reached == []
    service.call(("host", "localhost"), ("origin", "http://localhost"), kind="websocket")
    service.call(kind="lifespan")
    assert service.reached == ["websocket", "lifespan"]


def test_hosts_of_the_setting_are_own_ones(tmp_path: Path) -> None:
    service = Service(tmp_path, hosts="ML.example.com, two.example.com")
    assert service.call(("host", "two.example.com:443"), ("origin", "https://ml.example.com"))[0] == 200
    assert service.call(("host", "three.example.com"))[0] == 421
    assert service.call(("host", "ml.example.com"), ("origin", "https://evil.example"))[0] == 403
    assert service.call(("host", "localhost"))[0] == 200


def test_beyond_loopback_the_token_protects_and_any_host_is_served_unless_hosts_are_set(tmp_path: Path) -> None:
    reachable = {"bind": "0.0.0.0", "token": "t"}
    assert Service(tmp_path, **reachable).call(("host", "serving.ml.svc:8080"))[0] == 200
    assert Service(tmp_path, **reachable).call(("host", "x"), ("origin", "http://evil.example"))[0] == 403
    assert Service(tmp_path, **reachable, hosts="ml.example.com").call(("host", "serving.ml.svc:8080"))[0] == 421


def test_a_request_for_another_home_is_refused_before_it_does_anything(tmp_path: Path) -> None:
    mine, other = Service(tmp_path / "mine"), Settings(home=tmp_path / "other")
    status, headers, line = mine.call(("host", "localhost"), *_lower(headers_of(other, "model_http")).items())
    assert (status, mine.reached) == (421, [])
    assert headers[HEADER.lower()].startswith(home_id(mine.settings))
    assert line == (
        f"Port 8080 is answered by the model server of another home (id {home_id(mine.settings)[:8]}): stop that one, "
        "or set THROUGHLINE_PORT_BASE to free ports."
    )
    assert mine.call(("host", "localhost"), *_lower(headers_of(mine.settings, "model_http")).items())[0] == 200


def _lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


# The id


def test_a_home_has_one_id_for_ever_and_another_home_another(tmp_path: Path) -> None:
    one, two = Settings(home=tmp_path / "new" / "one"), Settings(home=tmp_path / "two")
    with ThreadPoolExecutor(8) as pool:
        (first,) = set(pool.map(home_id, [one] * 40))
    assert home_id(one) == first != home_id(two)
    assert str(tmp_path) not in first
    one.home.rename(tmp_path / "moved")
    assert home_id(Settings(home=tmp_path / "moved")) == first
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == [FILE, "locks"]


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe", b"../../etc", b"A" * 32])
def test_a_damaged_id_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ThroughlineError, match=FILE) as refused:
        home_id(Settings(home=tmp_path))
    assert "\n" not in str(refused.value)


# Clients


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    """Starts a server with these headers in its answers; returns settings whose MLflow it is."""
    started: list[ThreadingHTTPServer] = []

    def start(**headers: str) -> Settings:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(server)
        base = server.server_port - list(DEFAULT_PORTS).index("mlflow")
        return Settings(home=tmp_path / "mine", port_base=base)

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def _get(settings: Settings) -> httpx.Response:
    with client_of(settings, "mlflow", 5) as client:
        return client.get("/health")


def test_an_answer_of_the_own_home_is_accepted(answering, tmp_path: Path) -> None:
    settings = answering(x_throughline_home=f"{home_id(Settings(home=tmp_path / 'mine'))} MLflow")
    assert _get(settings).status_code == 200


def test_an_answer_of_another_home_is_one_clear_line(answering) -> None:
    settings = answering(x_throughline_home="0123456789abcdef0123456789abcdef MLflow")
    with pytest.raises(ThroughlineError) as refused:
        _get(settings)
    port = settings.port("mlflow")
    assert str(refused.value).startswith(f"Port {port} is answered by the MLflow of another home (id 01234567): ")


def test_an_answer_of_any_other_program_is_one_clear_line(answering) -> None:
    with pytest.raises(ThroughlineError, match=r"answered by a program that is no service of this home \(HTTP 200\)"):
        _get(answering())


def test_a_collector_elsewhere_is_of_no_home_of_this_machine(tmp_path: Path) -> None:
    elsewhere = Settings(home=tmp_path, collector_url="https://events.example.com", token="t")
    assert headers_of(elsewhere, "collector") == {"Authorization": "Bearer t"}
    assert headers_of(elsewhere, "model_http") == {"Authorization": "Bearer t", HEADER: home_id(elsewhere)}
