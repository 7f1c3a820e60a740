"""A service that demands a token refuses calls without it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from throughline.foundation.security.tokens import REFUSAL, BearerToken, allowed, auth_headers, demanded_token
from throughline.foundation.settings import load_settings

TOKEN = "s3cret-töken"
SHOWN = [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {TOKEN} ", f"Bearer {TOKEN}".encode()]
REFUSED = [
    None,
    "",
    "Bearer",
    "Bearer ",
    TOKEN,
    f"Basic {TOKEN}",
    f"Bearer {TOKEN[:-1]}",
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN.upper()}",
    f"Bearer x{TOKEN}",
    f"Bearer x {TOKEN}",
    f"{TOKEN} Bearer",
    "Bearer \xff".encode("latin-1"),
]


@pytest.mark.parametrize("authorization", SHOWN)
def test_a_call_with_the_token_is_allowed(authorization):
    assert allowed(TOKEN, authorization)


@pytest.mark.parametrize("authorization", REFUSED)
def test_a_call_with_anything_else_is_refused(authorization):
    assert not allowed(TOKEN, authorization)


@pytest.mark.parametrize("authorization", [*SHOWN, *REFUSED])
def test_without_a_demanded_token_every_call_is_allowed(authorization):
    assert allowed(None, authorization)


def test_an_empty_header_is_not_an_empty_token():
    assert not allowed("", None)
    assert not allowed("", "Basic ")


def test_the_token_is_compared_in_constant_time(monkeypatch):
    """By the standard library's comparison, whose result decides."""
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append((one, other)) or True)
    assert allowed(TOKEN, "Bearer wrong")
    assert compared == [(b"wrong", TOKEN.encode())]


def test_a_token_is_demanded_only_where_other_machines_can_call(tmp_path: Path) -> None:
    assert demanded_token(load_settings(home=tmp_path, bind="0.0.0.0", token=TOKEN)) == TOKEN
    assert demanded_token(load_settings(home=tmp_path, bind="127.0.0.1", token=TOKEN)) is None
    assert demanded_token(load_settings(home=tmp_path, bind="127.0.0.1")) is None


def test_clients_send_the_token_of_their_home_if_it_has_one(tmp_path: Path) -> None:
    assert auth_headers(load_settings(home=tmp_path, token=TOKEN)) == {"Authorization": f"Bearer {TOKEN}"}
    assert auth_headers(load_settings(home=tmp_path)) == {}


def call(
    token: str | None, path: str, *headers: tuple[bytes, bytes], kind: str = "http"
) -> tuple[list[Any], list[dict]]:
    """What reached the application behind the middleware, and what was sent back."""
    reached: list[Any] = []
    sent: list[dict] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append((scope["path"], receive, send))

    async def receive() -> dict:
        return {}

    async def send(message: dict) -> None:
        sent.append(message)

    middleware = BearerToken(app, token, lambda path: path == "/health")
    asyncio.run(middleware({"type": kind, "path": path, "headers": list(headers)}, receive, send))
    assert all(one == (path, receive, send) for one in reached)
    return reached, sent


def test_a_call_without_the_token_is_refused_with_401_and_how_to_send_it() -> None:
    for headers in ([], [(b"authorization", b"Bearer other")], [(b"x-authorization", f"Bearer {TOKEN}".encode())]):
        reached, (start, body) = call(TOKEN, "/predict", *headers)
        assert reached == []
        assert start["status"] == 401
        assert (b"www-authenticate", b"Bearer") in start["headers"]
        assert json.loads(body["body"]) == {"error": REFUSAL}


@pytest.mark.parametrize(
    ("token", "path", "kind", "header"),
    [
        (TOKEN, "/predict", "http", f"Bearer {TOKEN}"),
        (TOKEN, "/health", "http", ""),
        (None, "/predict", "http", ""),
        (TOKEN, "/predict", "lifespan", ""),
    ],
)
def test_a_call_with_the_token_or_one_that_needs_none_reaches_the_application(
    token: str | None, path: str, kind: str, header: str
) -> None:
    reached, sent = call(token, path, (b"host", b"x"), (b"authorization", header.encode()), kind=kind)
    assert len(reached) == 1
    assert sent == []
