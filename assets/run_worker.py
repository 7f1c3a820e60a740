"""Run workers that start at once: one process loads the graph, and each run is a fork of it.

Owns: that process (`python -m assets.run_worker`). Each line of its input is a serialised `ExecuteRunArgs`; it answers
with the process id of the run's worker, and ends when its input does, while its workers go on. Does not own: which
runs there are, how one is cancelled (`run_launcher`).

A fork is safe here because nothing was computed before it: Polars, Arrow and gRPC start their threads at first use.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def main() -> None:
    """Load the graph, then fork a worker per line of standard input."""
    from dagster._core.code_pointer import CodePointer  # postpones dagster (1 s) for importers of this module
    from dagster._core.definitions.reconstruct import ReconstructableRepository

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a run prints goes to the log
    # What is loaded here is in the caches of each worker: repository definitions and the modules of their steps.
    ReconstructableRepository(CodePointer.from_module("assets.definitions", "throughline", None)).get_definition()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps ended workers
    for line in iter(sys.stdin.readline, ""):
        worker = os.fork()
        if worker == 0:
            answers.close()
            _execute(line)
        answers.write(f"{worker}\n")


def _execute(arguments: str) -> NoReturn:
    from dagster._cli.api import api_cli

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    api_cli(["execute_run", arguments.strip()], prog_name="dagster api")
    sys.exit(0)


if __name__ == "__main__":
    main()
