"""The principal of a process: the operating-system user, or the holder of a token where other machines can call.

Owns: names and groups of principals. Does not own: what a principal may do (`registry/approval.py`).
"""

from __future__ import annotations

import grp
import hashlib
import hmac
import os
import pwd
import tomllib
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, is_loopback

GRAPH = "graph"  # the principal of sensors, schedules and the judge of a rollout
USERS_FILE = "users.toml"


@dataclass(frozen=True)
class Principal:
    name: str
    groups: frozenset[str] = frozenset()

    def is_among(self, names: list[str]) -> bool:
        """Whether its name or one of its groups is in `names`."""
        return self.name in names or not self.groups.isdisjoint(names)


class _User(BaseModel):
    model_config = ConfigDict(extra="forbid")
    token_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    groups: list[str] = []


def current_principal(settings: Settings) -> Principal:
    """The operating-system user; where other machines can call, the user whose token THROUGHLINE_TOKEN is.

    `users.toml` of the home has a table per user with `token_sha256` and `groups`. Raises when none has the token.
    """
    if is_loopback(settings.bind):
        return _of_this_machine(pwd.getpwuid(os.getuid()))
    shown = hashlib.sha256(settings.token.get_secret_value().encode()).hexdigest() if settings.token else ""
    for name, user in _users(settings).items():
        if hmac.compare_digest(user.token_sha256, shown):
            return Principal(name, frozenset(user.groups))
    users = settings.home / USERS_FILE
    raise ThroughlineError(f"No user in {users} has the token of this process: set THROUGHLINE_TOKEN to your own.")


def principal_named(settings: Settings, name: str) -> Principal:
    """The user of that name with its present groups; an unknown name has none."""
    if is_loopback(settings.bind):
        try:
            return _of_this_machine(pwd.getpwnam(name))
        except KeyError:
            return Principal(name)
    user = _users(settings).get(name)
    return Principal(name, frozenset(user.groups if user else ()))


def _of_this_machine(user: pwd.struct_passwd) -> Principal:
    groups = {entry.gr_name for entry in grp.getgrall() if user.pw_name in entry.gr_mem or entry.gr_gid == user.pw_gid}
    return Principal(user.pw_name, frozenset(groups))


def _users(settings: Settings) -> dict[str, _User]:
    path = settings.home / USERS_FILE
    try:
        return {name: _User.model_validate(user) for name, user in tomllib.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise ThroughlineError(f"{path} cannot be read ({str(error).splitlines()[0]}): correct it.") from error
