"""A version is loaded only on a signed statement of the gate's release of that very version and file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serving import loading
from tests.support.fake_store_server import USECASE, model_bytes, put_revision
from tests.support.sealed import release_of, seal_model
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.models.signing import PUBLIC, sign
from throughline.records import ModelRecord, Revision
from throughline.registry import decisions, history, statement
from throughline.rollout.admission import require_release
from throughline.rollout.placing import place
from throughline.rollout.revision import read_revisions, revision_of
from throughline.usecase import get_usecase


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home")


@pytest.fixture
def revision(settings: Settings) -> Revision:
    """Version 1, deployed as released."""
    return put_revision(settings, version=1)


def served(settings: Settings) -> Path:
    return settings.serving_home / USECASE


def stated(settings: Settings, version: int = 1) -> Path:
    return served(settings) / "releases" / str(version)


def load(settings: Settings, revision: Revision) -> str:
    return loading.load(settings, served(settings), revision).served.sha256


def experiment(settings: Settings, folder: Path, bias: float = 3.0) -> ModelRecord:
    """A version that the gate has not released, its folder signed by this home as at any registration."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model_bytes(bias))
    return seal_model(settings, folder, version=7)


def test_a_released_version_is_loaded(settings: Settings, revision: Revision) -> None:
    assert load(settings, revision) == revision.sha256


def test_an_experiment_in_the_place_of_a_released_version_is_refused(settings: Settings, revision: Revision) -> None:
    """Its signed folder copied over the deployed one, the file of revisions edited by hand."""
    shutil.rmtree(served(settings) / "1")
    model = experiment(settings, served(settings) / "1")
    text = (served(settings) / "revisions.json").read_text().replace(revision.sha256, model.sha256)
    (served(settings) / "revisions.json").write_text(text)
    edited = read_revisions(served(settings)).stable
    assert (edited.version, edited.sha256) == (1, model.sha256)
    with pytest.raises(ThroughlineError, match=rf"^Model {USECASE}/1 is refused: .* not of digest {model.sha256[:12]}"):
        load(settings, edited)
    (refused,) = history.events(settings, USECASE, action="refused")
    assert refused.target == f"{USECASE}/1"


@pytest.mark.parametrize("role", ["stable", "canary", "shadow"])
def test_a_version_that_was_never_released_is_refused_in_every_role(settings: Settings, role: str) -> None:
    model = experiment(settings, served(settings) / "2").model_copy(update={"version": 2})
    revision = revision_of(USECASE, model, release_of(model).decided_at).model_copy(update={"role": role})
    with pytest.raises(ThroughlineError, match="has no statement of its release") as refused:
        load(settings, revision)
    assert "\n" not in str(refused.value)


def test_the_statement_of_another_version_use_case_or_file_is_refused(settings: Settings, revision: Revision) -> None:
    other = put_revision(settings, version=2, bias=1.0)
    shutil.rmtree(stated(settings, 2))
    shutil.copytree(stated(settings, 1), stated(settings, 2))
    with pytest.raises(ThroughlineError, match=f"states the release of {USECASE}/1"):
        load(settings, other)
    for change in ({"name": "another"}, {"version": 2}, {"sha256": "0" * 64}):
        with pytest.raises(ThroughlineError, match="states the release of"):
            statement.require(settings, revision.model_copy(update=change))
    shutil.copytree(settings.serving_home / USECASE, settings.serving_home / "another")
    with pytest.raises(ThroughlineError, match=f"for {USECASE}"):
        statement.require(settings, revision.model_copy(update={"usecase": "another"}))


def _edit(folder: Path, settings: Settings) -> None:
    content = json.loads((folder / statement.FILE).read_text())
    content["decision"]["sha256"] = "f" * 64
    (folder / statement.FILE).write_text(json.dumps(content))


def _add(folder: Path, settings: Settings) -> None:
    (folder / "other.json").write_text("{}")


def _sign_more(folder: Path, settings: Settings) -> None:
    _add(folder, settings)
    sign(settings, folder)


def _sign_nonsense(folder: Path, settings: Settings) -> None:
    (folder / statement.FILE).write_text('{"usecase": 1}')
    sign(settings, folder)


def _sign_elsewhere(folder: Path, settings: Settings) -> None:
    sign(load_settings(home=settings.home.with_name("elsewhere")), folder)


def _sign_reject(folder: Path, settings: Settings) -> None:
    content = json.loads((folder / statement.FILE).read_text())
    content["decision"]["decision"] = "reject"
    (folder / statement.FILE).write_text(json.dumps(content))
    sign(settings, folder)


TAMPERED: dict[str, tuple[Callable[[Path, Settings], None], str]] = {
    "edited": (_edit, "changed: release.json"),
    "with another file": (_add, "added: other.json"),
    "unsigned": (lambda folder, _: (folder / "model.sig").unlink(), "has no signature"),
    "with another signed file": (_sign_more, "holds other files"),
    "signed nonsense": (_sign_nonsense, "cannot be read"),
    "of a key that is not trusted": (_sign_elsewhere, "which is not trusted"),
    "of a rejection": (_sign_reject, "states the reject of"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_statement_that_was_changed_is_refused(settings: Settings, revision: Revision, how: str) -> None:
    change, problem = TAMPERED[how]
    change(stated(settings), settings)
    with pytest.raises(ThroughlineError, match=rf"^Model {USECASE}/1 is refused: .*{problem}"):
        load(settings, revision)


def test_a_statement_of_a_home_whose_key_is_trusted_holds(settings: Settings, revision: Revision) -> None:
    """As on a cluster, where another home deploys than the one that serves."""
    serves = load_settings(home=settings.home.with_name("serves"))
    shutil.copytree(settings.serving_home, serves.serving_home)
    with pytest.raises(ThroughlineError, match="is not trusted"):
        statement.require(serves, revision)
    (serves.keys / "trusted").mkdir(parents=True)
    shutil.copy(settings.keys / PUBLIC, serves.keys / "trusted" / "deploys.pub")
    statement.require(serves, revision)


# Issuing


def test_only_what_the_history_released_is_placed_and_stated(settings: Settings, tmp_path: Path) -> None:
    usecase, model = get_usecase(USECASE), experiment(settings, tmp_path / "registered")
    with pytest.raises(ThroughlineError, match="the history has no release of its registered file"):
        place(settings, usecase, model)
    assert not served(settings).exists()
    rejected = release_of(model).model_copy(update={"decision": "reject"})
    decisions.recorded(settings, USECASE, rejected)
    other_file = release_of(model).model_copy(update={"sha256": "0" * 64})
    decisions.recorded(settings, USECASE, other_file)
    with pytest.raises(ThroughlineError, match="no release of its registered file"):
        place(settings, usecase, model)
    decision = decisions.recorded(settings, USECASE, release_of(model))
    require_release(settings, usecase, model, decision)
    place(settings, usecase, model)
    revision = revision_of(USECASE, model, decision.decided_at)
    assert load(settings, revision) == model.sha256
    assert [path.name for path in stated(settings, 7).parent.iterdir()] == ["7"]


def test_issuing_again_leaves_a_statement_as_it_is_and_mends_a_damaged_one(settings: Settings, tmp_path: Path) -> None:
    model = experiment(settings, tmp_path / "registered")
    decision = release_of(model)
    for damage in (lambda: None, lambda: _edit(stated(settings, 7), settings)):
        statement.issue(settings, USECASE, decision)
        before = (stated(settings, 7) / "model.sig").read_bytes()
        statement.issue(settings, USECASE, decision)
        assert (stated(settings, 7) / "model.sig").read_bytes() == before
        damage()
    statement.issue(settings, USECASE, decision)
    statement.require(settings, revision_of(USECASE, model, decision.decided_at))


def test_a_rejection_is_never_stated_as_a_release(settings: Settings, tmp_path: Path) -> None:
    model = experiment(settings, tmp_path / "registered")
    for kind in ("reject", "wait"):
        with pytest.raises(ThroughlineError, match=f"decision is {kind}"):
            statement.issue(settings, USECASE, release_of(model).model_copy(update={"decision": kind}))
    assert not stated(settings, 7).exists()
