"""The dbt project that writes the feature tables: running dbt on it, and its manifest.

Does not own: what is built (`incremental.py`), or a run's progress (the graph).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import fingerprint_code
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.lakehouse.spark import schema_name
from throughline.usecase import load_usecases

PROJECT = PROJECT_ROOT / "features"
PARTS = ("dbt_project.yml", "profiles.yml", "models", "macros", "tests")


def executable() -> str:
    """The dbt of this environment, not the one on PATH."""
    return str(Path(sys.executable).with_name("dbt"))


def invoke(
    *words: str, variables: Mapping[str, Any], target: Path, project: Path = PROJECT
) -> subprocess.CompletedProcess[str]:
    """Run dbt and wait; its output is in `stdout`. A failure does not raise: see `returncode`."""
    return subprocess.run(
        [
            *(executable(), *words, "--no-populate-cache", "--project-dir", project, "--profiles-dir", project),
            *("--target-path", target, "--log-path", target, "--vars", json.dumps(variables)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def manifest(settings: Settings, project: Path = PROJECT) -> dict[str, Any]:
    """The project's manifest with compiled SQL, compiled anew when a file changed. Raises with the end of dbt's output.

    Every source is pinned to version 0: the SQL is for lineage, not for execution.
    """
    target = settings.dbt_home / "compiled" / fingerprint_code([project / part for part in PARTS])
    made = target / "manifest.json"
    if not made.exists():
        compiling = target.with_name(f"{target.name}.{os.getpid()}")
        pins = {
            f"{schema_name(usecase.name, 'raw')}.{table}": 0
            for usecase in load_usecases().values()
            for table in usecase.sources.tables
        }
        words = ("compile", "--no-introspect", "--select", "resource_type:model")
        done = invoke(*words, variables={"pins": pins}, target=compiling, project=project)
        if done.returncode:
            output = " ".join(done.stdout.split()[-60:])
            raise ThroughlineError(f"The dbt project in {project.name}/ does not compile: {output}")
        with contextlib.suppress(OSError):  # another process compiled the same files meanwhile
            compiling.rename(target)
    return json.loads(made.read_text())
