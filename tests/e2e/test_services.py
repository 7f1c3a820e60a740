"""The services of a temporary home, really started, killed and stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from throughline import services
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.services import processes
from throughline.services.control import log_tail
from throughline.services.daemon import Supervisor
from throughline.services.ports import take_ports

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    made = load_settings(home=tmp_path_factory.mktemp("services"), port_base=take_ports(), spark_memory="1g")
    yield made
    services.down(made)


def state(settings: Settings, name: str) -> services.ServiceStatus:
    return next(one for one in services.status(settings) if one.name == name)


def kill(settings: Settings, name: str) -> None:
    os.kill(Supervisor(settings).processes()[name].pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while state(settings, name).state != "dead" and time.monotonic() < until:
        time.sleep(0.1)


def sql(settings: Settings, *statements: str) -> str:
    """Run in a client of its own, in an empty folder: rows of the last statement as text."""
    code = (
        "import sys; from pyspark.sql import SparkSession;"
        "spark = SparkSession.builder.remote(sys.argv[1]).getOrCreate();"
        "rows = [spark.sql(s).collect() for s in sys.argv[2:]]; print([tuple(r) for r in rows[-1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, settings.spark_url, *statements], capture_output=True, text=True, cwd=settings.home
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_a_table_by_name_survives_a_killed_spark_server(settings: Settings) -> None:
    assert {one.state for one in services.up(settings, ["spark"])} == {"running"}
    sql(settings, "CREATE SCHEMA kept", "CREATE TABLE kept.t USING delta AS SELECT 7 AS a")
    kill(settings, "spark")
    dead = state(settings, "spark")
    assert (dead.state, dead.detail) == ("dead", "terminated by SIGKILL")
    services.up(settings, ["spark"])
    assert sql(settings, "SELECT *, current_timezone() FROM kept.t") == "[(7, 'UTC')]"
    strays = [name for name in ("derby.log", "metastore_db", "spark-warehouse") for _ in settings.home.glob(name)]
    assert strays == []
    assert (settings.lakehouse / "catalog").is_dir()
    assert (settings.lakehouse / "warehouse" / "kept.db" / "t" / "_delta_log").is_dir()


def test_starting_what_runs_is_quick_and_starts_nothing_twice(settings: Settings) -> None:
    services.up(settings, ["spark", "collector"])
    before = {name: process.pid for name, process in Supervisor(settings).processes().items()}
    begun = time.monotonic()
    services.up(settings, ["spark", "collector"])
    assert time.monotonic() - begun < 2
    assert {name: process.pid for name, process in Supervisor(settings).processes().items()} == before


def test_every_port_of_ours_listens_on_loopback_only(settings: Settings) -> None:
    services.up(settings, ["spark", "collector"])
    found = [
        connection.laddr.ip
        for process in processes.of_home(Supervisor(settings).url)
        for connection in process.connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert found
    assert {address.removeprefix("::ffff:") for address in found} == {"127.0.0.1"}


def test_a_changed_setting_restarts_what_reads_it_and_nothing_else(settings: Settings) -> None:
    services.up(settings, ["spark", "collector"])
    before = Supervisor(settings).processes()
    services.up(settings.model_copy(update={"clock": "wall"}), ["spark", "collector"])
    after = Supervisor(settings).processes()
    assert after["spark"].pid == before["spark"].pid
    assert after["collector"].pid != before["collector"].pid
    assert psutil.Process(after["collector"].pid).environ()["THROUGHLINE_CLOCK"] == "wall"


def test_a_service_that_cannot_start_is_reported_with_the_end_of_its_log(settings: Settings) -> None:
    settings.mlflow_home.mkdir(exist_ok=True)
    (settings.mlflow_home / "mlflow.db").write_text("this is no database " * 100)
    with pytest.raises(services.ServiceFailed, match=r"mlflow died \(exit status \d+\).*mlflow\.log") as failed:
        services.up(settings, ["mlflow"])
    assert "not a database" in "".join(failed.value.tail)
    assert failed.value.tail == log_tail(settings.logs / "mlflow.log")
    assert state(settings, "mlflow").state == "dead"


def test_a_port_that_another_process_holds_is_refused_naming_both(settings: Settings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.port("dagster")))
        other.listen()
        with pytest.raises(
            ThroughlineError, match=rf"{settings.port('dagster')}, which dagster-webserver.*{os.getpid()}"
        ):
            services.up(settings, ["dagster-webserver"])


def test_the_command_ends_while_its_services_run(settings: Settings) -> None:
    """A reader of the output of `throughline up` sees its end."""
    services.down(settings)
    environment = {
        **os.environ,
        "THROUGHLINE_HOME": str(settings.home),
        "THROUGHLINE_PORT_BASE": str(settings.port_base),
    }
    command = [sys.executable, "-c", "from throughline.cli.main import main; main()", "up", "collector", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert '"state": "running"' in done.stdout
    assert state(settings, "collector").state == "running"


def test_down_leaves_no_process_and_no_port_even_when_the_supervisor_was_killed(settings: Settings) -> None:
    services.up(settings, ["collector"])
    supervisor = Supervisor(settings)
    running = processes.of_home(supervisor.url)
    assert running
    os.kill(supervisor.pid(), signal.SIGKILL)
    time.sleep(0.2)
    lost = state(settings, "collector")
    assert lost.state == "unhealthy"
    assert "supervisor" in lost.detail
    services.down(settings)
    services.down(settings)
    assert processes.of_home(supervisor.url) == []
    assert processes.port_holders(set(range(settings.port_base, settings.port_base + 7)), supervisor.url) == {}
    assert not Path(supervisor.socket).exists()
    assert {one.state for one in services.status(settings)} == {"stopped"}
