"""What runs on one machine, and the configuration that supervisor reads: without starting anything."""

import os
import re
import shlex
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from supervisor.options import ServerOptions

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import DEFAULT_PORTS, Settings, load_settings
from throughline.services import control, health, processes
from throughline.services.conf import render
from throughline.services.daemon import Process, Supervisor, check_private, inherited_env, socket_path
from throughline.services.declared import SHARED, declare, render_workspace, select
from throughline.services.processes import Holder

NAMES = ["spark", "mlflow", "model-server", "collector", "code-location", "dagster-webserver", "dagster-daemon"]


def settings(home: Path, **values: object) -> Settings:
    return load_settings(home=home, **values)


def parsed(conf: str, folder: Path) -> dict:
    """What supervisor itself understands: program name -> its configuration."""
    path = folder / "supervisord.conf"
    path.write_text(conf)
    options = ServerOptions()
    options.realize(["-c", str(path)], doc="")
    return {config.name: config for group in options.process_group_configs for config in group.process_configs}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "a home, 100% mine"
    (folder / "logs").mkdir(parents=True)
    (folder / "mlflow").mkdir()
    return folder


def test_supervisor_understands_exactly_the_declared_commands_and_environments(home: Path) -> None:
    services = declare(settings(home))
    understood = parsed(render(services, home, home / "s.sock"), home)
    assert list(understood) == sorted(NAMES)
    for service in services:
        config = understood[service.name]
        assert tuple(shlex.split(config.command)) == service.command
        assert config.environment == service.env
        assert config.directory == str(service.directory)
        assert config.stdout_logfile == str(home / "logs" / f"{service.name}.log")
        assert not config.autostart
        assert not config.autorestart
        assert config.stopasgroup
        assert config.killasgroup


@pytest.mark.parametrize("name", ['two"quotes', "a #comment", "a ;comment", "two\nlines", "it's"])
def test_a_home_that_the_configuration_cannot_carry_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ThroughlineError, match="THROUGHLINE_HOME") as refused:
        render(declare(settings(tmp_path / name)), tmp_path / name, tmp_path / "s.sock")
    assert "\n" not in str(refused.value)


def test_secrets_are_in_the_environment_of_supervisord_and_in_no_file(home: Path) -> None:
    redis = "redis://:s3cret-value@cache/0"
    secret = settings(home, token="s3cret-value", bind="0.0.0.0", online_store=redis)
    conf = render(declare(secret), home, home / "s.sock")
    assert "s3cret-value" not in conf
    # nor a mask of them, which would hide the real ones from the services
    assert not [name for name in ("TOKEN", "ONLINE_STORE") if name in conf]
    assert inherited_env({}, secret) == {"THROUGHLINE_TOKEN": "s3cret-value", "THROUGHLINE_ONLINE_STORE": redis}


def test_mlflow_on_shared_stores_is_told_the_bucket_and_inherits_the_password(home: Path) -> None:
    store = "postgresql://mlflow:s3cret-value@db/mlflow"
    shared = settings(home, mlflow_store=store, mlflow_artifacts="s3://models/here")
    (mlflow,) = [one for one in declare(shared) if one.name == "mlflow"]
    assert mlflow.command[mlflow.command.index("--artifacts-destination") + 1] == "s3://models/here"
    assert not [word for word in mlflow.command if "sqlite" in word or str(shared.mlflow_home) in word]
    assert "s3cret-value" not in render(declare(shared), home, home / "s.sock")
    assert inherited_env({}, shared)["THROUGHLINE_MLFLOW_STORE"] == store


def test_a_setting_that_is_no_longer_set_does_not_live_on_in_supervisord(home: Path) -> None:
    caller = {"PATH": "/bin", "THROUGHLINE_TRAINING_EPOCHS": "1", "THROUGHLINE_TOKEN": "old"}
    assert inherited_env(caller, settings(home)) == {"PATH": "/bin"}


def test_what_asks_for_no_token_stays_on_loopback_whatever_bind_says(home: Path) -> None:
    services = {one.name: one for one in declare(settings(home, token="t", bind="0.0.0.0"))}
    for name in ("mlflow", "dagster-webserver"):
        command = services[name].command
        assert command[command.index("--host") + 1] == "127.0.0.1"
    for key in ("connect.grpc.binding.address", "driver.host", "driver.bindAddress"):
        assert f"spark.{key}=127.0.0.1" in services["spark"].command
    assert not [word for name in ("spark", "mlflow") for word in services[name].command if "0.0.0.0" in word]


def test_two_homes_with_two_port_bases_share_neither_port_nor_socket(tmp_path: Path) -> None:
    one, two = settings(tmp_path / "1", port_base=20000), settings(tmp_path / "2", port_base=20010)
    ports = [{port for service in declare(each) for port in service.ports} for each in (one, two)]
    assert len(ports[0]) == len(ports[1]) == len(DEFAULT_PORTS)
    assert not ports[0] & ports[1]
    assert socket_path(one.home) != socket_path(two.home)


def test_the_socket_of_a_very_long_home_still_fits(tmp_path: Path) -> None:
    path = socket_path(tmp_path / ("long" * 60) / ("longer" * 30))
    assert len(str(path).encode()) < 100
    assert path == socket_path(tmp_path / ("long" * 60) / ("longer" * 30))


def test_a_runtime_folder_others_can_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    check_private(folder)
    folder.chmod(0o770)
    with pytest.raises(ThroughlineError, match="0700"):
        check_private(folder)
    (tmp_path / "link").symlink_to(folder)
    folder.chmod(0o700)
    with pytest.raises(ThroughlineError, match="0700"):
        check_private(tmp_path / "link")


def test_spark_has_room_for_the_classes_it_generates(home: Path) -> None:
    """With the JVM's own 48 MB for C1 alone the server died in the middle of a build, in one of two cold starts."""
    words = " ".join(next(one for one in declare(settings(home)) if one.name == "spark").command)
    (megabytes,) = re.findall(r"-XX:ReservedCodeCacheSize=(\d+)m", words)
    assert int(megabytes) >= 128


def test_a_spark_server_elsewhere_means_none_of_our_own(home: Path) -> None:
    assert [one.name for one in declare(settings(home, spark_remote="sc://cluster:15002"))] == NAMES[1:]


def test_a_training_setting_restarts_neither_spark_nor_what_serves(home: Path) -> None:
    before, after = ({one.name: one for one in declare(settings(home, **v))} for v in ({}, {"training_epochs": 2}))
    assert {name for name in NAMES if before[name] != after[name]} == {"code-location", "dagster-daemon"}


def test_services_are_chosen_by_name_and_an_unknown_one_is_refused(home: Path) -> None:
    services = declare(settings(home))
    assert [one.name for one in select(services, ["mlflow", "spark"])] == ["spark", "mlflow"]
    # the webserver reports whether the daemon is well, and both read the graph from the code location
    dagster = ["code-location", "dagster-webserver", "dagster-daemon"]
    assert [one.name for one in select(services, ["dagster-daemon"])] == dagster
    with pytest.raises(ThroughlineError, match=r"sprak.*spark, mlflow"):
        select(services, ["sprak"])


def test_vendor_telemetry_is_off_in_the_vendors_own_words(home: Path) -> None:
    services = {one.name: one for one in declare(settings(home))}
    assert all("DO_NOT_TRACK" in services[name].env for name in NAMES[1:])
    from dagster._core.instance.config import dagster_instance_config

    config, _ = dagster_instance_config(str(control.SHARED))
    assert config["telemetry"] == {"enabled": False}
    assert config["run_monitoring"]["enabled"]
    assert config["concurrency"]["runs"]["max_concurrent_runs"] == 1


def test_no_registry_host_is_named_in_the_local_deployment() -> None:
    text = "".join(path.read_text() for path in control.SHARED.iterdir() if path.is_file())
    assert not [word for word in ("http://", "https://", "maven.org", "apache.org/") if word in text]


def process(state: str, started: float = 1000, exit: str = "") -> Process:
    return Process("spark", state, 1, started, exit)


@pytest.mark.parametrize(
    ("found", "problem", "now", "expected"),
    [
        (None, None, 1000, ("stopped", "")),
        (process("STOPPED"), None, 1000, ("stopped", "")),
        (process("EXITED", exit="exit status 3"), None, 1000, ("dead", "exit status 3")),
        (process("FATAL", exit="no such file"), None, 1000, ("dead", "no such file")),
        (process("RUNNING"), None, 9999, ("running", "")),
        (process("RUNNING"), "silent", 1060, ("starting", "silent")),
        (process("RUNNING"), "silent", 1061, ("unhealthy", "silent")),
    ],
)
def test_a_service_is_called_running_only_when_it_answers(found, problem, now, expected) -> None:
    assert control.state_of(found, problem, now, deadline_s=60) == expected


@pytest.mark.parametrize(
    ("beats", "silent"),
    [
        ({"SENSOR": 1005.0, "QUEUE": 1006.0}, None),
        ({"SENSOR": 1005.0, "QUEUE": None}, "QUEUE"),
        ({"SENSOR": 995.0}, "SENSOR"),  # the beat of the daemon before this one
    ],
)
def test_dagsters_daemon_is_judged_by_heartbeats_since_it_started(beats, silent) -> None:
    found = health.silent_daemons(beats, started=1000, now=1010)
    assert found == (silent and f"no heartbeat of {silent}")


def test_a_daemon_that_stopped_beating_is_not_well() -> None:
    assert health.silent_daemons({"SENSOR": 1005.0}, started=1000, now=1300) == "no heartbeat of SENSOR"


def test_a_health_check_says_what_is_wrong_and_never_raises(home: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        for check in (
            f"tcp://127.0.0.1:{port}",
            f"http://127.0.0.1:{port}/x",
            f"daemon+http://127.0.0.1:{port}/graphql",
        ):
            assert str(port) in health.problem(check, settings(home), started=0, now=0)
        listener.listen()
        assert health.problem(f"tcp://127.0.0.1:{port}", settings(home), started=0, now=0) is None


def test_the_end_of_a_long_log_is_read_not_all_of_it(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert control.log_tail(log) == []
    log.write_text("x" * 200_000 + "\n" + "\n".join(f"line {n}\n" for n in range(100)))
    assert control.log_tail(log, 2) == ["line 98", "line 99"]


def test_whoever_holds_a_port_is_named_and_known_as_ours_or_not() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        (holder,) = processes.port_holders({port}, "unix:///nowhere").values()
    assert holder.pid == os.getpid()
    assert not holder.own
    assert str(os.getpid()) in str(holder)


def test_models_are_what_the_server_says_and_nothing_when_it_is_silent(home: Path, monkeypatch) -> None:
    nowhere = settings(home, port_base=64990)
    assert control.served_models(nowhere) == []
    listed = [{"usecase": "u", "name": "u", "version": 1, "alias": "champion", "share": 1.0, "role": "stable"}]
    monkeypatch.setattr(health, "get_json", lambda *_: listed)
    assert control.served_models(nowhere) == listed


def test_status_of_a_home_where_nothing_was_ever_started_is_stopped_and_leaves_no_file(tmp_path: Path) -> None:
    never = settings(tmp_path / "never")
    assert {one.state for one in control.status(never)} == {"stopped"}
    control.down(never)
    assert not never.home.exists()


def test_a_signal_is_named_from_supervisors_log(home: Path) -> None:
    (home / "logs" / "supervisord.log").write_text(
        "WARN exited: spark (terminated by SIGTERM; not expected)\n"
        "WARN exited: mlflow (exit status 2; not expected)\nWARN exited: spark (terminated by SIGKILL; not expected)\n"
    )
    row = {"name": "spark", "exitstatus": -1}
    assert Supervisor(settings(home))._exit(row) == "terminated by SIGKILL"
    assert Supervisor(settings(home))._exit(row | {"exitstatus": 2}) == "exit status 2"


def test_another_process_that_answers_on_the_port_is_not_taken_for_the_service(home: Path) -> None:
    """Its own server could not bind and ends soon; until then supervisor calls it running, and something answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        service = replace(declare(settings(home))[0], ports=(port,), health=f"tcp://127.0.0.1:{port}")
        processes = {service.name: Process(service.name, "RUNNING", os.getpid(), time.time(), "")}
        holders = control._port_holders([service], Supervisor(settings(home)))
        found = control._judge(settings(home), processes, holders, service)
    assert found.state == "starting"
    assert found.detail == f"port {port} is held by {Holder(os.getpid(), command_line(), False)}"


def command_line() -> str:
    text = " ".join(psutil.Process().cmdline())
    return text if len(text) <= 100 else f"{text[:97]}..."


def test_the_services_find_the_graph_where_this_home_serves_it(home: Path) -> None:
    chosen = settings(home, port_base=20000)
    (entry,) = yaml.safe_load(render_workspace(chosen))["load_from"]
    (code,) = [one for one in declare(chosen) if one.name == "code-location"]
    assert entry["grpc_server"]["port"] == code.ports[0] == chosen.port("graph")
    assert entry["grpc_server"]["location_name"] == code.command[code.command.index("--location-name") + 1]
    for name in ("dagster-webserver", "dagster-daemon"):
        (command,) = [one.command for one in declare(chosen) if one.name == name]
        assert command[command.index("-w") + 1] == str(chosen.workspace)
        assert "assets.definitions" not in command


def test_dagsters_databases_are_made_before_two_of_its_services_start_at_the_same_moment(home: Path) -> None:
    """Two processes that create them at once fail: "UNIQUE constraint failed: alembic_version"."""
    chosen = settings(home)
    chosen.dagster_home.mkdir(parents=True)
    shutil.copy(SHARED / "dagster.yaml", chosen.dagster_home)
    (webserver,) = [one for one in declare(chosen) if one.name == "dagster-webserver"]
    control.set_up(webserver)
    made = {file.relative_to(chosen.dagster_home).as_posix() for file in chosen.dagster_home.rglob("*.db")}
    assert made == {"history/runs.db", "history/runs/index.db", "schedules/schedules.db"}
    control.set_up(replace(webserver, setup=("false",)))  # nothing is left to do
    with pytest.raises(control.ServiceFailed, match="dagster-webserver cannot be set up: `false` failed"):
        control.set_up(replace(webserver, setup=("false",), made=home / "missing"))
