"""Rollouts on a real model server: good versions are promoted, each kind of bad one goes back with its reason, and
whatever happens, every request is answered by the good copy.

The registry is a fake (a rollout does not train), features come from memory, requests are made up.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from tests.support import servers
from tests.support.bad_models import bad_model
from tests.support.fake_store_server import USECASE, model_bytes
from tests.support.replayed import requests, without_tables
from tests.support.sealed import release_of, seal_model
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import Principal
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.models.served_model import sha256_of
from throughline.records import ModelRecord
from throughline.registry import decisions
from throughline.rollout import controller, placing, promotion, running
from throughline.rollout.local import LocalTarget
from throughline.rollout.state import Rollout
from throughline.usecase import UseCase, get_usecase
from throughline.usecase.release import Release

pytestmark = pytest.mark.e2e

SERVER = PROJECT_ROOT / "tests" / "support" / "fake_store_server.py"
ADA = Principal("ada")
LOAD_S = 20
CANARY = {
    "strategy": "canary", "steps": [0.2, 0.5], "dwell": "1s", "samples": 100, "deadline": "2m",
    # the machine of the tests may be busy with something else for a while
    "judge": {"latency": {"floor_ms": 20}},
}  # fmt: skip


class Place:
    """A model server, the versions in its home, and the alias."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.target = LocalTarget(settings)
        self.models: dict[int, ModelRecord] = {}
        self.alias: ModelReference | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def usecase(self, **plan: Any) -> UseCase:
        declared = TypeAdapter(Release).validate_python(CANARY | plan)
        return get_usecase(USECASE).model_copy(update={"release": declared})

    def start(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT / "platform"), str(PROJECT_ROOT)]),
            "THROUGHLINE_HOME": str(self.settings.home),
            "THROUGHLINE_PORT_BASE": str(self.settings.port_base),
            "THROUGHLINE_MODEL_LOAD_S": str(LOAD_S),
        }
        self.settings.logs.mkdir(parents=True, exist_ok=True)
        log = self.settings.logs / "model-server.log"
        with log.open("ab") as out:
            command = [sys.executable, str(SERVER)]
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=PROJECT_ROOT)
        url = self.settings.url("model_http")
        port = self.settings.port("model_http")
        servers.wait_until_ready(self.process, port, lambda: servers.get_ok(f"{url}/v2/health/live"), log)

    def version(self, content: bytes) -> ModelRecord:
        """A released version of that file, in the serving home."""
        number = len(self.models) + 1
        folder = self.settings.serving_home / USECASE / str(number)
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(content)
        model = seal_model(self.settings, folder, number, USECASE)
        assert model.sha256 == sha256_of(folder / "model.onnx")
        self.models[number] = model
        return model

    def deploy(self, model: ModelRecord, **plan: Any) -> Any:
        usecase = self.usecase(**plan)
        over = self.champion and ModelReference(USECASE, self.champion)
        decision = release_of(model).model_copy(update={"compared_with": over})
        decision = decisions.recorded(self.settings, USECASE, decision)
        return promotion.release(self.settings, usecase, model, decision, "passed", self.target)

    def roll_out(self, model: ModelRecord, **plan: Any) -> Rollout:
        """To its end, with looks one after the other."""
        self.deploy(model, **plan)
        usecase, until = self.usecase(**plan), time.monotonic() + 120
        while time.monotonic() < until:
            rollout = controller.tick(self.settings, usecase, self.target)
            assert rollout is not None
            if rollout.ended_at is not None:
                return rollout
        raise AssertionError(f"no end: {rollout.verdict}; {rollout.trouble}")

    def serving(self) -> list[tuple[str, str, float]]:
        return [(one.revision.partition("-")[0], one.role, one.weight) for one in self.target.observe(USECASE)]

    @property
    def champion(self) -> int | None:
        return self.alias and self.alias.version


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    from throughline.services.ports import take_ports

    home = tmp_path_factory.mktemp("home")
    made = Place(Settings(home=home, port_base=take_ports()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(promotion.models, "set_alias", lambda _settings, model: setattr(made, "alias", model))
        patch.setattr(promotion.models, "alias", lambda *_: made.alias)
        patch.setattr(promotion.models, "get", lambda _settings, wanted: made.models[wanted.version])
        patch.setattr(placing.background, "fetch", lambda *_: None)
        without_tables(patch)
        made.start()
        made.deploy(made.version(model_bytes()))
        yield made
        servers.end(made.process)


@pytest.fixture(autouse=True)
def nothing_under_way(place: Place) -> None:
    """What a test that failed left."""
    if running.running(place.settings, place.usecase()):
        controller.abort(place.settings, place.usecase(), ADA, "the test has failed", place.target)


class Caller(threading.Thread):
    """Sends requests all the time, and keeps what went wrong."""

    def __init__(self, place: Place) -> None:
        super().__init__(daemon=True)
        self._url = f"{place.settings.url('model_http')}/v1/models/{USECASE}:predict"
        self._over = threading.Event()
        self.answers: list[tuple[int, str]] = []

    def run(self) -> None:
        with httpx.Client(timeout=30) as client:
            for one in itertools.cycle(requests(0)):
                if self._over.is_set():
                    return
                answer = client.post(self._url, json={"instances": [one]})
                self.answers.append((answer.status_code, answer.text))

    def __enter__(self) -> Caller:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    @property
    def failures(self) -> list[tuple[int, str]]:
        return [answer for answer in self.answers if answer[0] != 200]


def test_a_good_version_is_promoted_under_load_without_a_failed_request(place: Place) -> None:
    model = place.version(model_bytes(bias=0.05))
    with Caller(place) as caller:
        done = place.roll_out(model)
    assert (done.outcome, place.champion) == ("promoted", model.version), done.why
    assert caller.failures == []
    assert len(caller.answers) > 20
    assert place.serving() == [(f"v{model.version}", "stable", 1.0)]


def test_a_good_version_is_promoted_without_any_traffic(place: Place) -> None:
    model = place.version(model_bytes(bias=-0.05))
    done = place.roll_out(model)
    assert (done.outcome, place.champion) == ("promoted", model.version), done.why
    assert done.evidence.replayed == done.evidence.requests >= 200


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("errors", "errors: "),
        ("shifted", "scores: "),
        pytest.param("NaN", "errors: ", marks=pytest.mark.drill),
        pytest.param("slow", "latency: ", marks=pytest.mark.drill),
    ],
)
def test_a_version_that_goes_wrong_on_requests_is_rolled_back(place: Place, kind: str, reason: str) -> None:
    before = place.champion
    done = place.roll_out(place.version(bad_model(kind)))
    assert done.outcome == "rolled_back", done.why
    assert any(one.startswith(reason) for one in done.why.split("; ")), done.why
    assert place.champion == before
    assert place.serving() == [(f"v{before}", "stable", 1.0)]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("too large", "needs more than"),
        pytest.param("garbage", "it cannot be served", marks=pytest.mark.drill),
        pytest.param("hangs", f"within {LOAD_S} s", marks=pytest.mark.drill),
    ],
)
def test_a_version_that_cannot_be_loaded_never_touches_what_serves(place: Place, kind: str, reason: str) -> None:
    before, process = place.champion, place.process
    with Caller(place) as caller:
        done = place.roll_out(place.version(bad_model(kind)))
    assert done.outcome == "rolled_back"
    assert reason in done.why
    assert done.ended_at - done.started_at < timedelta(seconds=90)
    assert caller.failures == []
    assert caller.answers
    assert (place.champion, process.poll()) == (before, None)
    assert place.serving() == [(f"v{before}", "stable", 1.0)]


@pytest.mark.drill
def test_a_shadow_and_an_exchange_of_blue_and_green_answer_every_request(place: Place) -> None:
    for plan in (
        {"strategy": "shadow_canary", "steps": [0.5]},
        {"strategy": "blue_green", "steps": None, "dwell": "1s"},
    ):
        plan = {name: value for name, value in (CANARY | plan).items() if value is not None}
        model = place.version(model_bytes(bias=0.01 * len(place.models)))
        with pytest.MonkeyPatch.context() as patch, Caller(place) as caller:
            patch.setitem(globals(), "CANARY", plan)
            done = place.roll_out(model)
        assert (done.outcome, place.champion) == ("promoted", model.version), done.why
        assert caller.failures == []


@pytest.mark.drill
def test_a_server_that_is_killed_in_a_rollout_serves_the_same_shares_again_and_the_rollout_goes_on(
    place: Place,
) -> None:
    model = place.version(model_bytes(bias=0.02))
    place.deploy(model)
    usecase = place.usecase()
    for _ in range(2):
        controller.tick(place.settings, usecase, place.target)
    shares = place.serving()
    assert [role for _, role, _ in shares] == ["stable", "canary"]
    place.process.kill()
    place.process.wait()
    silent = controller.tick(place.settings, usecase, place.target)
    assert silent.outcome is None
    assert "throughline up" in silent.trouble
    place.start()
    assert place.serving() == shares
    assert place.roll_out(model).outcome == "promoted"


def test_an_abort_takes_seconds(place: Place) -> None:
    before = place.champion
    place.deploy(place.version(model_bytes(bias=0.03)))
    usecase = place.usecase()
    controller.tick(place.settings, usecase, place.target)
    assert len(place.serving()) == 2
    done = controller.abort(place.settings, usecase, ADA, "on second thought", place.target)
    assert done.ended_at is not None
    assert place.serving() == [(f"v{before}", "stable", 1.0)]
