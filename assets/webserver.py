"""Dagster's webserver behind the guard: `python -m assets.webserver`, with the options of `dagster-webserver`.

Owns: putting the guard in front. Does not own: the webserver, which has no setting for hosts and origins, executes
GraphQL mutations in a GET request too, and accepts WebSockets of any page.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dagster_webserver import cli

from throughline.foundation.security.guard import Guard
from throughline.foundation.settings import load_settings


def main(arguments: list[str]) -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True, type=int)
    listens, _ = parser.parse_known_args(arguments)
    settings, make = load_settings(), cli.create_app_from_workspace_process_context

    def guarded(*given: Any, **options: Any) -> Guard:
        return Guard(make(*given, **options), settings, "Dagster webserver", listens.host, listens.port)

    # the command makes the application by this name and hands it to uvicorn
    cli.create_app_from_workspace_process_context = guarded  # ty: ignore[invalid-assignment]  # a Guard is no Starlette
    cli.dagster_webserver(arguments, auto_envvar_prefix="DAGSTER_WEBSERVER")


if __name__ == "__main__":
    main(sys.argv[1:])
