"""The structure of the repository: which folder may import what, and what holds for the tree as a whole."""

from __future__ import annotations

import ast
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from throughline.foundation.settings import PROJECT_ROOT

ROOMS = ["platform", "assets", "features", "training", "serving", "loadtests", "benchmarks", "deploy", "usecases"]
GENERATED = {"__pycache__", "target", "logs", "dbt_packages"}
STDLIB = Path(sysconfig.get_paths()["stdlib"]).resolve()


def sources(*suffixes: str, rooms: list[str] = ROOMS) -> Iterator[Path]:
    for room in rooms:
        for path in sorted((PROJECT_ROOT / room).rglob("*")):
            if path.suffix in suffixes and not GENERATED & set(path.relative_to(PROJECT_ROOT).parts):
                yield path


def name(path: Path) -> str:
    return path.relative_to(PROJECT_ROOT).as_posix()


# The standard library's platform


def test_platform_is_the_standard_librarys_under_pytest() -> None:
    assert Path(platform.__file__).resolve() == STDLIB / "platform.py"


def test_platform_is_the_standard_librarys_from_the_root() -> None:
    """From the root, the folder stands before the standard library on the path: only a package would win."""
    script = "import sys; sys.path.insert(0, ''); import platform; print(platform.__file__, platform.system())"
    shown = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [str(STDLIB / "platform.py"), platform.system()]


def test_no_folder_called_platform_is_a_package() -> None:
    assert not (PROJECT_ROOT / "platform" / "__init__.py").exists()
    assert not (PROJECT_ROOT / "tests" / "platform").exists()
    assert not list((PROJECT_ROOT / "tests").rglob("__init__.py"))


# Who may import whom


def import_contracts() -> dict[str, Any]:
    return tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


def test_the_floors_name_every_package_and_ignore_no_import() -> None:
    assert not [contract["name"] for contract in import_contracts()["contracts"] if contract.get("ignore_imports")]
    floors = [one for one in import_contracts()["contracts"] if one.get("exhaustive")]
    named = {
        package.strip().removeprefix("throughline.")
        for contract in floors
        for layer in contract["layers"]
        for package in re.split(r"[|:]", layer)
    }
    platform_folder = PROJECT_ROOT / "platform" / "throughline"
    packages = {init.parent.name for init in platform_folder.glob("*/__init__.py")}
    assert packages <= named


def test_dependencies_point_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_every_package_is_under_the_import_contracts() -> None:
    packages = {room for room in ROOMS if (PROJECT_ROOT / room / "__init__.py").exists()} | {"throughline"}
    # a benchmark drives everything, and nothing imports it
    assert packages - set(import_contracts()["root_packages"]) <= {"benchmarks"}


def imported(path: Path) -> set[str]:
    """Top-level names of what a module imports, at its head or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


def test_only_assets_import_dagster() -> None:
    """Scripts outside any package, too, which the import contract does not read."""
    rooms = [room for room in ROOMS if room not in ("assets", "benchmarks")]
    importing = [name(path) for path in sources(".py", rooms=rooms) if imported(path) & {"dagster", "dagster_dbt"}]
    assert importing == []


# Types


def test_the_type_checker_finds_no_error_within_a_minute() -> None:
    checker = [Path(sys.executable).with_name("ty"), "check", "--output-format", "concise"]
    done = subprocess.run(checker, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_a_type_that_is_not_checked_names_its_rule_and_the_reason() -> None:
    rule_and_reason = re.compile(r"# ty: ignore\[[a-z-]+(, [a-z-]+)*\]  # \S")
    bare = [
        f"{name(path)}:{number}"
        for path in sources(".py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"#\s*(ty|type):\s*ignore", line) and not rule_and_reason.search(line)
    ]
    assert bare == []


# Tests mirror what they test


def test_unit_tests_of_the_platform_stand_in_the_folder_of_their_package() -> None:
    tests = PROJECT_ROOT / "tests" / "unit" / "platform"
    folders = {path.relative_to(tests) for path in tests.rglob("*") if path.is_dir() and path.name != "__pycache__"}
    assert [folder for folder in folders if not (PROJECT_ROOT / "platform" / "throughline" / folder).is_dir()] == []
    assert [path.name for path in tests.glob("test_*.py")] == []


# No use case but in its own places

OF_THE_USE_CASE = (
    "features/flight_delay/",
    "features/macros/flight_delay/",
    "features/models/flight_delay/",
    "training/flight_delay/",
    "usecases/",
)
NAMED_WITH_REASON = {
    "features/dbt_project.yml": "each folder's schema is declared there",
    "deploy/environment.sh": "its `preflight`",
}


def test_nothing_else_names_a_flight() -> None:
    word = re.compile(r"flight", re.IGNORECASE)
    harmless = re.compile(r"pre-?flight|in[-_ ]?flight", re.IGNORECASE)  # common technical terms
    naming = {
        name(path)
        for path in sources(".py", ".yaml", ".yml", ".sql", ".toml", ".sh", ".html", ".j2", ".jinja")
        if word.search(harmless.sub("", path.read_text()))
    }
    elsewhere = {path for path in naming if not path.startswith(OF_THE_USE_CASE)}
    assert elsewhere - set(NAMED_WITH_REASON) == set()


def test_the_rules_about_names_would_notice() -> None:
    assert any(name(path).startswith("features/flight_delay/") for path in sources(".py"))
    assert any(name(path).startswith("platform/throughline/") for path in sources(".py"))
    assert any(path.suffix == ".sql" for path in sources(".sql"))


# The environment is read in one place

ENVIRONMENT_READERS = {
    "platform/throughline/foundation/settings.py": "the place for it",
    "platform/throughline/services/doctor.py": "JAVA_HOME is Spark's variable",
    "platform/throughline/launch/guard.py": "the launcher names the guarded worker there",
    "training/trainers/keras_mlp.py": "sets Keras's backend, which Keras reads at import",
    "training/world.py": "the launcher names the engine that connects the workers there",
    "platform/throughline/launch/local.py": "hands a chosen part of its own environment to workers",
    "platform/throughline/services/control.py": "hands its own environment to the setup of a service",
    "platform/throughline/services/daemon.py": "hands its own environment to supervisord",
    "platform/throughline/services/mlflow_server.py": "names the stores to MLflow, which reads them at import",
    "platform/throughline/mlflow/tracking.py": "switches MLflow's telemetry off, which MLflow reads at import",
}


def reads_environment(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv", "putenv"}:
            if isinstance(node.value, ast.Name) and node.value.id == "os":
                return True
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            if {alias.name for alias in node.names} & {"environ", "environb", "getenv", "putenv"}:
                return True
        elif isinstance(node, ast.keyword) and node.arg == "envvar":  # typer's own way of reading it
            return True
    return False


def test_only_settings_read_the_environment() -> None:
    rooms = [room for room in ROOMS if room not in ("deploy", "benchmarks")]  # scripts that run before or beside it
    readers = {name(path) for path in sources(".py", rooms=rooms) if reads_environment(path)}
    assert readers - set(ENVIRONMENT_READERS) == set()
    assert set(ENVIRONMENT_READERS) - readers - {"platform/throughline/foundation/settings.py"} == set(), (
        "a reason without need"
    )


# Imports have no effects


@pytest.mark.parametrize("module", ["throughline.foundation.settings", "throughline.usecase", "throughline.cli.main"])
def test_a_light_module_loads_no_heavy_library_and_no_use_case(module: str) -> None:
    heavy = ["mlflow", "torch", "feast", "pyspark", "dagster", "features", "training", "kserve", "matplotlib"]
    script = f"import sys, {module}; print(*(name for name in {heavy} if name in sys.modules))"
    shown = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert shown.stdout.split() == []


def test_every_module_has_a_docstring() -> None:
    without = [name(path) for path in sources(".py") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert without == []


# The lock


def locked() -> dict[str, str]:
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (PROJECT_ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in pins}


def test_every_locked_package_is_pinned_with_hashes_and_no_registry_is_named() -> None:
    text = (PROJECT_ROOT / "requirements.lock").read_text()
    assert "://" not in text
    entries = text.replace("\\\n", " ").splitlines()
    entries = [entry for entry in entries if entry.strip() and not entry.lstrip().startswith("#")]
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"^[A-Za-z0-9._-]+==\S+( ; .+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*$", entry), entry[:100]


def test_what_pyproject_requires_is_locked() -> None:
    pyproject = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())
    pins = locked()
    groups = pyproject["dependency-groups"]
    for text in [*pyproject["project"]["dependencies"], *groups["dev"], *groups["build"]]:
        wanted = Requirement(text)
        version = pins.get(canonicalize_name(wanted.name))
        assert version is not None, f"{text} is not locked: make lock"
        assert wanted.specifier.contains(version, prereleases=True), f"{text} is locked at {version}: make lock"


def test_what_must_not_come_along_is_not_locked() -> None:
    """feast[delta] forces an old deltalake, xgboost a second NCCL, dagster-mlflow is stale (see the pins' reasons)."""
    pins = locked()
    assert not {"xgboost", "dagster-mlflow"} & set(pins)
    assert int(pins["protobuf"].partition(".")[0]) == 6
    assert int(pins["deltalake"].partition(".")[0]) >= 1
