"""The list of commands: complete, lazy, each with the help of its own command."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from throughline.cli import main as cli


def help_of(*command: str) -> str:
    shown = CliRunner().invoke(cli.app, [*command, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    return shown.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_is_listed_by_its_own_first_line(name: str) -> None:
    described = " ".join((cli.load(name).help or "").partition("\n\n")[0].split())
    assert described
    (row,) = [line for line in help_of().splitlines() if line.startswith(f"│ {name} ")]
    assert row.strip("│ ").removeprefix(name).strip().rstrip("… ") in described
    assert described[:60] in " ".join(help_of(name).replace("│", "").split())


def test_listing_the_commands_imports_none_of_them_and_no_settings() -> None:
    code = (
        "import json, sys; from throughline.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: print(json.dumps([name for name in sys.modules if name.partition('.')[0] in "
        "('throughline', 'pydantic', 'httpx', 'yaml')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) == {
        "throughline", "throughline.cli", "throughline.cli.main",
        "throughline.foundation", "throughline.foundation.errors",
    }  # fmt: skip


def test_a_group_of_commands_has_its_subcommands_and_no_options_for_shell_completion() -> None:
    shown = help_of("jobs")
    assert "logs" in shown
    assert "cancel" in shown
    assert "completion" not in shown


def test_a_misspelt_command_is_a_wrong_call_that_names_the_right_one() -> None:
    shown = CliRunner().invoke(cli.app, ["rolback"])
    assert shown.exit_code == 2
    assert "rollback" in shown.output


def test_the_version_is_that_of_the_package() -> None:
    shown = CliRunner().invoke(cli.app, ["--version"])
    assert (shown.exit_code, shown.stdout) == (0, "throughline 0.1.0\n")


def test_a_command_whose_function_is_no_callback_is_not_a_group() -> None:
    assert isinstance(cli.load("train"), typer.core.TyperCommand)
    assert isinstance(cli.load("jobs"), typer.core.TyperGroup)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["impact", "weather@1"], "'weather@1' is no table version: write USECASE/LAYER/TABLE@VERSION."),
        (["validate", "check"], "Missing argument 'TABLE@VERSION'."),
        (["rolback"], "No such command 'rolback'."),
        (["trace", "x", "--rows", "0"], "--rows"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    arguments: list[str], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["throughline", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert problem in printed.err


@pytest.mark.parametrize(("code", "ends_with"), [(None, 0), (typer.Exit(3), 3), (typer.Abort(), 1)])
def test_the_exit_code_is_the_commands(code: Exception | None, ends_with: int, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        if code is not None:
            raise code

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["throughline"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == ends_with
