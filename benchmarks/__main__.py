"""`python -m benchmarks [--quick] [NAME ...]`: run the benchmarks, each in a process of its own, and write the page.

With names, only those run and the page goes to the screen: half a page in docs/ would look like a whole one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

from benchmarks.page import machine_facts, page
from benchmarks.report import progress
from throughline.foundation.settings import PROJECT_ROOT

BENCHMARKS = ("point_in_time", "time_travel", "incremental", "online_push", "serving", "judge", "horovod_ddp")
PAGE = PROJECT_ROOT / "docs" / "benchmarks.md"


def measure(name: str, quick: bool) -> dict[str, Any] | None:
    """What one benchmark printed; None when it failed, which it has explained on stderr."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *(["--quick"] if quick else [])]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT)
    return json.loads(ended.stdout.splitlines()[-1]) if ended.returncode == 0 else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure what is claimed, against its peers.")
    # argparse holds the empty list of no names against the choices, too
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="less than 50 s each")
    chosen = parser.parse_args()
    names = chosen.names or list(BENCHMARKS)
    results = []
    for name in names:
        progress(f"== {name}")
        results.append(measure(name, chosen.quick))
    failed = [name for name, measured in zip(names, results, strict=True) if measured is None]
    if failed:
        progress(f"{', '.join(failed)} could not be measured: nothing written, see above.")
        return 1
    abouts = {name: importlib.import_module(f"benchmarks.{name}").ABOUT for name in names}
    text = page([each for each in results if each], abouts, machine_facts(), datetime.now(UTC))
    if chosen.names:
        sys.stdout.write(text)
    else:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)
        progress(f"wrote {PAGE.relative_to(PROJECT_ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
