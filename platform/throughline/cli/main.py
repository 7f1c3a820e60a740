"""The entry point: the list of commands, exit codes, one line per error.

Owns: which module holds which command, exit codes (0 success, 1 the work failed, 2 the call was wrong), where a
traceback goes. Does not own: any command. A command's module is imported when the command is called, so that `--help`
and light commands start fast.
"""

from __future__ import annotations

import ast
import sys
import traceback
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from throughline.foundation.errors import ThroughlineError

# a module of this package: its commands, each a function there
MODULES = {
    "run": ["run"],
    "services": ["up", "down", "status", "doctor"],
    "predict": ["predict"],
    "explain": ["explain"],
    "push": ["push"],
    "feedback": ["feedback"],
    "advance": ["advance"],
    "train": ["train"],
    "jobs": ["jobs"],
    "reproduce": ["reproduce"],
    "models": ["models"],
    "govern": ["propose", "approve", "promote", "rollback", "history", "note"],
    "rollout": ["rollout"],
    "lineage": ["trace", "impact"],
    "features": ["features"],
    "validate": ["validate"],
    "cost": ["cost"],
}
COMMANDS = {command: module for module, commands in MODULES.items() for command in commands}


class Commands(TyperGroup):
    """Lists every command by the first paragraph of its docstring; imports the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        trees = {name: ast.parse(Path(__file__).with_name(f"{name}.py").read_text()) for name in MODULES}
        self.commands = {name: TyperCommand(name, help=_help(trees[COMMANDS[name]], name)) for name in COMMANDS}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, load(name) if name and listed else None, rest


def load(name: str) -> Any:
    """The command `name`, its module imported. The callback of its module's `app` is that whole group of commands."""
    module = import_module(f"throughline.cli.{COMMANDS[name]}")
    group = getattr(module, "app", None)
    if group is not None and group.registered_callback.callback.__name__ == name:
        return typer.main.get_group(group)
    single = typer.Typer(add_completion=False)
    single.command(name)(getattr(module, name))
    return typer.main.get_command(single)


def _help(tree: ast.Module, function: str) -> str:
    (found,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    return (ast.get_docstring(found) or "").partition("\n\n")[0]


app = typer.Typer(
    cls=Commands,
    name="throughline",
    no_args_is_help=True,
    add_completion=False,
    # tracebacks are ours: one line for the person, the rest in the log
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # postpones it (0.05 s)

        typer.echo(f"throughline {version('throughline')}")
        raise typer.Exit


@app.callback()
def throughline(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """From a raw row to a live prediction, and back."""


def main() -> None:
    """Run the command line of this process and exit."""
    try:
        status = app(standalone_mode=False)
        raise SystemExit(status if isinstance(status, int) else 0)
    except TyperException as error:  # the call was wrong; without a message, help was printed already
        if message := " ".join(error.format_message().split()):
            _red(message)
        raise SystemExit(error.exit_code) from None
    except typer.Abort:
        raise SystemExit(1) from None
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
    from throughline.foundation.settings import load_settings  # postpones pydantic (0.2 s)

    try:
        settings = load_settings()
        settings.logs.mkdir(parents=True, exist_ok=True)
        log = settings.logs / "throughline.log"
        with log.open("a") as out:
            # the arguments are not written: a value there may be a secret
            command = sys.argv[1] if len(sys.argv) > 1 else ""
            out.write(f"{datetime.now(UTC).isoformat()} throughline {command}\n{traceback.format_exc()}\n")
    except (ThroughlineError, OSError):
        return None
    return log
