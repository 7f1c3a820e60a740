"""What runs on one machine: a pure function from the settings to a list of services.

Owns: the command, environment, address, health check and deadline of each. Does not own: starting them.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT, SECRETS, Settings, in_bucket, is_loopback
from throughline.services.code import fingerprint_graph

DELTA_PACKAGE = "io.delta:delta-spark_4.2_2.13:4.4.0"
# Hadoop's S3 file system, of the version of Spark's Hadoop, and the parts of Amazon's SDK that it uses, of the version
# that it was built for: 13 MB in place of a bundle of 600.
S3_PACKAGES = (
    "org.apache.hadoop:hadoop-aws:3.5.0",
    *(
        f"software.amazon.awssdk:{part}:2.35.4"
        for part in ("s3", "s3-transfer-manager", "sts", "url-connection-client")
    ),
)
S3_EXCLUDED = ("software.amazon.awssdk:bundle", "org.wildfly.openssl:wildfly-openssl")
# Read by Hadoop from the server's own environment, as delta-rs does from that of its process.
S3_CONF = {
    "spark.hadoop.fs.s3a.aws.credentials.provider": (
        "software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider"
    ),
    "spark.hadoop.fs.s3a.endpoint": "${env.AWS_ENDPOINT_URL:-}",
    "spark.hadoop.fs.s3a.endpoint.region": "${env.AWS_REGION:-}",
    "spark.hadoop.fs.s3a.path.style.access": "true",
}
SHARED = PROJECT_ROOT / "deploy" / "local"
LOCATION = "throughline"  # of the graph, in Dagster

# Read in the installed sources: mlflow.telemetry.utils, dbt.cli.flags (both know DO_NOT_TRACK, mlflow only as "true").
# Dagster's switch is in dagster.yaml; feast 0.67 has none to turn off.
NO_TELEMETRY = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"}


@dataclass(frozen=True)
class Service:
    """One long-running process. `health`: a URL, `tcp://host:port`, or `daemon+URL` (Dagster's daemon, by GraphQL)."""

    name: str
    command: tuple[str, ...]
    address: str | None
    ports: tuple[int, ...]
    health: str
    deadline_s: float  # generous: a death is noticed at once, and a busy machine took 110 s for what takes 30
    env: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # started along with it
    directory: Path = PROJECT_ROOT
    scratch: Path | None = None  # emptied before each start: what a killed process could not clean up
    setup: tuple[str, ...] = ()  # a command that makes `made`, run to its end before the start if that is missing
    made: Path | None = None


def declare(settings: Settings) -> list[Service]:
    """The services of this home, in the order in which they are shown and started."""
    services = [] if settings.spark_remote else [_spark(settings)]
    return [*services, _mlflow(settings), _model_server(settings), _collector(settings), *_dagster(settings)]


def render_workspace(settings: Settings) -> str:
    """Dagster's workspace file of this home: the graph is what the code location serves."""
    server = {"host": "127.0.0.1", "port": settings.port("graph"), "location_name": LOCATION}
    return yaml.safe_dump({"load_from": [{"grpc_server": server}]})


def select(services: list[Service], names: list[str] | None) -> list[Service]:
    """The named ones and what they need, all when no name is given. Raises `ThroughlineError` on an unknown name."""
    if not names:
        return services
    known = [service.name for service in services]
    if unknown := [name for name in names if name not in known]:
        raise ThroughlineError(f"No service {', '.join(unknown)} here: there are {', '.join(known)}.")
    wanted = {*names, *(need for service in services if service.name in names for need in service.needs)}
    return [service for service in services if service.name in wanted]


def settings_env(settings: Settings, without: tuple[str, ...] = ()) -> dict[str, str]:
    """The settings as THROUGHLINE_* variables, `home` absolute. No secrets: they are inherited, never written."""
    values = settings.model_dump(mode="json", exclude={*SECRETS, *without}, exclude_none=True)
    return {f"THROUGHLINE_{name.upper()}": str(value) for name, value in sorted(values.items())}


def _guard_env(settings: Settings) -> dict[str, str]:
    """What the guard of a service reads that needs no other setting: a changed one does not restart it."""
    values = settings_env(settings)
    return {name: values[name] for name in ("THROUGHLINE_HOME", "THROUGHLINE_HOSTS") if name in values}


def secret_env(settings: Settings) -> dict[str, str]:
    """What supervisord gets in its own environment, for the services to inherit."""
    held = {f"THROUGHLINE_{name.upper()}": getattr(settings, name) for name in SECRETS}
    return {name: secret.get_secret_value() for name, secret in held.items() if secret is not None}


def _host(settings: Settings) -> str:
    """Where a service without a token check (Spark, MLflow, Dagster) listens: loopback, whatever `bind` is."""
    return settings.bind if is_loopback(settings.bind) else "127.0.0.1"


def _executable(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _spark(settings: Settings) -> Service:
    found = importlib.util.find_spec("pyspark")  # without importing it
    if found is None or not found.submodule_search_locations:
        raise ThroughlineError("pyspark is not installed: make env.")
    spark_home = Path(next(iter(found.submodule_search_locations)))
    port, scratch = settings.port("spark"), settings.home / "spark"
    java = [
        # A session here is many small statements on few cores, which the optimising compiler and G1's threads compete
        # with: without both, the same statements took 23 s of CPU instead of 39 to 48, and 0.75 GB instead of 1.1.
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        # Without the optimising compiler the JVM reserves 48 MB for code; a few dozen statements fill it, and it dies
        # with "Out of space in CodeCache" (exit status 50).
        "-XX:ReservedCodeCacheSize=256m",
        "-Duser.timezone=UTC",
        f"-Dlog4j2.configurationFile={SHARED / 'log4j2.properties'}",
        f"-Dderby.system.home={scratch}",
        f"-Dderby.stream.error.file={settings.logs / 'derby.log'}",
        f"-Djava.io.tmpdir={scratch}",
    ]
    conf = {
        "spark.master": "local[*]",
        "spark.app.name": "throughline",
        "spark.ui.enabled": "false",
        "spark.local.dir": str(scratch),
        # every port it opens, not only the one of Connect, stays on this machine
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": str(port),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.jars.ivySettings": str(SHARED / "ivysettings.xml"),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        # the defaults (200 and 50) make small work 5 to 20 times slower
        "spark.sql.shuffle.partitions": "4",
        "spark.databricks.delta.snapshotPartitions": "2",
        # the catalog outlives the server: tables by name are found again after a restart
        "spark.sql.catalogImplementation": "hive",
        "spark.sql.warehouse.dir": settings.warehouse.as_uri(),
        "spark.hadoop.javax.jdo.option.ConnectionURL": (f"jdbc:derby:;databaseName={settings.catalog};create=true"),
        "spark.hadoop.hive.exec.scratchdir": str(scratch / "hive"),
        "spark.hadoop.hive.exec.local.scratchdir": str(scratch / "hive"),
        "spark.hadoop.hive.downloaded.resources.dir": str(scratch / "hive"),
        # Delta keeps the columns; Hive's own opinion of a replaced table is a page of errors in the log
        "spark.hadoop.hive.metastore.disallow.incompatible.col.type.changes": "false",
    }
    packages = ["--packages", DELTA_PACKAGE]
    if in_bucket(settings.lakehouse):
        conf.update(S3_CONF)
        packages = ["--packages", ",".join((DELTA_PACKAGE, *S3_PACKAGES)), "--exclude-packages", ",".join(S3_EXCLUDED)]
    return Service(
        name="spark",
        command=(
            str(spark_home / "bin" / "spark-submit"),
            *("--class", "org.apache.spark.sql.connect.service.SparkConnectServer"),
            *packages,
            *("--driver-memory", settings.spark_memory),
            *("--driver-java-options", " ".join(java)),
            *(word for key, value in conf.items() for word in ("--conf", f"{key}={value}")),
        ),
        address=settings.spark_url,
        ports=(port,),
        health=f"tcp://127.0.0.1:{port}",
        deadline_s=300,  # the first start of a machine downloads 87 MB of jars
        env={"SPARK_HOME": str(spark_home), "SPARK_CONF_DIR": str(scratch / "conf")},
        directory=settings.home,
        scratch=scratch,
    )


def _mlflow(settings: Settings) -> Service:
    home, port = settings.mlflow_home, settings.port("mlflow")
    store = ("--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}") if settings.mlflow_store is None else ()
    if settings.mlflow_artifacts is None:
        # Artifacts go straight to the folder: no copy through the server, and a URI that is a path on this machine.
        artifacts = ("--default-artifact-root", str(home / "artifacts"))
    else:
        # Through the server, which alone needs credentials of the bucket: AWS_* or a profile, from its environment.
        artifacts = ("--artifacts-destination", settings.mlflow_artifacts)
    return Service(
        name="mlflow",
        command=(
            *(sys.executable, "-m", "throughline.services.mlflow_server"),
            *("--host", _host(settings), "--port", str(port), *store, *artifacts),
        ),
        address=settings.url("mlflow"),
        ports=(port,),
        health=f"{settings.url('mlflow')}/health",
        deadline_s=240,
        # its job runner is five more processes (GenAI evaluation), none of which we use
        env={**NO_TELEMETRY, **_guard_env(settings), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        directory=home,
    )


_TRAINING_ONLY = ("training_processes", "training_epochs", "step_timeout_s")
_NOT_SERVING = (*_TRAINING_ONLY, "spark_remote", "spark_memory", "offline_engine")


def _model_server(settings: Settings) -> Service:
    ports = (settings.port("model_http"), settings.port("model_grpc"))
    return Service(
        name="model-server",
        command=(sys.executable, "-m", "serving"),
        address=settings.url("model_http"),
        ports=ports,
        health=f"{settings.url('model_http')}/v2/health/live",
        deadline_s=240,
        env={**settings_env(settings, without=_NOT_SERVING), **NO_TELEMETRY},
    )


def _collector(settings: Settings) -> Service:
    return Service(
        name="collector",
        command=(sys.executable, "-m", "throughline.events.collector"),
        address=settings.local_url("collector"),
        ports=(settings.port("collector"),),
        health=f"{settings.local_url('collector')}/health",
        deadline_s=120,
        env={**settings_env(settings, without=_NOT_SERVING), **NO_TELEMETRY},
    )


def _dagster(settings: Settings) -> list[Service]:
    env = {**NO_TELEMETRY, "DAGSTER_HOME": str(settings.dagster_home)}
    with_settings = {**env, **settings_env(settings)}
    workspace = ("-w", str(settings.workspace))
    url, port, code_port = settings.url("dagster"), settings.port("dagster"), settings.port("graph")
    return [
        Service(
            name="code-location",
            command=(
                *(_executable("dagster"), "api", "grpc", "--module-name", "assets.definitions"),
                *("--host", "127.0.0.1", "--port", str(code_port), "--location-name", LOCATION),
                *("--log-level", "warning"),
            ),
            address=None,
            ports=(code_port,),
            health=f"tcp://127.0.0.1:{code_port}",  # it listens when the graph is loaded
            deadline_s=300,
            env={**with_settings, "GRAPH_FINGERPRINT": fingerprint_graph()},  # restarted when it changed
        ),
        Service(
            name="dagster-webserver",
            command=(
                *(sys.executable, "-m", "assets.webserver"),
                *workspace,
                *("--host", _host(settings), "--port", str(port)),
            ),
            address=url,
            ports=(port,),
            health=f"{url}/server_info",
            deadline_s=300,
            env={**env, **_guard_env(settings)},
            needs=("code-location",),
            # Webserver and daemon that create the databases at the same moment fail (in 3 of 8 trials).
            setup=(_executable("dagster"), "instance", "info"),
            made=settings.dagster_home / "schedules" / "schedules.db",  # the last of them
        ),
        Service(
            name="dagster-daemon",
            command=(_executable("dagster-daemon"), "run", *workspace),
            address=None,
            ports=(),
            health=f"daemon+{url}/graphql",
            deadline_s=300,
            env=with_settings,  # runs are forks of its child
            needs=("code-location", "dagster-webserver"),  # the webserver reports its heartbeats
        ),
    ]
