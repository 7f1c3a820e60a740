"""What all tests share: homes and ports of their own, who runs what, and skips that name the missing part."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from throughline.foundation.settings import Settings, load_settings
from throughline.services.ports import take_ports

# What of two processes the first two begin with, longest first (measured: docs/testing.md), so that none of it is left
# for the end. "spark": every file whose tests share the Spark server, which one process then starts once.
LONGEST = (
    "e2e/test_thread.py",
    "spark",
    "e2e/test_reproduce.py",
    "e2e/test_elastic.py",
    "e2e/test_training.py",
    "contract/test_registry_stores.py",
    "e2e/test_search.py",
    "contract/test_launchers.py",
    "e2e/test_approve.py",
    "e2e/test_release.py",
    "e2e/test_rollout.py",
    "contract/test_trainers.py",
    "e2e/test_services.py",
)
STARTED = time.monotonic()
DRILLS_BEGUN = pytest.StashKey[dict[str, bool]]()
SPARK = ("contract/test_incremental_features.py", "contract/test_two_engines.py", "contract/offline_store/")
PARTS = {
    "java": "Java",
    "redis-server": "Redis",
    "chromium": "Chromium",
    "softhsm2-util": "SoftHSM",
    "prometheus": "Prometheus",
    "promtool": "Prometheus",
}


def pytest_configure(config: pytest.Config) -> None:
    """Removes the settings of whoever runs the tests; no test fails because a machine is busy."""
    hypothesis.settings.register_profile("throughline", deadline=None)
    hypothesis.settings.load_profile("throughline")
    for name in [name for name in os.environ if name.startswith("THROUGHLINE_")]:
        del os.environ[name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--drill-minutes", type=float, help="skip drills that would not end within so many minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest groups first, so that none of them is left for the end; short drills first."""
    if config.getoption("--drill-minutes"):
        items.sort(key=drill_minutes)
    if "PYTEST_XDIST_WORKER" in os.environ:
        rank = {group: place for place, group in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(group_of(item.nodeid), len(rank)))


class GroupScheduling(LoadScopeScheduling):
    """Tests of one group run in one process. xdist's own groups (--dist loadgroup) need what pytest 9.2 has not."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)  # the mutation drill runs without xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    return GroupScheduling(config, log)


def group_of(nodeid: str) -> str:
    """A file; all files that share the Spark server are one group."""
    file = nodeid.partition("::")[0].removeprefix("tests/")
    return "spark" if file.startswith(SPARK) else file


def drill_minutes(item: pytest.Item) -> float:
    """How long a drill takes: of the whole file where the file is marked."""
    marker = item.get_closest_marker("drill")
    return marker.kwargs.get("minutes", 2) if marker else 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a drill that would end after --drill-minutes. A file that is one drill is begun or skipped whole."""
    limit = item.config.getoption("--drill-minutes")
    if limit is None or item.get_closest_marker("drill") is None:
        return
    module = item.getparent(pytest.Module)
    whole_file = module is not None and any(marker.name == "drill" for marker in module.own_markers)
    key = str(item.path) if whole_file else item.nodeid
    begun = item.config.stash.setdefault(DRILLS_BEGUN, {})
    if key not in begun:
        passed = (time.monotonic() - STARTED) / 60
        begun[key] = passed + drill_minutes(item) <= limit
    if not begun[key]:
        pytest.skip(f"not reached: it takes {drill_minutes(item):g} minutes, and {limit:g} are the limit for all")


@pytest.fixture(scope="session")
def free_port_base() -> int:
    """The first of as many consecutive ports as a home needs; no other process takes them."""
    return take_ports()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home that nothing else uses; no service runs in it."""
    return load_settings(home=tmp_path / "home", port_base=1024)


@pytest.fixture(scope="session")
def session_home() -> Iterator[Path]:
    """A home for a whole test session, with a short path; removed at the end."""
    home = Path(tempfile.mkdtemp(prefix="tl-"))
    yield home
    shutil.rmtree(home, ignore_errors=True)


def needs(program: str) -> None:
    """Skip the calling test, by the part's name, when a program is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"{PARTS.get(program, program)} is not installed ({program})")
