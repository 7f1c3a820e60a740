"""Horovod is built from the source that was checked, against the NCCL that PyTorch loads."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from throughline.foundation.settings import PROJECT_ROOT


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("horovod_build", PROJECT_ROOT / "deploy" / "horovod" / "build.py")
    assert spec
    assert spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_source_archive_with_another_digest_is_refused_before_it_is_unpacked(build, tmp_path):
    archive = tmp_path / "horovod-0.28.1.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(build.BuildError, match="expected 92a43f5a"):
        build.unpack_source(archive, tmp_path)
    assert list(tmp_path.iterdir()) == [archive]


def test_an_edit_whose_text_is_not_there_exactly_once_stops_the_build(build, tmp_path):
    (tmp_path / "file").write_text("a a")
    with pytest.raises(build.BuildError, match="2 times, expected once"):
        build.apply(build.Edit("file", "a", "b"), tmp_path)


def test_nccl_is_found_in_any_folder_of_pythons_path(build, tmp_path, monkeypatch):
    """An environment on top of another has PyTorch, and NCCL beside it, in the other's folder."""
    package = tmp_path / "below" / "nvidia" / "nccl"
    (package / "lib").mkdir(parents=True)
    (package / "include").mkdir()
    (package / "lib" / "libnccl.so.2").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "own"), str(tmp_path / "below")])
    home = build.nccl_home(tmp_path / "work")
    assert (home / "lib" / "libnccl.so").resolve() == package / "lib" / "libnccl.so.2"
    assert (home / "include").resolve() == package / "include"
    monkeypatch.setattr(sys, "path", [str(tmp_path / "own")])
    with pytest.raises(build.BuildError, match="no nvidia-nccl package"):
        build.nccl_home(tmp_path / "again")


def test_only_the_gpu_build_asks_for_nccl_and_settings_of_the_caller_do_not_count(build, tmp_path, monkeypatch):
    monkeypatch.setenv("HOROVOD_GPU_OPERATIONS", "MPI")
    monkeypatch.setattr(build, "cuda_home", lambda: tmp_path / "cuda")
    monkeypatch.setattr(build, "nccl_home", lambda work: work / "nccl")
    assert "HOROVOD_GPU_OPERATIONS" not in build.build_environment("label", gpu=False, work=tmp_path)
    env = build.build_environment("label", gpu=True, work=tmp_path)
    assert (env["HOROVOD_GPU_OPERATIONS"], env["HOROVOD_NCCL_LINK"]) == ("NCCL", "SHARED")
    assert env["HOROVOD_NCCL_HOME"] == str(tmp_path / "nccl")
    assert env["HOROVOD_CUDA_HOME"] == str(tmp_path / "cuda")
