"""Several worker processes answer as one server: one address, one set of revisions, one set of metrics, one log."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.test_serving import NAME, Place, call_grpc, flush, place
from tests.support.fake_store_server import put_revision
from throughline.usecase import get_usecase
from throughline.usecase.requests import example_instance

INSTANCE = example_instance(get_usecase(NAME))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("workers") / "home", model_workers=2) as at:
        put_revision(at.settings)
        at.start_collector()
        at.start_server()
        wait_for_all(at)
        yield at


def workers(at: Place) -> list[psutil.Process]:
    """The worker processes, in no order."""
    parent = psutil.Process(at.processes["model-server"].pid)
    return [child for child in parent.children() if "--worker" in child.cmdline()]


def wait_for_all(at: Place) -> list[psutil.Process]:
    """The workers, once both have answered a request of their own."""
    deadline = time.monotonic() + 60
    while True:
        seen = len(workers(at))
        ports = list((at.settings.serving_home / "workers").glob("*.json"))
        if seen == len(ports) == 2 and counted(at, "throughline_revision_weight") == 1:
            return workers(at)
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ask(at: Place, count: int) -> list[dict]:
    """Each on a connection of its own, so that both workers get some."""

    def one(_: int) -> dict:
        answer = httpx.post(f"{at.url}/v1/models/{NAME}:predict", json={"instances": [INSTANCE]}, timeout=30)
        return answer.raise_for_status().json()["predictions"][0]

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(count)))


def counted(at: Place, name: str, **labels: str) -> float:
    text = httpx.get(f"{at.url}/metrics", timeout=30).raise_for_status().text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_predictions_of_all_workers_are_counted_logged_and_shown_once(served: Place) -> None:
    before = counted(served, "throughline_predictions_total")
    answers = ask(served, 60)
    assert call_grpc(served, [INSTANCE])[0]
    assert {counted(served, "throughline_predictions_total") for _ in range(4)} == {before + 61}
    assert counted(served, "throughline_prediction_seconds_count") == before + 61
    assert counted(served, "throughline_prediction_seconds_bucket", le="+Inf") == before + 61
    assert counted(served, "throughline_model_info") == 1
    assert flush(served)["lost"] == 0
    log = served.table()
    assert {answer["prediction_id"] for answer in answers} <= set(log["id"])
    assert log["source"].n_unique() == 2


def test_a_load_reaches_every_worker_before_it_returns(served: Place) -> None:
    for version in (2, 3):
        put_revision(served.settings, version=version, bias=version / 10)
        httpx.post(f"{served.url}/v2/repository/models/{NAME}/load", timeout=60).raise_for_status()
        assert {answer["model_version"] for answer in ask(served, 30)} == {version}


def test_a_killed_worker_is_started_again_and_serves_what_is_deployed(served: Place) -> None:
    first, second = workers(served)
    version = ask(served, 1)[0]["model_version"]
    first.kill()
    first.wait(10)
    assert second.pid in {worker.pid for worker in wait_for_all(served)}
    assert {answer["model_version"] for answer in ask(served, 20)} == {version}


def test_workers_end_with_their_parent_though_it_is_killed(tmp_path: Path) -> None:
    with place(tmp_path / "home", model_workers=2) as at:
        put_revision(at.settings)
        at.start_server()
        mine = wait_for_all(at)
        at.end("model-server", signal.SIGKILL)
        gone, alive = psutil.wait_procs(mine, timeout=30)
        assert (len(gone), alive) == (2, [])
