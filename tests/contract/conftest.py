"""What contract tests share: one S3 server and one Spark server, which reads folders and buckets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.support import s3_server
from throughline import services
from throughline.foundation.settings import Settings, load_settings
from throughline.services.ports import take_ports


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str] | None]:
    """The environment of clients of an S3 server with an empty bucket `lake`; None where no server can be built."""
    program = s3_server.binary()
    if program is None:
        yield None
        return
    with s3_server.serve(program, tmp_path_factory.mktemp("s3") / "buckets", ["lake"]) as address:
        yield s3_server.environment(address)


@pytest.fixture(scope="session")
def spark_server(session_home: Path, s3: dict[str, str] | None) -> Iterator[Settings]:
    """The home of a Spark Connect server, on ports beside those that other tests of the session use."""
    needs("java")
    settings = load_settings(home=session_home / "spark", port_base=take_ports(), spark_memory="1g")
    with_bucket = settings.model_copy(update={"lakehouse_uri": "s3://lake/unused"}) if s3 else settings
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (s3 or {}).items():
                patch.setenv(name, value)
            services.up(with_bucket, ["spark"])
        yield settings
    finally:
        services.down(with_bucket)
