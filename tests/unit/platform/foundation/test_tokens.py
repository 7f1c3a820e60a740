"""A service that demands a token answers whoever shows it, and nobody else."""

from __future__ import annotations

import pytest

from throughline.foundation.security.tokens import allowed

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
    "Bearer \xff".encode("latin-1"),
]


@pytest.mark.parametrize("authorization", SHOWN)
def test_who_shows_the_token_is_answered(authorization):
    assert allowed(TOKEN, authorization)


@pytest.mark.parametrize("authorization", REFUSED)
def test_who_shows_anything_else_is_refused(authorization):
    assert not allowed(TOKEN, authorization)


@pytest.mark.parametrize("authorization", [*SHOWN, *REFUSED])
def test_without_a_demanded_token_everybody_is_answered(authorization):
    assert allowed(None, authorization)


def test_an_empty_token_is_not_shown_by_an_empty_header():
    assert not allowed("", None)
    assert not allowed("", "Basic ")


def test_the_comparison_takes_the_same_time_whatever_is_shown(monkeypatch):
    """By the standard library's own; its result alone decides."""
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append((one, other)) or True)
    assert allowed(TOKEN, "Bearer wrong")
    assert compared == [(b"wrong", TOKEN.encode())]
