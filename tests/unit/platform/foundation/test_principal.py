"""Whoever asks is somebody in particular, or nobody and refused."""

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
    """A home that other machines can reach, asked by the holder of a token."""
    return Settings(home=home, bind="0.0.0.0", token=token)


def test_on_ones_own_machine_it_is_the_user_of_the_process_with_the_groups(tmp_path):
    me = current_principal(Settings(home=tmp_path))
    assert me.name == getpass.getuser()
    assert grp.getgrgid(os.getgid()).gr_name in me.groups
    assert principal_named(Settings(home=tmp_path), me.name) == me


def test_a_token_on_ones_own_machine_makes_nobody_else_of_you(tmp_path, users):
    assert current_principal(Settings(home=tmp_path, token=TOKENS["ada"])).name == getpass.getuser()


def test_where_others_reach_the_home_it_is_the_holder_of_the_token(tmp_path, users):
    assert current_principal(reachable(tmp_path, TOKENS["ada"])) == Principal("ada", frozenset({"returns", "leads"}))
    assert current_principal(reachable(tmp_path, TOKENS["bob"])) == Principal("bob")


@pytest.mark.parametrize("token", ["eve's token", digest(TOKENS["ada"])], ids=["unknown", "the digest itself"])
def test_the_token_of_nobody_is_refused_without_being_told(tmp_path, users, token):
    with pytest.raises(ThroughlineError, match=r"No user in .*users\.toml has the token") as caught:
        current_principal(reachable(tmp_path, token))
    assert token not in str(caught.value)


def test_without_a_list_of_users_everybody_is_nobody(tmp_path):
    with pytest.raises(ThroughlineError, match="No user in"):
        current_principal(reachable(tmp_path, "any"))


@pytest.mark.parametrize(
    "content",
    ["[ada", '[ada]\ntoken_sha256 = "short"\n', '[ada]\ngroups = ["returns"]\n', 'ada = "token"\n'],
    ids=["no TOML", "no digest", "no token", "no table"],
)
def test_a_list_of_users_that_cannot_be_read_lets_nobody_in(tmp_path, content):
    (tmp_path / "users.toml").write_text(content)
    with pytest.raises(ThroughlineError, match=r"users\.toml cannot be read") as caught:
        current_principal(reachable(tmp_path, TOKENS["ada"]))
    assert "\n" not in str(caught.value)


def test_groups_of_a_user_are_those_of_today(tmp_path, users):
    settings = reachable(tmp_path, TOKENS["bob"])
    assert principal_named(settings, "ada").is_among(["leads"])
    users.write_text(users.read_text().replace('"returns", "leads"', '"returns"'))
    assert not principal_named(settings, "ada").is_among(["leads"])


def test_a_name_that_nobody_has_is_in_no_group(tmp_path, users):
    assert principal_named(reachable(tmp_path, TOKENS["bob"]), "eve") == Principal("eve")
    assert principal_named(Settings(home=tmp_path), "no-such-user-here") == Principal("no-such-user-here")


def test_one_is_among_approvers_by_name_or_by_group():
    ada = Principal("ada", frozenset({"returns"}))
    assert ada.is_among(["ada"])
    assert ada.is_among(["zoe", "returns"])
    assert not ada.is_among(["ad", "return"])
    assert not ada.is_among([])
