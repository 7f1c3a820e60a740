"""Training on one NVIDIA GPU, also on a machine that reaches no package registry: from Horovod's source to figures.

Owns: what such a machine lacks (collected before, installed there into an environment of its own), the stages of the
call and their time limits. Does not own: what is measured (`gpu_rounds.py`), the build (`deploy/horovod/build.py`).
Standard library only: it starts where no package of ours is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

ABOUT = """
`training.trainers.mlp` on made rows, float32 and bfloat16, batches of 256 to 65,536, started by horovodrun with one
rank. The ratio is our samples per second on the GPU to those of the same trainer on all cores (`cpu`), of a plain
PyTorch loop on the same GPU that takes its batches from host memory as we do (`plain`), and of one whose rows all lie
in the GPU's memory (`resident`). One rank proves that NCCL works and shows nothing of how it scales.
Quick: one batch size, float32, and no build of Horovod. Without a GPU: one line, and exit code 1.
"""
ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "deploy" / "horovod" / "build.py"
LIMIT_MIB = 60  # 64 with the checkout
# What the trainer and Horovod import. The first are what a machine made for PyTorch seldom has, and what is small; the
# wheels of the others are too large to be carried.
CARRIED = (
    "polars", "polars-runtime-32", "pydantic", "pydantic-core", "annotated-types", "typing-inspection",
    "typing-extensions", "safetensors", "cloudpickle", "psutil", "packaging", "nvidia-ml-py",
)  # fmt: skip
EXPECTED = ("torch", "numpy", "onnx", "onnxruntime", "pyyaml", "pip", "setuptools")
# pip takes a wheel only if its very platform is named.
PLATFORMS = ("manylinux1", "manylinux2010", "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(5, 40)))

LOOK = """
import json, torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": gpu}))
"""
LACKING = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        print(name)
"""


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


# --- before: what to carry ----------------------------------------------------------------------


def pins(lock: str) -> dict[str, str]:
    """Package -> version, of a requirements file."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)", lock, re.MULTILINE))


def collect(folder: Path, pythons: list[str]) -> int:
    """Download Horovod's source and the wheels of `CARRIED` for these Pythons; exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        progress(f"{folder} is not empty: name a new folder")
        return 2
    locked = pins((ROOT / "requirements.lock").read_text())
    wanted = [f"{name}=={locked[name]}" if name in locked else name for name in CARRIED]
    platforms = [f"--platform={each}_{platform.machine()}" for each in PLATFORMS]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    commands = [
        [*pip, "--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms,
         f"--dest={folder}", *wanted]
        for python in pythons
    ]  # fmt: skip
    for command in (*commands, [sys.executable, str(BUILD), "--download", str(folder)]):
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
            return 1
    sizes = {path.name: path.stat().st_size / 2**20 for path in folder.iterdir()}
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        progress(f"{size:8.2f} MiB  {name}")
    progress(f"{sum(sizes.values()):8.2f} MiB  in {folder}; expected there: {', '.join(EXPECTED)}")
    if sum(sizes.values()) > LIMIT_MIB:
        progress(f"more than {LIMIT_MIB} MiB: name fewer Pythons")
        return 1
    return 0


# --- there: stages ------------------------------------------------------------------------------


def run_within(command: list[str], seconds: float, env: dict[str, str]) -> str | None:
    """Run a command, its output to our standard error; why it failed, or None. None of its processes is left."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    )
    try:
        code = process.wait(max(0.0, seconds))
        return f"exit code {code}" if code else None
    except subprocess.TimeoutExpired:
        return f"not done after {seconds:.0f} s"
    finally:
        # A build ends its compilers at SIGTERM; what has not ended after that is killed.
        for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            try:
                os.killpg(process.pid, number)
                process.wait(patience)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


class Stages:
    """One call's stages: the time that is left, what each took, and what went wrong."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.taken: dict[str, float] = {}
        self.problems: list[str] = []
        self.env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)])}

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, name: str, limit: float, command: list[str]) -> bool:
        """Whether the command ended well within `limit` seconds, or what is left of them."""
        begun = time.monotonic()
        progress(f"== {name}, at most {min(limit, self.left):.0f} s")
        problem = run_within(command, min(limit, self.left), self.env)
        self.taken[name] = round(time.monotonic() - begun, 1)
        if problem:
            self.problems.append(f"{name}: {problem}")
        return problem is None


def look() -> dict[str, Any]:
    """PyTorch, its CUDA and the GPU it finds, each None where there is none."""
    command = [sys.executable, "-c", LOOK]
    try:
        found = subprocess.run(
            command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=90
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return {"torch": None, "cuda": None, "gpu": None}
    return json.loads(found.stdout.splitlines()[-1])


def make_environment(folder: Path) -> str:
    """An environment on top of the one we run in, whose packages stay as they are; returns its Python."""
    venv.create(folder, symlinks=True)
    below = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    # By addsitedir, so that the .pth files there count, too.
    (site / "below.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in below))
    return str(folder / "bin" / "python")


def lacking(python: str, names: tuple[str, ...]) -> list[str]:
    """Which of the packages that Python does not have."""
    command = [python, "-c", LACKING, *names]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.split()


def carried(files: list[str], names: list[str]) -> list[str]:
    """Which of the packages have a wheel among the files, whatever Python it is for."""
    there = {re.sub(r"[-_.]+", "-", file.split("-")[0]).lower() for file in files if file.endswith(".whl")}
    return [name for name in names if name in there]


def install(stages: Stages, python: str, wheels: Path | None) -> bool:
    """Put the packages that are missing into the environment of `python`; a problem names what stays missing."""
    missing = lacking(python, (*CARRIED, *EXPECTED))
    files = [path.name for path in wheels.iterdir()] if wheels else []
    if found := carried(files, missing):
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
        stages.run("install", 60, [*pip, "--no-cache-dir", f"--find-links={wheels}", *found])
    if missing := lacking(python, (*CARRIED, *EXPECTED)):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stages.problems.append(f"without {', '.join(missing)} for Python {version}: carry wheels (--wheels FOLDER)")
    return not missing


def build(stages: Stages, python: str, wheels: Path | None, gpu: bool) -> bool:
    source = next(wheels.glob("horovod-*.tar.gz"), None) if wheels else None
    options = [*(["--gpu"] if gpu else []), *(["--source", str(source)] if source else [])]
    return stages.run("build", 240, [python, str(BUILD), *options])


def measure(chosen: argparse.Namespace, found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The result so far; `partial` names what is missing."""
    stages = Stages(chosen.within)
    result: dict[str, Any] = {"benchmark": "gpu_training", "quick": chosen.quick, "figures": {}, "ratio": {}}
    python = make_environment(folder / "environment")
    if install(stages, python, chosen.wheels):
        there = not lacking(python, ("horovod",))
        horovod = there if chosen.quick else build(stages, python, chosen.wheels, gpu=not chosen.rehearse)
        rows = chosen.rows or (2**16 if chosen.quick else 2**19)
        options = ["--launcher", "horovod" if horovod else "single", "--device", "cpu" if chosen.rehearse else "cuda"]
        options += ["--rows", str(rows), *(["--quick"] if chosen.quick else [])]
        # It ends in time by itself, and writes what it has after each training; what hangs is ended after it.
        command = [python, "-m", "benchmarks.gpu_rounds", str(folder), str(stages.end - 5), *options]
        stages.run("measure", stages.left, command)
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text())
    problems = [*stages.problems, *result.get("skipped", [])]
    return result | {"machine": found, "stages": stages.taken, "partial": "; ".join(problems) or None}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_training", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="download what to carry into a new folder")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", nargs="+", default=[python], help=f"to collect wheels for; default {python}")
    parser.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="what was collected, where no registry is reached"
    )
    parser.add_argument("--within", type=float, metavar="SECONDS", help="of the whole call; default 460, quick 45")
    parser.add_argument("--rows", type=int, help="default 524288, quick 65536")
    parser.add_argument("--rehearse", action="store_true", help="the whole call with the CPU in the GPU's place")
    parser.add_argument("--quick", action="store_true", help="less than 50 s: one batch size, float32, no build")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line, which it always is")
    chosen = parser.parse_args()
    if chosen.collect:
        return collect(chosen.collect, chosen.python)
    if chosen.wheels and not chosen.wheels.is_dir():
        progress(f"{chosen.wheels} is no folder: collect it with --collect")
        return 2
    begun = time.monotonic()
    found = look()
    if not found["gpu"] and not chosen.rehearse:
        torch = found["torch"] or "not installed"
        progress(f"No NVIDIA GPU that PyTorch ({torch}) of {sys.executable} can use: nothing was measured.")
        return 1
    chosen.within = (chosen.within or (45 if chosen.quick else 460)) - (time.monotonic() - begun)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result = measure(chosen, found | {"python": platform.python_version(), "cores": os.cpu_count()}, Path(folder))
    print(json.dumps(result))  # noqa: T201
    return 0 if result["figures"] else 1


if __name__ == "__main__":
    sys.exit(main())
