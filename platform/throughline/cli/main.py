"""The entry point: puts the commands together and turns what goes wrong into one line and an exit code.

Owns: exit codes (0 success, 1 the work failed, 2 the call was wrong) and where a traceback goes. Does not own: any
command. Modules with commands are imported at every call: they must stay light.
"""

from __future__ import annotations

import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

import typer

from throughline.cli import features, govern, lineage, models, services, train, validate
from throughline.cli.advance import advance
from throughline.cli.explain import explain
from throughline.cli.predict import predict
from throughline.cli.push import push
from throughline.cli.run import run
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings

app = typer.Typer(
    name="throughline",
    help="From a raw row to a live prediction, and back.",
    no_args_is_help=True,
    add_completion=False,
    # tracebacks are ours: one line for the person, the rest in the log
    pretty_exceptions_enable=False,
)
app.command()(run)
services.register(app)
app.command()(predict)
app.command()(explain)
app.command()(push)
app.command()(advance)
app.command()(train.train)
app.add_typer(train.app, name="jobs")
app.command()(train.reproduce)
app.add_typer(models.app, name="models")
govern.register(app)
lineage.register(app)
app.add_typer(features.app, name="features")
app.add_typer(validate.app, name="validate")


def main() -> None:
    """Run the command line of this process and exit."""
    try:
        app()
    except ThroughlineError as error:
        _log_traceback()
        _red(str(error))
        raise SystemExit(1) from None
    except Exception as error:  # the process boundary: nothing gets past it as a traceback
        log = _log_traceback()
        summary = " ".join(f"{type(error).__name__}: {error}".split())
        _red(f"Unexpected {summary[:300]}: the traceback is in {log}." if log else f"Unexpected {summary[:300]}.")
        raise SystemExit(1) from None


def _red(line: str) -> None:
    typer.secho(line, fg=typer.colors.RED, err=True)


def _log_traceback() -> Path | None:
    """Append the current exception to this home's log; None when there is no home to write to."""
    try:
        settings: Settings = load_settings()
        settings.logs.mkdir(parents=True, exist_ok=True)
        log = settings.logs / "throughline.log"
        with log.open("a") as out:
            # the arguments are not written: a value there may be a secret
            command = sys.argv[1] if len(sys.argv) > 1 else ""
            out.write(f"{datetime.now(UTC).isoformat()} throughline {command}\n{traceback.format_exc()}\n")
    except (ThroughlineError, OSError):
        return None
    return log
