"""What this machine needs before anything runs, and the command that supplies what is missing.

Owns: the checks and their wording. Does not own: installing anything. Fast enough (no process is started when Java is
packaged as usual) to stand in front of every `throughline run`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.services.daemon import Supervisor
from throughline.services.declared import declare
from throughline.services.processes import port_holders

JAVA_AT_LEAST = 17
DISK_GIB = 3.0
MEMORY_GIB = 8.0


@dataclass(frozen=True)
class Check:
    """`found` is what there is; `fix` what to do when not `ok`. Only a `required` one stops a run."""

    name: str
    ok: bool
    required: bool
    found: str
    fix: str


def examine(settings: Settings) -> list[Check]:
    """Every check, in the order in which one would mend things."""
    horovod = importlib.util.find_spec("horovod") is not None
    return [
        check_python(sys.version_info[:2]),
        *([] if settings.spark_remote else [check_java(java_version())]),
        *([] if horovod else [check_compiler(shutil.which("g++") or shutil.which("c++"))]),
        check_horovod(horovod),
        check_home(settings.home),
        check_disk(_existing(settings.home)),
        check_memory(_memory_gib()),
        check_ports(settings),
    ]


def failed(checks: list[Check]) -> list[Check]:
    """The required ones that are not ok."""
    return [check for check in checks if check.required and not check.ok]


def require(settings: Settings) -> None:
    """Raises `ThroughlineError` naming all that is missing and what supplies it."""
    missing = failed(examine(settings))
    if missing:
        raise ThroughlineError("; ".join(f"{check.name}: {check.found}. {check.fix}" for check in missing))


def check_python(version: tuple[int, int]) -> Check:
    found = ".".join(map(str, version))
    return Check(
        "Python", version == (3, 11), True, found, "Python 3.11 is needed: sudo apt-get install python3.11-venv"
    )


def check_java(version: int | None) -> Check:
    return Check(
        name="Java",
        ok=version is not None and version >= JAVA_AT_LEAST,
        required=True,
        found="none on PATH or in JAVA_HOME" if version is None else str(version),
        fix=f"Spark needs Java {JAVA_AT_LEAST} or newer: sudo apt-get install openjdk-17-jre-headless",
    )


def check_compiler(path: str | None) -> Check:
    return Check(
        name="C++ compiler",
        ok=path is not None,
        required=True,
        found=path or "none on PATH",
        fix="Horovod is built once on this machine: sudo apt-get install g++",
    )


def check_horovod(importable: bool) -> Check:
    found = "installed" if importable else "not in this environment"
    return Check("Horovod", importable, True, found, "Build it (3 minutes, once): make env")


def check_home(home: Path) -> Check:
    at = _existing(home)
    writable = at.is_dir() and os.access(at, os.W_OK | os.X_OK)
    return Check(
        name="Home",
        ok=writable,
        required=True,
        found=str(home) if writable else f"{at} is not a folder this user can write to",
        fix="Set THROUGHLINE_HOME to a folder of yours, or: sudo chown -R $USER " + str(at),
    )


def check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 2**30
    return Check(
        name="Disk",
        ok=free >= DISK_GIB,
        required=True,
        found=f"{free:.1f} GiB free at {folder}",
        fix=f"{DISK_GIB:.0f} GiB are needed: free some (uv cache clean), or set THROUGHLINE_HOME elsewhere",
    )


def check_memory(total_gib: float) -> Check:
    return Check(
        name="Memory",
        ok=total_gib >= MEMORY_GIB,
        required=False,
        found=f"{total_gib:.1f} GiB",
        fix=f"With less than {MEMORY_GIB:.0f} GiB give Spark less: export THROUGHLINE_SPARK_MEMORY=1g",
    )


def check_ports(settings: Settings) -> Check:
    """Ports that this home's services need and another process holds."""
    needed = {port: service.name for service in declare(settings) for port in service.ports}
    holders = sorted(port_holders(set(needed), Supervisor(settings).url).items())
    taken = ", ".join(f"{port} ({needed[port]}) by {holder}" for port, holder in holders if not holder.own)
    free = f"{min(needed)} to {max(needed)} free or ours" if settings.port_base else f"{sorted(needed)} free or ours"
    return Check(
        name="Ports",
        ok=not taken,
        required=True,
        found=f"taken: {taken}" if taken else free,
        fix="Stop that process, or take other ports: export THROUGHLINE_PORT_BASE=20000",
    )


def java_version() -> int | None:
    """Major version of the Java that Spark will use: JAVA_HOME's, else the one on PATH. None when there is none."""
    java_home = os.environ.get("JAVA_HOME")  # Spark's variable, not one of ours
    java = f"{java_home}/bin/java" if java_home else shutil.which("java")
    if java is None:
        return None
    # The file beside the binary spares starting a JVM (50 to 300 ms).
    release = Path(java).resolve().parents[1] / "release"
    text = release.read_text(errors="replace") if release.is_file() else ""
    match = re.search(r'JAVA_VERSION="([^"]+)"', text)
    if match is None:
        try:
            output = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20, check=False).stderr
        except (OSError, subprocess.TimeoutExpired):
            return None
        match = re.search(r'version "([^"]+)"', output)
    return None if match is None else java_major(match[1])


def java_major(version: str) -> int | None:
    """`17.0.15` -> 17; the old way of counting `1.8.0_402` -> 8."""
    match = re.match(r"(?:1\.)?(\d+)", version)
    return int(match[1]) if match else None


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _memory_gib() -> float:
    return psutil.virtual_memory().total / 2**30
