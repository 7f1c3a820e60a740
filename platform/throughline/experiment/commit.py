"""The code's revision: which commit stands in a checkout, and a clean worktree of any commit.

Owns: asking git, worktrees under the home. Does not own: what is run there.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from throughline.foundation.errors import ThroughlineError

LOCK_FILE = "requirements.lock"
_DIRTY = "+changes"


@dataclass(frozen=True)
class Revision:
    """`commit`: None where there is no git; `dirty`: files differ from it. `lock`: digest of the lock file."""

    commit: str | None
    dirty: bool
    lock: str

    def __str__(self) -> str:
        return f"{self.commit or 'unknown'}{_DIRTY if self.dirty else ''}"


def current_revision(root: Path) -> Revision:
    """What stands in the checkout at `root`."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=normal"))
    except ThroughlineError:
        commit, dirty = None, False
    return Revision(commit, dirty, lock_of(root))


def lock_of(root: Path) -> str:
    """Digest of the packages that a checkout is locked to."""
    file = root / LOCK_FILE
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "none"


def committed(text: str) -> str:
    """The commit of a recorded revision. Raises when it was never committed."""
    if text.endswith(_DIRTY) or text == "unknown":
        raise ThroughlineError(
            f"Its code was not committed (revision {text}): it cannot be rebuilt; train from a committed revision."
        )
    return text


@contextmanager
def worktree(root: Path, revision: str) -> Iterator[Path]:
    """A clean checkout of a revision, for the time of the block. Raises when git does not know the revision."""
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except ThroughlineError as error:
        raise ThroughlineError(f"Revision {revision} is unknown to git in {root}: fetch it, or correct it.") from error
    folder = Path(tempfile.mkdtemp(prefix="throughline-"))
    try:
        _git(root, "worktree", "add", "--quiet", "--detach", str(folder / "code"), commit)
        yield folder / "code"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _git(root, "worktree", "prune")


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise ThroughlineError("git is not installed: install it to name, fetch or rebuild revisions.") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or "without a word"
        raise ThroughlineError(f"git {arguments[0]} failed in {root}: {said}.") from error
    return done.stdout.strip()
