"""Git commits of the code: the one of a checkout, and a clean worktree of any.

Owns: git, worktrees in the temporary folder. Does not own: what is run there.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from throughline.foundation.errors import ThroughlineError

LOCK_FILE = "requirements.lock"
_DIRTY = "+changes"


@dataclass(frozen=True)
class Commit:
    """`digest`: None where there is no git; `dirty`: files differ from it. `lock`: digest of the lock file."""

    digest: str | None
    dirty: bool
    lock: str

    def __str__(self) -> str:
        return f"{self.digest or 'unknown'}{_DIRTY if self.dirty else ''}"


def current_commit(root: Path) -> Commit:
    """The commit of the checkout at `root`."""
    try:
        digest = _git(root, "rev-parse", "HEAD")
        dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=normal"))
    except ThroughlineError:
        digest, dirty = None, False
    return Commit(digest, dirty, lock_of(root))


def lock_of(root: Path) -> str:
    """Digest of the packages that a checkout is locked to."""
    file = root / LOCK_FILE
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "none"


def require_committed(recorded: str) -> str:
    """The commit that was recorded as text. Raises when the code was not committed."""
    if recorded.endswith(_DIRTY) or recorded == "unknown":
        remedy = "it cannot be rebuilt; commit before you train"
        raise ThroughlineError(f"Its code was not committed (commit {recorded}): {remedy}.")
    return recorded


@contextmanager
def worktree(root: Path, commit: str) -> Generator[Path]:
    """A clean checkout of a commit during the block. Raises for a commit that is unknown to git."""
    try:
        digest = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    except ThroughlineError as error:
        raise ThroughlineError(f"Commit {commit} is unknown to git in {root}: fetch it, or correct it.") from error
    folder = Path(tempfile.mkdtemp(prefix="throughline-"))
    try:
        _git(root, "worktree", "add", "--quiet", "--detach", str(folder / "code"), digest)
        yield folder / "code"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _git(root, "worktree", "prune")


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise ThroughlineError("git is not installed: install it to name, fetch or rebuild commits.") from error
    except subprocess.CalledProcessError as error:
        output = " ".join(error.stderr.split()) or "no output"
        raise ThroughlineError(f"git {arguments[0]} failed in {root}: {output}.") from error
    return done.stdout.strip()
