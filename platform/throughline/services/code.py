"""Which files the graph is made of.

Owns: the fingerprint by which a process that loaded other code is recognised. Does not own: restarting it.
"""

from __future__ import annotations

from throughline.foundation.fingerprint import fingerprint_code
from throughline.foundation.settings import PROJECT_ROOT

FOLDERS = ("assets", "features", "training", "platform", "usecases")
SUFFIXES = {".py", ".sql", ".yml", ".yaml"}


def fingerprint_graph() -> str:
    """Digest of the code and the declarations as they are on disk now."""
    files = (path for folder in FOLDERS for path in sorted((PROJECT_ROOT / folder).rglob("*")))
    return fingerprint_code(path for path in files if path.suffix in SUFFIXES)
