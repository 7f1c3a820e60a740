"""Build the Horovod wheel this project needs, keep it in a cache, install it.

Horovod 0.28.1 is the last release and does not compile against the PyTorch in
our lock file, so it is built here from its published source with the few
edits below (README.md beside this file says what each is for). Owns: the
edits, the build's environment, the cache, the installation. Does not own:
anything at run time.

Run by the Python of the environment to install into; standard library only,
because it runs before that environment can be trusted to be complete.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"


@dataclass(frozen=True)
class Edit:
    """One replacement in one file; `old` must be there exactly once."""

    file: str
    old: str
    new: str


EDITS = (
    # PyTorch's headers need C++17 since 2.1.
    Edit("CMakeLists.txt", "\nset(CMAKE_CXX_STANDARD 14)\n", "\nset(CMAKE_CXX_STANDARD 17)\n"),
    Edit(
        "horovod/torch/CMakeLists.txt",
        '\nif(NOT Pytorch_VERSION VERSION_LESS "1.5.0")\n    set(CMAKE_CXX_STANDARD 14)\nendif()\n',
        '\nif(NOT Pytorch_VERSION VERSION_LESS "1.5.0")\n    set(CMAKE_CXX_STANDARD 17)\nendif()\n',
    ),
    # The waiting thread spins at full load on the cores that the reduction itself needs.
    Edit(
        "horovod/torch/mpi_ops_v2.cc",
        "      std::this_thread::yield();\n",
        "      std::this_thread::sleep_for(std::chrono::microseconds(50));\n",
    ),
    # Without this a CPU build on a machine that happens to have a CUDA toolkit is another build.
    Edit(
        "cmake/Modules/FindPytorch.cmake",
        '-c "import torch; from torch.utils.cpp_extension import CUDA_HOME; '
        'print(True if ((torch.version.cuda is not None) and (CUDA_HOME is not None)) else False)"',
        '-c "import os, torch; from torch.utils.cpp_extension import CUDA_HOME; '
        "print('HOROVOD_GPU_OPERATIONS' in os.environ and torch.version.cuda is not None "
        'and CUDA_HOME is not None)"',
    ),
    # The source path is used as a regular expression: one `+` in it, and the compiled library lands
    # in a wrong folder of a wheel that installs without complaint.
    Edit(
        "cmake/Utilities.cmake",
        'string(REGEX REPLACE "${PROJECT_SOURCE_DIR}(/)?" "" SUB_FOLDER "${CMAKE_CURRENT_SOURCE_DIR}")',
        'file(RELATIVE_PATH SUB_FOLDER "${PROJECT_SOURCE_DIR}" "${CMAKE_CURRENT_SOURCE_DIR}")',
    ),
    # The headers of CUDA 13 need C++17, too. Read only by the GPU build.
    Edit(
        "horovod/common/ops/cuda/CMakeLists.txt",
        "\nset(CMAKE_CUDA_STANDARD 11)\n",
        "\nset(CMAKE_CUDA_STANDARD 17)\n",
    ),
)

ENVIRONMENT = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITHOUT_NVTX": "1",
    # The bundled third-party projects ask for a CMake older than CMake still supports.
    "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
    # Sources that rely on <cstdint> coming along with other headers; it no longer does.
    "CXXFLAGS": "-include cstdint",
    # Debug symbols make the wheel a hundred times larger.
    "LDFLAGS": "-s",
}
GPU_ENVIRONMENT = {"HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_NCCL_LINK": "SHARED"}

# What the end of a failed build looks like, and what helps. First match wins.
REMEDIES = (
    (r"No space left on device", "the disk is full"),
    (
        r"Killed signal terminated|Cannot allocate memory",
        "the compiler ran out of memory: THROUGHLINE_BUILD_JOBS=1 helps",
    ),
    (r"Python\.h: No such file", "apt-get install python3.11-dev"),
    (r"No CMAKE_CXX_COMPILER|CMAKE_CXX_COMPILER.*not set|bits/c\+\+config\.h", "apt-get install g++"),
    (r"CMAKE_MAKE_PROGRAM is not set|'make'|make: (command )?not found", "apt-get install make"),
    (r"Could not find.*(horovod|satisfies)|Connection|Temporary failure", "the package index could not be reached"),
)


class BuildError(Exception):
    """The build cannot go on; the text is the line to show."""


# --- identity ---------------------------------------------------------------------------------


def local_version(torch: str, flavour: str) -> str:
    """The PEP 440 local label that says what a wheel was built against and with which edits.

    It is part of the installed version (`0.28.1+torch2.13.0.cpu.p0a1b2c3d`), so "is the right
    wheel installed?" needs neither an import nor a record of its own that could go stale.
    """
    recipe = json.dumps([SDIST_SHA256, [asdict(e) for e in EDITS], ENVIRONMENT, GPU_ENVIRONMENT], sort_keys=True)
    # The letter keeps an all-digit hash from being normalised as a number.
    patch = "p" + hashlib.sha256(recipe.encode()).hexdigest()[:8]
    return f"torch{re.sub('[^a-z0-9]+', '.', torch.lower())}.{flavour}.{patch}"


def cache_key(version: str) -> str:
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return f"{version.replace('+', '-')}-{python}-{platform.system().lower()}_{platform.machine()}"


def is_installed(version: str) -> bool:
    try:
        installed = importlib.metadata.distribution("horovod")
    except importlib.metadata.PackageNotFoundError:
        return False
    compiled = Path(str(installed.locate_file("horovod/torch"))).glob("mpi_lib_v2*.so")
    return installed.version == version and any(compiled)


def cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "throughline" / "wheels"


# --- source -----------------------------------------------------------------------------------


def download_source(target: Path, log: Path) -> Path:
    """Download the source archive by name into a folder."""
    requirement = target / "requirement.txt"
    requirement.write_text(f"horovod=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
    # pip refuses a file with another hash before it runs anything in it.
    run_logged(
        pip("download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes",
            "--dest", str(target), "--requirement", str(requirement)),
        log, label="fetching the source",
    )  # fmt: skip
    requirement.unlink()
    return next(target.glob("horovod-*.tar.gz"))


def unpack_source(archive: Path, target: Path) -> Path:
    """Check the archive, unpack it, edit it; returns the unpacked tree."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        raise BuildError(f"{archive} has sha256 {digest}, expected {SDIST_SHA256}")
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    source = target / f"horovod-{VERSION}"
    for edit in EDITS:
        apply(edit, source)
    return source


def apply(edit: Edit, source: Path) -> None:
    path = source / edit.file
    text = path.read_text(encoding="utf-8")
    found = text.count(edit.old)
    if found != 1:
        raise BuildError(f"{edit.file}: the text to edit is there {found} times, expected once: {edit.old.strip()!r}")
    path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


# --- build ------------------------------------------------------------------------------------


def pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]


def jobs() -> int:
    """Compilers to run at once: one per core, but PyTorch's headers cost 1.5 GiB each."""
    asked = os.environ.get("THROUGHLINE_BUILD_JOBS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // (3 << 29)))


def build_environment(label: str, gpu: bool, work: Path) -> dict[str, str]:
    # Settings of another Horovod build, or of the make that called us, would change the result.
    foreign = ("HOROVOD_", "MAKE", "MFLAGS", "CMAKE_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    path = os.pathsep.join([sysconfig.get_paths()["scripts"], env.get("PATH", os.defpath)])
    cmake = shutil.which("cmake", path=path)
    if not cmake:
        raise BuildError("cmake is missing: run `make env`")
    env |= ENVIRONMENT | {
        "HOROVOD_LOCAL_VERSION": label,
        "HOROVOD_CMAKE": cmake,
        "PATH": path,
        "MAKEFLAGS": f"-j{jobs()}",
    }
    if gpu:
        cuda = cuda_home()
        env |= GPU_ENVIRONMENT | {
            "CUDA_HOME": str(cuda),
            "CUDAToolkit_ROOT": str(cuda),
            "HOROVOD_CUDA_HOME": str(cuda),
            "HOROVOD_NCCL_HOME": str(nccl_home(work)),
        }
    return env


def cuda_home() -> Path:
    """The CUDA toolkit to compile with; it must be of the major version PyTorch was built for."""
    nvcc = shutil.which("nvcc")
    home = Path(os.environ.get("CUDA_HOME") or (Path(nvcc).parent.parent if nvcc else "/usr/local/cuda"))
    program = "import torch; print(torch.version.cuda or '')"
    wanted = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip()
    if not wanted:
        raise BuildError("--gpu: the PyTorch installed here is a CPU build")
    major = wanted.split(".")[0]
    advice = f"install the CUDA toolkit {major} (Debian: cuda-toolkit-{major}, from NVIDIA's repository), set CUDA_HOME"
    if not (home / "bin" / "nvcc").exists():
        raise BuildError(f"--gpu needs the CUDA compiler nvcc, which is not in {home / 'bin'}: {advice}")
    says = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.", says)
    if not release or release[1] != major:
        found = release[1] if release else "unknown"
        raise BuildError(f"--gpu: nvcc in {home} is of CUDA {found}, PyTorch of CUDA {wanted}: {advice}")
    return home


def nccl_home(work: Path) -> Path:
    """The NCCL that PyTorch loads, laid out as a linker expects it (the package has only `.so.2`)."""
    libraries = (found for folder in sys.path for found in Path(folder, "nvidia", "nccl", "lib").glob("libnccl.so.*"))
    library = next(libraries, None)
    if library is None:
        raise BuildError("--gpu: the environment has no nvidia-nccl package beside PyTorch")
    home = work / "nccl"
    (home / "lib").mkdir(parents=True)
    (home / "lib" / "libnccl.so").symlink_to(library)
    (home / "include").symlink_to(library.parent.parent / "include")
    return home


def build_wheel(directory: Path, label: str, gpu: bool, archive: Path | None) -> Path:
    """Build in a directory of its own inside `directory`; the finished wheel appears by a rename.

    archive: the source, where it is not to be downloaded.
    """
    if not (shutil.which("g++") or shutil.which("c++") or shutil.which(os.environ.get("CXX", "g++"))):
        raise BuildError("no C++ compiler: apt-get install g++")
    if not shutil.which("make"):
        raise BuildError("make is missing: apt-get install make")
    for left_over in directory.glob("build-*"):  # of a build that was killed; we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    log = directory / "build.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=directory) as name:
        work = Path(name)
        env = build_environment(label, gpu, work)
        source = unpack_source(archive or download_source(work, log), work)
        run_logged(
            pip("wheel", "--verbose", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--no-index",
                "--wheel-dir", str(work / "out"), str(source)),
            log, label="compiling (once per PyTorch version, about 3 minutes on 2 cores)", env=env,
        )  # fmt: skip
        built = next((work / "out").glob("horovod-*.whl"))
        return built.rename(directory / built.name)


def run_logged(command: list[str], log: Path, label: str, env: dict[str, str] | None = None) -> None:
    """Run a command into the log, with a line of progress; raises BuildError with the log's end."""
    with log.open("ab") as sink:
        sink.write(f"\n$ {' '.join(command)}\n".encode())
        sink.flush()
        # A session of its own: compilers are grandchildren, and must not outlive us.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=env, start_new_session=True
        )
        progress = Progress(label)
        try:
            while True:
                try:
                    process.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    progress.show(percent(tail(log)))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            progress.end()
    if process.returncode:
        end = tail(log)
        remedy = next((f"\n  probably: {text}" for pattern, text in REMEDIES if re.search(pattern, end)), "")
        last = "\n".join("    " + line[:300] for line in end.splitlines()[-15:])
        raise BuildError(f"{label.split(' (')[0]} failed\n{last}{remedy}\n  the whole log: {log}")


def tail(log: Path, size: int = 16384) -> str:
    with log.open("rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - size))
        return handle.read().decode(errors="replace")


def percent(text: str) -> int | None:
    """How far the build says it is: make prints `[ 45%]`, ninja `[12/40]`."""
    marks = re.findall(r"\[\s*(\d+)(?:%|/(\d+))\]", text)
    if not marks:
        return None
    done, total = marks[-1]
    return int(done) if not total else 100 * int(done) // max(1, int(total))


class Progress:
    """One line rewritten every second on a terminal; elsewhere a line every half minute."""

    def __init__(self, label: str) -> None:
        self.label, self.started = label, time.monotonic()
        self.terminal, self.next_line = sys.stderr.isatty(), 30.0
        self.done: int | None = None
        say(label)

    def show(self, done: int | None) -> None:
        # Pages of compiler warnings can push the last mark out of sight.
        self.done = self.done if done is None else done
        elapsed = time.monotonic() - self.started
        text = f"{int(elapsed) // 60}:{int(elapsed) % 60:02d}" + ("" if self.done is None else f", {self.done} %")
        if self.terminal:
            write(f"\r\033[K  horovod: {text}")
        elif elapsed >= self.next_line:
            self.next_line += 30
            say(text)

    def end(self) -> None:
        if self.terminal:
            write("\r\033[K")


# --- installation -----------------------------------------------------------------------------


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One build per cache entry at a time; who comes second finds the wheel made."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build of the same wheel is running: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def install(wheel: Path) -> None:
    command = pip("install", "--quiet", "--no-index", "--no-deps", "--no-cache-dir", "--force-reinstall", str(wheel))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"could not install {wheel}\n{done.stderr.strip()}")


# Importing proves nothing: without its compiled part `horovod.torch` prints a warning and imports.
PROBE = """
import sys, torch, horovod.torch as hvd
hvd.init()
device = "cuda" if sys.argv[1] == "gpu" and torch.cuda.is_available() else "cpu"
assert hvd.allreduce(torch.ones(3, device=device), name="probe").tolist() == [1.0, 1.0, 1.0], "allreduce is wrong"
assert hvd.gloo_built(), "built without Gloo"
assert hvd.nccl_built() or sys.argv[1] == "cpu", "built without NCCL"
"""


def fault(flavour: str) -> str:
    """Empty if the installed Horovod works in one process; else the last line of what went wrong."""
    # Away from the checkout, where folders could stand in for installed packages.
    done = subprocess.run(
        [sys.executable, "-c", PROBE, flavour], cwd=sysconfig.get_paths()["purelib"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def ensure(gpu: bool, force: bool, archive: Path | None) -> None:
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise BuildError("PyTorch is not installed in this environment: run `make env`") from None
    flavour = "gpu" if gpu else "cpu"
    label = local_version(torch, flavour)
    version = f"{VERSION}+{label}"
    if not force and is_installed(version):
        return
    directory = cache_root() / cache_key(version)
    with locked(directory):
        if not force and is_installed(version):  # by the build we waited for
            return
        wheel = None if force else next(directory.glob("horovod-*.whl"), None)
        if wheel is not None:
            install(wheel)
            say(f"{version} installed from the cache")
            problem = fault(flavour)
            if not problem:
                return
            # Built where the C library or the compiler was another one.
            say(f"the cached wheel does not work here ({problem}): building it anew")
            wheel.unlink()
        wheel = build_wheel(directory, label, gpu, archive)
        install(wheel)
        if problem := fault(flavour):
            wheel.unlink()
            raise BuildError(f"built, but it does not work: {problem}\n  the whole log: {directory / 'build.log'}")
        say(f"{version} built and installed")


def say(text: str) -> None:
    write(f"  horovod: {text}\n")


def write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _stop(signum: int, frame: object) -> NoReturn:
    raise SystemExit(128 + signum)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="reduce with NCCL on NVIDIA GPUs (needs a CUDA toolkit)")
    parser.add_argument("--force", action="store_true", help="build and install even if there is a wheel")
    parser.add_argument("--source", type=Path, metavar="ARCHIVE", help="horovod's source, instead of downloading it")
    parser.add_argument("--download", type=Path, metavar="FOLDER", help="only put the source archive there")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)  # so that compilers and temporary folders go, too
    try:
        if arguments.download:
            log = arguments.download / "download.log"
            download_source(arguments.download, log)
            log.unlink()
        else:
            ensure(arguments.gpu, arguments.force, arguments.source)
    except BuildError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
