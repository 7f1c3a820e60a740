"""`mlflow server` on the database of the setting `mlflow_store`, whose password then is in no command line.

`python -m throughline.services.mlflow_server ARGUMENTS`: the arguments are MLflow's. Its own environment variable for
the store would have to be written into supervisor's configuration, or be given to every service.
"""

from __future__ import annotations

import sys

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import load_settings


def main(arguments: list[str]) -> None:
    """Serve until told to stop. Raises `ThroughlineError` when the setting is not there or the database refuses."""
    from mlflow.cli import cli

    store = load_settings().mlflow_store
    if store is None:
        raise ThroughlineError("mlflow_store is not set: set THROUGHLINE_MLFLOW_STORE, or start `mlflow server`.")
    _knock(store.get_secret_value())
    cli(["server", "--backend-store-uri", store.get_secret_value(), *arguments], prog_name="mlflow")


def _knock(url: str) -> None:
    """Connect once: MLflow would try a wrong password ten times, for 100 s."""
    import psycopg2

    try:
        psycopg2.connect(url.replace("postgresql+psycopg2:", "postgresql:", 1), connect_timeout=20).close()
    except psycopg2.OperationalError as error:
        said = " ".join(str(error).split())
        raise ThroughlineError(
            f"The database of mlflow_store cannot be used ({said}): correct THROUGHLINE_MLFLOW_STORE, or start it."
        ) from None
    except psycopg2.Error:  # its message repeats the address, password and all
        raise ThroughlineError(
            "mlflow_store is no address that PostgreSQL understands: correct THROUGHLINE_MLFLOW_STORE."
        ) from None


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ThroughlineError as refused:
        raise SystemExit(str(refused)) from None
