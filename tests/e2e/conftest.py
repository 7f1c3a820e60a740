"""What tests with real services share: a home with nothing but an MLflow server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mlflow_server import mlflow_server
from throughline.settings import Settings


@pytest.fixture(scope="module")
def home_with_mlflow(tmp_path_factory) -> Iterator[Settings]:
    """A home of its own with an MLflow server in it."""
    with mlflow_server(tmp_path_factory.mktemp("home")) as settings:
        yield settings
