"""MLflow's tracking server and UI in one process: `python -m throughline.services.mlflow_server`.

Owns: starting MLflow's own application with the stores it is given. Does not own: what the application does. `mlflow
server` imports MLflow twice, in a parent that prepares the database and in a worker that serves (17 s of a core and
0.6 GB, against 8 s and 0.3 GB), and takes a database's password on its command line; here `mlflow_store` holds it.
"""

from __future__ import annotations

import argparse
import os
import sys

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.guard import Guard
from throughline.foundation.settings import load_settings


def main(arguments: list[str]) -> None:
    """Serve until terminated. Raises `ThroughlineError` when the database of the setting cannot be used."""
    parser = argparse.ArgumentParser(prog="throughline.services.mlflow_server")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--backend-store-uri", help="unset: the setting mlflow_store")
    artifacts = parser.add_mutually_exclusive_group(required=True)
    artifacts.add_argument("--default-artifact-root", help="where clients write artifacts themselves")
    artifacts.add_argument("--artifacts-destination", help="where the server writes what clients send to it")
    chosen = parser.parse_args(arguments)

    store = chosen.backend_store_uri or _database()
    root = chosen.default_artifact_root or "mlflow-artifacts:/"
    # what `mlflow server` hands to its workers; read when the application is imported
    os.environ |= {"_MLFLOW_SERVER_FILE_STORE": store, "_MLFLOW_SERVER_ARTIFACT_ROOT": root}
    if chosen.artifacts_destination:
        os.environ |= {
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": chosen.artifacts_destination,
        }

    settings = load_settings()
    # which hosts and origins are this service's own is decided by the guard, one rule for every service of a home
    os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = "*"
    os.environ["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(f"http*://{name}*" for name in settings.host_names)

    import uvicorn
    from mlflow.server.fastapi_app import app  # postpones mlflow (7 s): a wrong call or store is refused at once
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(store, store, root)
    guarded = Guard(app, settings, "MLflow", chosen.host, chosen.port)
    uvicorn.run(guarded, host=chosen.host, port=chosen.port, log_level="warning")


def _database() -> str:
    """The URL of the setting `mlflow_store`, tried once: MLflow would try a wrong password ten times, for 100 s."""
    import psycopg2  # postpones it: an embedded store needs none

    store = load_settings().mlflow_store
    if store is None:
        raise ThroughlineError("mlflow_store is not set: set THROUGHLINE_MLFLOW_STORE, or give --backend-store-uri.")
    url = store.get_secret_value()
    try:
        psycopg2.connect(url.replace("postgresql+psycopg2:", "postgresql:", 1), connect_timeout=20).close()
    except psycopg2.OperationalError as error:
        raise ThroughlineError(
            f"The database of mlflow_store cannot be used ({' '.join(str(error).split())}): "
            "correct THROUGHLINE_MLFLOW_STORE, or start it."
        ) from None
    except psycopg2.Error:  # its message repeats the address, password and all
        raise ThroughlineError(
            "mlflow_store is no address that PostgreSQL understands: correct THROUGHLINE_MLFLOW_STORE."
        ) from None
    return url


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ThroughlineError as refused:
        raise SystemExit(str(refused)) from None
