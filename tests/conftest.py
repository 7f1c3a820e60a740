"""What all tests share: homes of their own, ports of their own, and skips that name the missing part."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from throughline.foundation.settings import Settings, load_settings
from throughline.services.ports import take_ports

LONGEST = {"test_thread.py", "test_incremental_features.py"}
PARTS = {"java": "Java", "redis-server": "Redis", "chromium": "Chromium", "softhsm2-util": "SoftHSM"}


def pytest_configure(config: pytest.Config) -> None:
    """Tests must not see the settings of whoever runs them, and none may fail because a machine is busy."""
    hypothesis.settings.register_profile("throughline", deadline=None)
    hypothesis.settings.load_profile("throughline")
    for name in [name for name in os.environ if name.startswith("THROUGHLINE_")]:
        del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes one begins with what takes longest, so that it is not left for the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name not in LONGEST)


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
