"""How a version that passed the gate reaches users."""

from __future__ import annotations

from typing import Literal

from throughline.usecase.base import Declared


class Release(Declared):
    """`manual`: what the gate lets through waits for one of the declaration's approvers."""

    strategy: Literal["direct"]
    policy: Literal["auto", "manual"] = "auto"
    submitter_may_approve: bool = False
