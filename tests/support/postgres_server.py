"""A real PostgreSQL server for tests, in a folder of its own, on a free port of this machine.

Owns: starting and ending it, as an unprivileged user where the tests are run by root, which PostgreSQL refuses.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import servers
from throughline.services.ports import take_ports

UNPRIVILEGED = "nobody"


@dataclass(frozen=True)
class Postgres:
    port: int
    user: str
    password: str

    @property
    def url(self) -> str:
        return f"jdbc:postgresql://127.0.0.1:{self.port}/postgres"

    def answers(self) -> bool:
        try:
            self.run("SELECT 1")
        except subprocess.CalledProcessError:
            return False
        return True

    def run(self, sql: str) -> str:
        """What psql prints, tuples only."""
        return subprocess.run(
            [
                *("psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1"),
                *("-h", "127.0.0.1", "-p", str(self.port), "-U", self.user, "-d", "postgres", "-c", sql),
            ],
            env={"PATH": os.environ["PATH"], "PGPASSWORD": self.password},
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip


def binaries() -> Path | None:
    """The folder with `initdb` and `postgres`; Debian keeps them off PATH."""
    found = [Path(where).resolve().parent for where in [shutil.which("initdb")] if where]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in found if (folder / "postgres").exists()), None)


@contextmanager
def serve(programs: Path, user: str, password: str) -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="tl-pg-"))
    as_whom = {"user": UNPRIVILEGED, "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    if as_whom:
        shutil.chown(folder, UNPRIVILEGED, "nogroup")
    secret = folder / "secret"
    secret.write_text(password)
    secret.chmod(0o644)
    subprocess.run(
        [
            *(programs / "initdb", "-D", folder / "data", "-U", user, f"--pwfile={secret}", "--auth=scram-sha-256"),
            *("--no-sync", "--encoding=UTF8", "--locale=C"),
        ],
        check=True, capture_output=True, cwd=folder, **as_whom,
    )  # fmt: skip
    port = take_ports(1)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-F"),
                *("-c", "listen_addresses=127.0.0.1", "-c", "timezone=UTC"),
            ],
            stdout=log, stderr=log, cwd=folder, **as_whom,
        )  # fmt: skip
        server = Postgres(port, user, password)
        try:
            servers.wait_until_ready(process, port, server.answers, folder / "log")
            yield server
        finally:
            servers.end(process)
            shutil.rmtree(folder, ignore_errors=True)
