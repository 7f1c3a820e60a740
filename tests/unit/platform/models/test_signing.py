"""Only files that a trusted key signed, complete and unchanged, are loaded; a refusal has a reason and is recorded."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from serving.metrics import Metrics
from serving.repository import Repository, RevisionRefused
from tests.support.fake_store_server import USECASE, FakeFeatureReader, model_bytes, put_revision
from tests.support.sealed import seal_model
from throughline.events.outbox import Outbox
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT, Settings, load_settings
from throughline.models.served_model import sha256_of
from throughline.models.signing import SIGNATURE, own_key, sign, verify
from throughline.records import ModelRecord
from throughline.registry import history
from throughline.registry import versions as models
from throughline.rollout.placing import place_folder
from throughline.rollout.revision import revision_of
from throughline.usecase import get_usecase

FILES = {
    "MLmodel": b"flavors:\n  onnx:\n    data: model.onnx\n",
    "conda.yaml": b"name: mlflow-env\n",
    "python_env.yaml": b"python: 3.11\n",
    "requirements.txt": b"onnx\n",
}
ROUNDS = 60  # of two processes that race for a key
MAKES_KEYS = """
import hashlib, sys
from pathlib import Path
from throughline.models.signing import own_key
from throughline.foundation.settings import load_settings

own_key(load_settings(home=Path(sys.argv[1]).with_name(sys.stdin.readline().strip())))  # to have everything imported
for settings in [load_settings(home=home) for home in sys.argv[1:]]:
    print("ready", flush=True)
    sys.stdin.readline()
    print(hashlib.sha256(own_key(settings).read_bytes()).hexdigest(), flush=True)
"""
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Payload:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.fixture
def record(tmp_path: Path, settings: Settings) -> ModelRecord:
    """A registered version, its folder signed."""
    made = tmp_path / "artifacts"
    made.mkdir()
    for name, content in {**FILES, "model.onnx": model_bytes()}.items():
        (made / name).write_bytes(content)
    return seal_model(settings, made, version=3, parameters={"leaves": [7, 31], "rate": 0.1})


@pytest.fixture
def folder(record: ModelRecord) -> Path:
    return Path(record.uri)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "the-payload-ran"


def change(name: str) -> Callable[[Path, Path], None]:
    def flip(folder: Path, _: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return flip


def add_pickle(name: str) -> Callable[[Path, Path], None]:
    def add(folder: Path, trace: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(Payload(trace)))

    return add


def pickle_as_model(folder: Path, trace: Path) -> None:
    (folder / "model.onnx").write_bytes(pickle.dumps(Payload(trace)))


def link(folder: Path, _: Path) -> None:
    secret = folder.parent / "secret"
    secret.write_bytes((folder / "MLmodel").read_bytes())
    (folder / "MLmodel").unlink()
    (folder / "MLmodel").symlink_to(secret)


def sign_in_another_home(folder: Path, _: Path) -> None:
    sign(load_settings(home=folder.parent / "another-home"), folder)


def forge(folder: Path, _: Path) -> None:
    """Another model, with its own digest in the statement under the signature of the first."""
    import base64
    import hashlib

    bundle = json.loads((folder / SIGNATURE).read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    (folder / "model.onnx").write_bytes(model_bytes(bias=2.0))
    total = hashlib.sha256()
    for file in statement["predicate"]["resources"]:
        file["digest"] = sha256_of(folder / file["name"])
        total.update(bytes.fromhex(file["digest"]))
    statement["subject"][0]["digest"]["sha256"] = total.hexdigest()
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (folder / SIGNATURE).write_text(json.dumps(bundle))


def certify(folder: Path, _: Path) -> None:
    """A signature by certificate, as Sigstore makes it."""
    bundle = json.loads((folder / SIGNATURE).read_text())
    bundle["verificationMaterial"] = {"certificate": {"rawBytes": ""}, "tlogEntries": []}
    (folder / SIGNATURE).write_text(json.dumps(bundle))


TAMPERED = {
    "a byte of the model": (change("model.onnx"), r"not what was signed \(changed: model.onnx\)"),
    "a byte of MLmodel": (change("MLmodel"), r"not what was signed \(changed: MLmodel\)"),
    "a pickle added": (add_pickle("model.pkl"), r"not what was signed \(added: model.pkl\)"),
    "a pickle in a folder of git": (add_pickle(".git/model.pkl"), r"not what was signed \(added: .git/model.pkl\)"),
    "a pickle as the model": (pickle_as_model, r"not what was signed \(changed: model.onnx\)"),
    "a file removed": (lambda folder, _: (folder / "conda.yaml").unlink(), r"not what was signed \(removed: conda"),
    "a link in place of a file": (link, r"not what was signed \(changed: MLmodel\)"),
    "no signature": (lambda folder, _: (folder / SIGNATURE).unlink(), "has no signature"),
    "half a signature": (lambda folder, _: os.truncate(folder / SIGNATURE, 300), "no valid signature .*damaged"),
    "no JSON": (lambda folder, _: (folder / SIGNATURE).write_text("[" * 100_000), "no valid signature .*damaged"),
    "another statement": (forge, "signature of .* does not hold"),
    "a certificate": (certify, "signed by Sigstore, which is not trusted"),
    "another home's key": (sign_in_another_home, r"signed with the key [0-9a-f]{12}, which is not trusted"),
}


def events(settings: Settings) -> list[str]:
    return [f"{event.actor} {event.action} {event.target}" for event in history.events(settings, USECASE)]


def test_what_was_signed_is_fetched_whole_and_scores(settings, record, tmp_path):
    file = models.fetch(settings, record, tmp_path / "copy")
    assert {path.name for path in file.parent.iterdir()} == {*FILES, "model.onnx", "provenance.json", SIGNATURE}
    assert verify(settings, file.parent)["model.onnx"] == sha256_of(file) == record.sha256
    frame = pl.DataFrame({"departure_hour": [5.0], "aircraft_flights": [1.0], "carrier": ["B6"]})
    assert 0 < models.load(settings, record).score(frame)[0] < 1
    assert not events(settings)


@pytest.mark.parametrize("how", TAMPERED)
def test_a_version_changed_in_the_registry_is_refused_and_recorded(settings, folder, record, trace, tmp_path, how):
    tamper, problem = TAMPERED[how]
    tamper(folder, trace)
    copy = tmp_path / "copy"
    with pytest.raises(ThroughlineError, match=rf"^Model {USECASE}/3 is refused: .*{problem}") as refusal:
        models.fetch(settings, record, copy)
    assert "\n" not in str(refusal.value)
    assert str(folder) in str(refusal.value)
    assert not list(copy.iterdir())
    (event,) = history.events(settings, USECASE, target=record.reference, action="refused")
    assert (event.actor, event.reason in str(refusal.value)) == ("graph", True)

    with pytest.raises(ThroughlineError, match=problem):  # before it is evaluated
        models.load(settings, record)
    place = settings.serving_home / USECASE / "3"
    with pytest.raises(ThroughlineError, match=problem):  # before it is served
        place_folder(settings, record, place)
    assert not place.exists()
    assert not trace.exists()


def test_a_pickle_is_refused_even_when_a_trusted_key_signed_it(settings, folder, record, trace, tmp_path):
    add_pickle("python_model.pkl")(folder, trace)
    sign(settings, folder)
    with pytest.raises(ThroughlineError, match=r"holds python_model.pkl, which is no part of a registered model"):
        models.fetch(settings, record, tmp_path / "copy")
    assert not trace.exists()
    assert events(settings) == [f"graph refused {record.reference}"]


def test_the_folder_of_another_version_is_refused_even_with_a_valid_signature(settings, folder, record, tmp_path):
    (folder / "model.onnx").write_bytes(model_bytes(bias=2.0))
    sign(settings, folder)
    with pytest.raises(ThroughlineError, match=f"holds another model .*registered: {record.sha256[:12]}"):
        models.fetch(settings, record, tmp_path / "copy")
    assert events(settings) == [f"graph refused {record.reference}"]


@pytest.mark.parametrize(
    "change",
    [
        {"dataset_fingerprint": "of-newer-rows"},
        {"trained_until": datetime(2013, 1, 1, tzinfo=UTC)},  # or a model could be judged on rows that it has seen
        {"trainer": "honest"},
        {"parameters": {"leaves": [7, 31], "rate": 0.2}},
        {"run_id": "of-another"},
        {"name": "another"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_version_whose_tags_differ_from_what_was_signed_is_refused(settings, record, tmp_path, change):
    claimed = record.model_copy(update=change)
    with pytest.raises(ThroughlineError, match=rf"signed with another {next(iter(change))} than MLflow's tags have"):
        models.fetch(settings, claimed, tmp_path / "copy")
    (event,) = history.events(settings, claimed.name, action="refused")
    assert (event.target, next(iter(change)) in event.reason) == (str(claimed.reference), True)
    assert models.fetch(settings, record, tmp_path / "copy").exists()


def test_a_signed_model_without_provenance_is_refused(settings, folder, record, tmp_path):
    (folder / "provenance.json").unlink()
    sign(settings, folder)
    with pytest.raises(ThroughlineError, match=r"no statement of its origin \(provenance\.json\): train it again"):
        models.fetch(settings, record, tmp_path / "copy")


def test_a_model_is_refused_even_when_the_history_cannot_be_written(settings, folder, record, tmp_path):
    change("model.onnx")(folder, tmp_path)
    settings.lakehouse.parent.mkdir(parents=True, exist_ok=True)
    settings.lakehouse.write_text("no folder")
    with pytest.raises(ThroughlineError, match=r"changed: model\.onnx"):
        models.fetch(settings, record, tmp_path / "copy")


def test_a_key_is_trusted_once_its_public_key_is_in_the_folder(settings, folder, tmp_path):
    another = load_settings(home=tmp_path / "another-home")
    sign(another, folder)
    with pytest.raises(ThroughlineError, match=str(settings.keys / "trusted")):
        verify(settings, folder)
    trusted = settings.keys / "trusted"
    trusted.mkdir(parents=True)
    (trusted / "colleague.pub").write_bytes((another.keys / "signing.pub").read_bytes())
    assert verify(settings, folder)
    (trusted / "broken.pub").write_text("no key")
    with pytest.raises(ThroughlineError, match=r"broken.pub is not a public key in PEM"):
        verify(settings, folder)


def test_a_home_that_only_serves_needs_no_private_key(settings, folder):
    (settings.keys / "signing.pem").unlink()
    assert verify(settings, folder)
    with pytest.raises(ThroughlineError, match=r"signing\.pem is missing.*restore it"):
        sign(settings, folder)


def test_a_signer_that_cannot_sign_is_not_replaced_by_the_homes_key(settings, folder):
    (folder / SIGNATURE).unlink()
    with pytest.raises(ThroughlineError, match=r"cannot be signed .*setting `signing`"):
        sign(settings.model_copy(update={"signing": "pkcs11:token=none;object=none"}), folder)
    assert not (folder / SIGNATURE).exists()


def test_only_the_owner_can_read_the_private_key(settings):
    before = os.umask(0)
    try:
        private = own_key(settings)
    finally:
        os.umask(before)
    assert private.stat().st_mode & 0o777 == 0o600
    assert private.parent.stat().st_mode & 0o777 == 0o700
    assert (private.parent / "signing.pub").stat().st_mode & 0o777 == 0o644
    assert b"PRIVATE" in private.read_bytes()
    assert b"PRIVATE" not in (private.parent / "signing.pub").read_bytes()
    made = private.read_bytes()
    assert own_key(settings).read_bytes() == made
    assert {path.name for path in private.parent.iterdir()} == {"signing.pem", "signing.pub"}


def test_processes_that_start_at_once_end_with_one_key(tmp_path):
    """Both ask for the key of one new home after the other, at a signal: they are given the same, and its public half
    is the one that is trusted."""
    homes = [tmp_path / str(number) for number in range(ROUNDS)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT / "platform")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MAKES_KEYS, *map(str, homes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, bufsize=1,
        )
        for _ in range(2)
    ]  # fmt: skip
    given = []
    for number, process in enumerate(processes):
        print(f"warm-{number}", file=process.stdin)
    for _ in homes:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        for process in processes:
            print(file=process.stdin)
        given.append([process.stdout.readline() for process in processes])
    assert [process.communicate(timeout=60) for process in processes] == [("", None)] * 2
    assert all(one == other != "" for one, other in given)
    for home in homes:
        settings = load_settings(home=home)
        folder = home / "folder"
        folder.mkdir()
        (folder / "file").write_text("content")
        sign(settings, folder)
        assert verify(settings, folder).keys() == {"file"}
        assert {path.name for path in settings.keys.iterdir()} == {"signing.pem", "signing.pub"}


def test_any_folder_can_be_signed_and_every_file_is_verified(settings, tmp_path):
    names = ["card.md", ".gitignore", ".git/config", "plots/reliability.png"]
    for name in names:
        (tmp_path / "card" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "card" / name).write_text("content")
    sign(settings, tmp_path / "card")
    assert verify(settings, tmp_path / "card").keys() == set(names)
    for name in names:
        file = tmp_path / "card" / name
        file.write_text("changed")
        with pytest.raises(ThroughlineError, match=rf"not what was signed \(changed: {name}\)"):
            verify(settings, tmp_path / "card", where="the card")
        file.write_text("content")


def test_files_that_a_signature_lists_as_ignored_are_verified(settings, folder, trace):
    """OpenSSF's own tool leaves files of git out of what it signs."""
    import model_signing.hashing
    import model_signing.signing

    add_pickle(".git/hook.pkl")(folder, trace)
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=True)
    signer = model_signing.signing.Config().set_hashing_config(hashing)
    signer.use_elliptic_key_signer(private_key=own_key(settings)).sign(folder, folder / SIGNATURE)
    with pytest.raises(ThroughlineError, match=r"added: .git/hook.pkl"):
        verify(settings, folder)


@pytest.mark.parametrize("signing", ["pkcs11:token=t?pin-value=1234", "gpg", ""])
def test_an_unknown_signer_is_refused_without_repeating_it(signing):
    with pytest.raises(ThroughlineError, match=r"signing: .*pin-source") as refusal:
        load_settings(signing=signing)
    assert "1234" not in str(refusal.value)


# Serving


@pytest.fixture
def repository(settings) -> Any:
    outbox = Outbox(settings.outboxes / "0")
    made = Repository(settings, {USECASE: get_usecase(USECASE)}, FakeFeatureReader, outbox.publish, Metrics(outbox))
    yield made
    made.close()
    outbox.close()


@pytest.mark.parametrize("how", TAMPERED)
def test_the_server_refuses_a_changed_revision_and_keeps_serving_the_one_before(settings, repository, trace, how):
    put_revision(settings, version=1)
    repository.load(USECASE)
    put_revision(settings, version=2, bias=1.0)
    place = settings.serving_home / USECASE / "2"
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    sign(settings, place)
    tamper, problem = TAMPERED[how]
    tamper(place, trace)
    with pytest.raises(RevisionRefused, match=problem):
        repository.load(USECASE)
    assert [entry["version"] for entry in repository.served()] == [1]
    assert events(settings) == [f"graph refused {USECASE}/2"]
    assert not trace.exists()


def test_a_version_deployed_before_is_served_without_the_registry(settings, folder, record):
    place = settings.serving_home / USECASE / "3"
    place_folder(settings, record, place)
    gone = record.model_copy(update={"uri": str(folder.with_name("gone"))})
    folder.rename(gone.uri)
    before = (place / "model.onnx").stat().st_ino
    place_folder(settings, record, place)
    assert (place / "model.onnx").stat().st_ino == before


def test_a_changed_deployed_version_is_replaced_by_the_registered_one(settings, record, trace):
    place = settings.serving_home / USECASE / "3"
    place_folder(settings, record, place)
    add_pickle("model.pkl")(place, trace)
    change("model.onnx")(place, trace)
    place_folder(settings, record, place)
    assert verify(settings, place)["model.onnx"] == record.sha256
    assert revision_of(USECASE, record, NOW).file == "3/model.onnx"
    assert [path.name for path in place.parent.iterdir()] == ["3"]
    assert events(settings) == [f"graph refused {record.reference}"]
