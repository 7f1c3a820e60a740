"""What is materialised again when code changes: what that code decides, and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from assets import code
from assets.deployment import deployment_assets
from assets.evaluation import evaluation_assets
from assets.monitoring import monitoring_assets
from assets.online import online_assets
from assets.training import training_assets
from throughline.foundation.fingerprint import combine, fingerprint_code
from throughline.foundation.settings import PROJECT_ROOT
from throughline.usecase import get_usecase

Versions = dict[str, str]


ROOMS = (online_assets, training_assets, evaluation_assets, deployment_assets, monitoring_assets)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Versions]:
    """The code version of every asset that our own code makes, as if `changed` had another content."""
    usecase = get_usecase("flight_delay")

    def versions(changed: Path | str | None = None) -> Versions:
        def fingerprint(places: Iterable[Path | str]) -> str:
            places = list(places)
            return combine(fingerprint_code(places), "changed") if changed in places else fingerprint_code(places)

        monkeypatch.setattr(code, "fingerprint_code", fingerprint)
        specs = [spec for room in ROOMS for made in room(usecase).assets for spec in made.specs]
        return {spec.key.to_user_string(): spec.code_version for spec in specs}

    return versions


def test_a_change_of_code_makes_old_what_it_decides_and_nothing_else(versions: Callable[..., Versions]) -> None:
    before = versions()
    expected = {
        "throughline.monitoring.calibration": {"flight_delay/monitoring/calibration"},
        "throughline.evaluation.gate": {"flight_delay/evaluation/gate"},
        "throughline.featurestore.materialise": {"flight_delay/features/online_store"},
        "throughline.featurestore.dataset": {"flight_delay/training/dataset"},
        PROJECT_ROOT / "platform/throughline/evaluation/card.html.j2": {"flight_delay/evaluation/card"},
        "throughline.services.control": set(),
    }
    for module, assets in expected.items():
        after = versions(module)
        assert {key for key in before if before[key] != after[key]} == assets, module


def test_no_code_version_is_counted_by_hand() -> None:
    counted = [
        f"{path.name}:{node.value.lineno}"
        for path in (PROJECT_ROOT / "assets").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "code_version" and isinstance(node.value, ast.Constant)
    ]
    assert counted == []
