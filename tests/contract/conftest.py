"""What contract tests share: one Spark server for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needs
from throughline import services
from throughline.foundation.settings import Settings, load_settings
from throughline.services.ports import take_ports


@pytest.fixture(scope="session")
def spark_server(session_home: Path) -> Iterator[Settings]:
    """The home of a Spark Connect server, on ports beside those that other tests of the session use."""
    needs("java")
    settings = load_settings(home=session_home / "spark", port_base=take_ports(), spark_memory="1g")
    try:
        services.up(settings, ["spark"])
        yield settings
    finally:
        services.down(settings)
