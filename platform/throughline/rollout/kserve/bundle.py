"""The files of a revision as its Pods mount them: a folder of the home that never changes.

Owns: that folder. Does not own: what is in it: the version's signed folder, the statement of its release, the rows that
explanations compare with (`rollout/placing.py` places all of them), where it is mounted (`manifests.py`).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from throughline.evaluation.background import served_path
from throughline.foundation.settings import Settings
from throughline.records import Revision
from throughline.rollout.kserve.manifests import bundle_path
from throughline.rollout.revision import only, write_revisions


def bundle(settings: Settings, revision: Revision) -> Path:
    """Copy what was placed for a revision. Repeating it is harmless.

    In its own server a revision takes whatever comes: its role and share are the route's.
    """
    folder, placed = settings.home / bundle_path(revision), settings.serving_home / revision.usecase
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".bundle-") as scratch:
        made = Path(scratch) / "new"
        for part in (str(revision.version), f"releases/{revision.version}"):
            shutil.copytree(placed / part, made / part, symlinks=True)
        explained = served_path(placed, revision.sha256)
        if explained.exists():
            served_path(made, revision.sha256).parent.mkdir()
            shutil.copy(explained, served_path(made, revision.sha256))
        write_revisions(made, only(revision.model_copy(update={"role": "stable", "weight": 1.0})))
        made.replace(folder)
    return folder
