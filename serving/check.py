"""`python -m serving.check HOME FOLDER`, a revision on standard input: tries its model; exit code 1 with the reason.

Owns: the process with limits in which `loading.try_out` has a model loaded.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from serving.loading import load, score_recorded_rows
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import load_settings
from throughline.records import Revision


def main() -> int:
    home, folder = sys.argv[1:]
    settings = load_settings(home=Path(home))
    # Data in memory, of this process alone: what it maps without writing to does not count.
    size = settings.model_memory_mb << 20
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        revision = Revision.model_validate_json(sys.stdin.read())
        score_recorded_rows(load(settings, Path(folder), revision).served, Path(folder), revision.sha256)
    except ThroughlineError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
