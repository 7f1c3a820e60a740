"""How many small changes of the code that decides make a unit test fail: `python -m tests.drill.mutation`.

Owns: which modules are mutated, by which tests they are judged, and the score. Does not own: the mutations and their
run (mutmut). It works on a copy in `.mutation/` and keeps verdicts there: a run goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from throughline.foundation.settings import PROJECT_ROOT

FOLDER = PROJECT_ROOT / ".mutation"
UNIT = "tests/unit/platform"
# module of the platform: the tests that judge it; mutmut runs of them those that reach the changed function
DECIDING = {
    "evaluation/gate.py": ["evaluation/test_gate.py", "evaluation/test_gate_numbers.py"],
    "monitoring/triggers.py": ["monitoring/test_triggers.py"],
    "monitoring/outcomes.py": ["monitoring/test_outcomes.py"],
    "registry/champions.py": ["registry/test_champions.py"],
    "registry/approval.py": ["registry/test_approval.py"],
    "rollout/promotion.py": ["rollout/test_promotion.py"],
    "featurestore/asof.py": ["featurestore/test_asof.py"],
    "featurestore/incremental.py": ["featurestore/test_incremental.py"],
    "journal/journal.py": ["journal/test_journal.py"],
    "retention/models.py": ["retention/test_models.py"],
    "foundation/security/principal.py": ["foundation/test_principal.py"],
    "foundation/security/tokens.py": ["foundation/test_tokens.py"],
}
# Functions that read and write around a decision, which no unit test reaches: what judges them instead
_BUILDS = "tests/contract/test_incremental_features.py: the same rows in any order of builds are the same tables"
_RETENTION = "tests/contract/test_registry_stores.py: versions are removed from a real MLflow, files and all"
JUDGED_ELSEWHERE = {
    "featurestore/incremental.py": dict.fromkeys(
        (
            *("plan_builds", "plan_late", "source_versions", "read_origin", "dbt_variables", "models_of"),
            *("_changed_days", "to_dbt"),
        ),
        _BUILDS,
    ),
    "retention/models.py": dict.fromkeys(("apply", "_remove", "_delete_logged_model"), _RETENTION),
}
COPIED = ("assets", "deploy", "features", "serving", "tests", "training", "usecases")
KILLED, SURVIVED, UNREACHED = "killed", "survived", "no test"
# mutmut's exit codes: pytest's 1 and 3 and every end by a signal kill the mutant; 0 and 33 leave it alive
_ALIVE = {0: SURVIVED, 5: UNREACHED, 33: UNREACHED}

CONFIGURATION = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = {modules}
also_copy = {copied}
pytest_add_cli_args = ["-p", "no:xdist", "-p", "no:cacheprovider", "--import-mode=importlib"]
pytest_add_cli_args_test_selection = {tests}
# Polars starts threads, which do not survive a fork: workers are forked from a process that never ran a test
process_isolation = "forkserver"
timeout_constant = 20.0
use_git_change_detection = false
"""


@dataclass
class Score:
    """Of one module: how many mutants met which end. `texts`: those of messages and names of keys only count apart;
    `elsewhere`: those in functions of `JUDGED_ELSEWHERE` that no unit test reaches do not count."""

    code: dict[str, int] = field(default_factory=dict)
    texts: dict[str, int] = field(default_factory=dict)
    elsewhere: int = 0
    alive: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return sum(self.code.values())

    @property
    def killed(self) -> int:
        return self.code.get(KILLED, 0)

    @property
    def share(self) -> float:
        return self.killed / self.tried if self.tried else 1.0


def stage(modules: list[str]) -> None:
    """The copy that is mutated: `platform/` becomes `src/`, the layout that mutmut knows."""
    # there before Python starts, which remembers of a folder on its path that it was missing
    (FOLDER / "mutants" / "src").mkdir(parents=True, exist_ok=True)
    for name, target in [("platform", "src"), *((name, name) for name in COPIED)]:
        _mirror(PROJECT_ROOT / name, FOLDER / target)
    # always all of them: mutmut forgets every verdict when the selection changes
    tests = sorted({f"{UNIT}/{test}" for judging in DECIDING.values() for test in judging})
    own = CONFIGURATION.format(
        modules=json.dumps([f"src/throughline/{module}" for module in modules]),
        copied=json.dumps([name for name in COPIED if name != "tests"]),
        tests=json.dumps(tests),
    )
    (FOLDER / "pyproject.toml").write_text((PROJECT_ROOT / "pyproject.toml").read_text() + own)
    for name in ("workspace.yaml", "requirements.lock", "Makefile"):
        shutil.copy2(PROJECT_ROOT / name, FOLDER / name)


def _mirror(source: Path, target: Path) -> None:
    """Copy what changed, with its time of change, and remove what is gone: mutmut sees changes by these."""
    ignored = {"__pycache__", "target", "logs", "dbt_packages"}
    kept = set()
    for path in source.rglob("*"):
        place = path.relative_to(source)
        if ignored & set(place.parts) or not path.is_file():
            continue
        kept.add(place)
        copy = target / place
        if not copy.exists() or copy.stat().st_mtime_ns != path.stat().st_mtime_ns:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
            (FOLDER / "mutants" / target.name / place).unlink(missing_ok=True)
    for path in [path for path in target.rglob("*") if path.is_file() and path.relative_to(target) not in kept]:
        path.unlink()


def run(minutes: float, processes: int) -> bool:
    """Try mutants until all have a verdict (True) or the time is over; verdicts so far are kept."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER / "mutants" / "src")}
    with (FOLDER / "run.log").open("w") as log:
        process = subprocess.Popen(command, cwd=FOLDER, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(minutes * 60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            return False
    if code:
        tail = (FOLDER / "run.log").read_text().splitlines()[-30:]
        raise SystemExit("mutmut ended with an error:\n" + "\n".join(tail))
    return True


def scores(modules: list[str]) -> dict[str, Score]:
    """What the verdicts kept in `.mutation/` say of each module; mutants without one yet are left out."""
    found = {}
    for module in modules:
        score = found[module] = Score()
        mutated = FOLDER / "mutants" / "src" / "throughline" / module
        verdicts = mutated.with_name(mutated.name + ".meta")
        if not verdicts.exists():
            continue
        functions = {node.name: node for node in _functions(mutated)}
        for name, exit_code in json.loads(verdicts.read_text())["exit_code_by_key"].items():
            if exit_code is None:
                continue
            end = _ALIVE.get(exit_code, KILLED)
            mutant = name.rpartition(".")[2]
            if end == UNREACHED and _function(mutant) in JUDGED_ELSEWHERE.get(module, {}):
                score.elsewhere += 1
                continue
            counted = score.texts if _only_texts(functions, mutant) else score.code
            counted[end] = counted.get(end, 0) + 1
            if end != KILLED and counted is score.code:
                score.alive.append(_change(functions, mutant))
    return found


def _function(mutant: str) -> str:
    """The plain name of the function or method of which this is a mutant."""
    name = mutant.rpartition("__mutmut_")[0]
    return name.rpartition("ǁ")[2] if "ǁ" in name else name.removeprefix("x_")


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef, blank_texts: bool = False) -> list[str]:
    body = ast.parse(ast.unparse(ast.Module(function.body, [])))
    if blank_texts:
        for node in ast.walk(body):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
    return ast.unparse(body).splitlines()


def _only_texts(functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef], mutant: str) -> bool:
    original = mutant.rpartition("__mutmut_")[0] + "__mutmut_orig"
    return _lines(functions[original], blank_texts=True) == _lines(functions[mutant], blank_texts=True)


def _change(functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef], mutant: str) -> str:
    name = mutant.rpartition("__mutmut_")[0]
    before, after = _lines(functions[name + "__mutmut_orig"]), _lines(functions[mutant])
    changed = [line.strip() for line in after if line not in before] or ["(a line is gone)"]
    instead = [line.strip() for line in before if line not in after]
    return f"{_function(mutant)}: {' '.join(instead)} -> {' '.join(changed)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.drill.mutation", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"part of a name of {', '.join(DECIDING)}")
    parser.add_argument("--minutes", type=float, default=600, help="end after so long; a later run goes on from there")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    chosen = parser.parse_args()
    modules = [name for name in DECIDING if not chosen.modules or any(part in name for part in chosen.modules)]
    stage(modules)
    complete = run(chosen.minutes, chosen.processes)
    found = scores(modules)
    if chosen.json:
        shown = {name: {"score": round(score.share, 3), **vars(score)} for name, score in found.items()}
        print(json.dumps({"complete": complete, "modules": shown}))  # noqa: T201
    else:
        print("\n".join([*render(found), *([] if complete else ["not complete: call again to go on"])]))  # noqa: T201
    return 0


def render(found: dict[str, Score]) -> Iterator[str]:
    """A line per module, and below it each change of code that no test noticed."""
    for name, score in found.items():
        besides = f"of texts: {score.texts}; judged elsewhere: {score.elsewhere}"
        yield f"{name:36} {score.share:.2f} of {score.tried:4} mutants of code; {besides}"
        yield from (f"    {change}" for change in score.alive)
    tried, killed = (sum(values) for values in zip(*((s.tried, s.killed) for s in found.values()), strict=True))
    yield f"all: {killed}/{tried} = {killed / max(1, tried):.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
