"""The target on this machine: what it writes, requests of the server, and puts back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from tests.support.sealed import seal_model
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.records import GateDecision, ModelRecord, Revision, RuleVerdict
from throughline.registry import decisions
from throughline.rollout.admission import require_release
from throughline.rollout.local import LocalTarget
from throughline.rollout.promotion import serve
from throughline.rollout.revision import FILE, only, read_revisions, revision_of, write_revisions
from throughline.usecase import get_usecase

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = ModelRecord(
    name="flight_delay",
    version=4,
    run_id="r",
    sha256="a" * 64,
    uri="/nowhere",
    dataset_fingerprint="f",
    trained_until=NOW,
    trainer="t",
    parameters={},
)
PASSED = RuleVerdict(rule="auc", verdict="pass", value=0.75, bound="at least 0.72")
RELEASE = GateDecision(model="flight_delay/4", sha256="a" * 64, decision="release", decided_at=NOW, rules=[PASSED])


def test_with_no_server_nothing_is_deployed_and_the_disk_is_as_before(tmp_path):
    settings = Settings(home=tmp_path / "home", port_base=1500)
    registered = tmp_path / "registered"
    registered.mkdir()
    (registered / "model.onnx").write_bytes(b"bytes")
    model = seal_model(settings, registered, version=4)
    folder = settings.serving_home / "flight_delay"
    decision = decisions.recorded(settings, "flight_delay", RELEASE.model_copy(update={"sha256": model.sha256}))
    require_release(settings, get_usecase("flight_delay"), model, decision)
    with pytest.raises(ThroughlineError, match="throughline up"):
        serve(LocalTarget(settings), get_usecase("flight_delay"), model)
    assert not (folder / FILE).exists()

    before = revision_of("flight_delay", MODEL.model_copy(update={"version": 1}), NOW)
    write_revisions(folder, only(before))
    with pytest.raises(ThroughlineError, match="throughline up"):
        serve(LocalTarget(settings), get_usecase("flight_delay"), model)
    assert read_revisions(folder) == only(before)


def test_a_revision_cannot_point_outside_its_folder():
    good = revision_of("flight_delay", MODEL, NOW)
    for file in ("/etc/passwd", "../other/1/model.onnx"):
        with pytest.raises(ValidationError):
            Revision.model_validate(good.model_dump() | {"file": file})


def test_a_damaged_revision_file_is_one_clear_line(tmp_path):
    (tmp_path / FILE).write_text("{half")
    with pytest.raises(ThroughlineError, match="deploy the version again"):
        read_revisions(tmp_path)
    assert read_revisions(tmp_path / "nothing") is None
