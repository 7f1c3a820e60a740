"""The doctor names what is missing and what supplies it."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import load_settings
from throughline.services import doctor


def fake_java(folder: Path, release: str | None, prints: str = "") -> Path:
    (folder / "bin").mkdir(parents=True)
    java = folder / "bin" / "java"
    java.write_text(f"#!/bin/sh\necho '{prints}' >&2\n")
    java.chmod(0o755)
    if release is not None:
        (folder / "release").write_text(release)
    return folder


@pytest.mark.parametrize(
    ("text", "major"), [("17.0.15", 17), ("21", 21), ("1.8.0_402", 8), ("11.0.2-ea", 11), ("x", None)]
)
def test_javas_two_ways_of_counting_are_understood(text, major) -> None:
    assert doctor.java_major(text) == major


def test_java_is_the_one_spark_will_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake_java(tmp_path / "old", 'IMPLEMENTOR="x"\nJAVA_VERSION="11.0.2"\n')
    new = fake_java(tmp_path / "new", None, 'openjdk version "21.0.3" 2024-04-16')
    monkeypatch.setenv("PATH", f"{old / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert doctor.java_version() == 11
    monkeypatch.setenv("JAVA_HOME", str(new))
    assert doctor.java_version() == 21
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    assert doctor.java_version() is None


@pytest.mark.parametrize(
    ("check", "command"),
    [
        (doctor.check_java(None), "apt-get install openjdk-17-jre-headless"),
        (doctor.check_java(11), "apt-get install openjdk-17-jre-headless"),
        (doctor.check_compiler(None), "apt-get install g++"),
        (doctor.check_python((3, 12)), "apt-get install python3.11-venv"),
        (doctor.check_horovod(False), "make env"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_supplies_it(check, command) -> None:
    assert not check.ok
    assert check.required
    assert command in check.fix


def test_little_memory_is_a_note_and_no_obstacle() -> None:
    check = doctor.check_memory(4)
    assert not check.ok
    assert doctor.failed([check]) == []


def test_a_home_that_cannot_be_written_is_found_before_anything_runs(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert not doctor.check_home(blocked / "home").ok
    assert doctor.check_home(tmp_path / "a" / "b").ok
    assert not (tmp_path / "a").exists()


def test_a_full_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GiB free" in doctor.check_disk(tmp_path).found
    monkeypatch.setattr(doctor, "DISK_GIB", 1e9)
    assert not doctor.check_disk(tmp_path).ok


def test_the_compiler_is_asked_for_only_while_horovod_is_not_built(tmp_path: Path, monkeypatch) -> None:
    settings = load_settings(home=tmp_path / "h", port_base=64960, spark_remote="sc://elsewhere:15002")
    for built in (True, False):
        monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _, built=built: object() if built else None)
        names = [check.name for check in doctor.examine(settings)]
        assert ("C++ compiler" in names) is not built
        assert "Java" not in names  # nothing here runs Spark


def test_a_port_held_by_another_process_stops_a_run_and_names_that_process(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        settings = load_settings(home=tmp_path / "h", port_base=listener.getsockname()[1])
        with pytest.raises(ThroughlineError, match=rf"Ports: taken: .*{os.getpid()}.*THROUGHLINE_PORT_BASE") as stopped:
            doctor.require(settings)
    assert "\n" not in str(stopped.value)


def test_the_examination_is_quick_enough_to_stand_before_every_run(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "h", port_base=64960)
    doctor.examine(settings)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        doctor.examine(settings)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.3


def test_no_heavy_module_is_imported_to_see_whether_it_is_there(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from throughline.services import doctor;"
        "from throughline.foundation.settings import load_settings;"
        f"doctor.examine(load_settings(home={str(tmp_path)!r}, port_base=64960));"
        "print([m for m in ('horovod', 'torch', 'pyspark') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
