"""The principal is a known user, or the call is refused."""

from __future__ import annotations

import getpass
import grp
import hashlib
import os
from pathlib import Path

import pytest

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.principal import Principal, current_principal, principal_named
from throughline.foundation.settings import Settings

TOKENS = {"ada": "ada's token", "bob": "bob's token"}


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def users(tmp_path: Path) -> Path:
    file = tmp_path / "users.toml"
    file.write_text(
        f'[ada]\ntoken_sha256 = "{digest(TOKENS["ada"])}"\ngroups = ["returns", "leads"]\n\n'
        f'[bob]\ntoken_sha256 = "{digest(TOKENS["bob"])}"\n'
    )
    return file


def reachable(home: Path, token: str) -> Settings:
    """A home that other machines can reach, in a process with a token."""
    return Settings(home=home, bind="0.0.0.0", token=token)


def test_on_loopback_the_principal_is_the_user_of_the_process_with_its_groups(tmp_path):
    me = current_principal(Settings(home=tmp_path))
    assert me.name == getpass.getuser()
    assert grp.getgrgid(os.getgid()).gr_name in me.groups
    assert principal_named(Settings(home=tmp_path), me.name) == me


def test_on_loopback_a_token_does_not_change_the_principal(tmp_path, users):
    assert current_principal(Settings(home=tmp_path, token=TOKENS["ada"])).name == getpass.getuser()


def test_beyond_loopback_the_principal_is_the_holder_of_the_token(tmp_path, users):
    assert current_principal(reachable(tmp_path, TOKENS["ada"])) == Principal("ada", frozenset({"returns", "leads"}))
    assert current_principal(reachable(tmp_path, TOKENS["bob"])) == Principal("bob")


@pytest.mark.parametrize("token", ["eve's token", digest(TOKENS["ada"])], ids=["unknown", "the digest itself"])
def test_an_unknown_token_is_refused_and_not_shown(tmp_path, users, token):
    with pytest.raises(ThroughlineError, match=r"No user in .*users\.toml has the token") as caught:
        current_principal(reachable(tmp_path, token))
    assert token not in str(caught.value)


def test_without_a_file_of_users_every_token_is_refused(tmp_path):
    with pytest.raises(ThroughlineError, match="No user in"):
        current_principal(reachable(tmp_path, "any"))


@pytest.mark.parametrize(
    "content",
    ["[ada", '[ada]\ntoken_sha256 = "short"\n', '[ada]\ngroups = ["returns"]\n', 'ada = "token"\n'],
    ids=["no TOML", "no digest", "no token", "no table"],
)
def test_with_an_unreadable_file_of_users_every_token_is_refused(tmp_path, content):
    (tmp_path / "users.toml").write_text(content)
    with pytest.raises(ThroughlineError, match=r"users\.toml cannot be read") as caught:
        current_principal(reachable(tmp_path, TOKENS["ada"]))
    assert "\n" not in str(caught.value)


def test_the_groups_of_a_user_are_read_at_each_call(tmp_path, users):
    settings = reachable(tmp_path, TOKENS["bob"])
    assert principal_named(settings, "ada").is_among(["leads"])
    users.write_text(users.read_text().replace('"returns", "leads"', '"returns"'))
    assert not principal_named(settings, "ada").is_among(["leads"])


def test_an_unknown_name_has_no_groups(tmp_path, users):
    assert principal_named(reachable(tmp_path, TOKENS["bob"]), "eve") == Principal("eve")
    assert principal_named(Settings(home=tmp_path), "no-such-user-here") == Principal("no-such-user-here")


def test_a_principal_is_among_approvers_by_name_or_by_group():
    ada = Principal("ada", frozenset({"returns"}))
    assert ada.is_among(["ada"])
    assert ada.is_among(["zoe", "returns"])
    assert not ada.is_among(["ad", "return"])
    assert not ada.is_among([])
