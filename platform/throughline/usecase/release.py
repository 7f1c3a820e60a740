"""How a version that passed the gate reaches users."""

from __future__ import annotations

from typing import Literal

from throughline.usecase.base import Declared


class Release(Declared):
    """`manual`: a version that passed the gate waits for one of the declared approvers."""

    strategy: Literal["direct"]
    policy: Literal["auto", "manual"] = "auto"
    submitter_may_approve: bool = False
