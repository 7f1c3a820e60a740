"""Every setting of the platform, typed, from the environment or `throughline.toml`.

Owns: names, defaults, ports, the layout of the home folder; no other module reads the environment.
Does not own: what a use case declares (`usecase/`).
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)
from upath import UPath

from throughline.foundation.errors import ThroughlineError

PROJECT_ROOT = Path(__file__).resolve().parents[3]

DEFAULT_PORTS = {
    "model_http": 8080,
    "model_grpc": 8081,
    "collector": 8090,
    "dagster": 3000,
    "mlflow": 5000,
    "spark": 15002,
    "graph": 4000,
}

# Services that listen on `bind` and demand the token there; the others listen on loopback only.
_GUARDED = {"model_http", "model_grpc", "collector"}
# Never written to a file: processes that a command starts inherit them.
SECRETS = ("token", "online_store", "mlflow_store", "openlineage_key")
_ANY_ADDRESS = {"0.0.0.0", "::", ""}
_BUCKET = r"s3://[a-z0-9][a-z0-9.-]+(/[\w.=-]+)*/?"
# Setting -> its form, and the message of a refusal, without the value: it may hold a password or a PIN.
_FORMS = {
    "online_store": (
        r"rediss?://([^@/\s]*@)?[^@/:\s]+(:\d+)?(/\d+)?",
        "give redis://HOST:PORT/DB, or leave it out for SQLite; USER:PASSWORD@ go before HOST",
    ),
    "mlflow_store": (
        r"postgresql(\+psycopg2)?://([^@/\s]+@)?[^@/:\s]+(:\d+)?/[^@/?\s]+(\?\S+)?",
        "give postgresql://USER:PASSWORD@HOST:PORT/DB (with @ : / in the password as %40 %3A %2F), or leave it out for "
        "SQLite",
    ),
    "mlflow_artifacts": (
        _BUCKET,
        "give s3://BUCKET/PREFIX, or leave it out for a folder; credentials come from AWS_* or a profile",
    ),
    "signing": (
        r"key|sigstore|pkcs11:(?!.*pin-value).*",
        "give key, sigstore or a pkcs11: URI, whose PIN goes into a file (pin-source)",
    ),
    "collector_url": (
        r"https?://[^@/\s?#]+(/[^@\s?#]*)?",
        "give http(s)://HOST:PORT or http(s)://HOST/PATH; a token goes into THROUGHLINE_TOKEN",
    ),
    "openlineage_url": (r"https?://[^@/\s]+(/[^@\s]*)?", "give http(s)://HOST:PORT; a token goes into openlineage_key"),
}


class Settings(BaseSettings):
    """Read by `load_settings`; immutable."""

    model_config = SettingsConfigDict(
        env_prefix="THROUGHLINE_", toml_file=PROJECT_ROOT / "throughline.toml", extra="forbid", frozen=True
    )

    home: Path = Field(PROJECT_ROOT / ".throughline", description="All state: tables, catalog, registries, logs.")
    lakehouse_uri: str | None = Field(
        None, description="Where tables are: a folder, or s3://BUCKET/PREFIX; unset means `lakehouse` in the home."
    )
    retention_days: int = Field(
        14, ge=7, description="Table versions that nothing pins, and folders of past runs, are kept this long."
    )
    port_base: int | None = Field(
        None, ge=1024, le=65000, description="First of seven consecutive ports; unset means the well-known ports."
    )
    bind: str = Field("127.0.0.1", description="Address the services listen on.")
    hosts: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9.:-]+( *, *[A-Za-z0-9.:-]+)*$",
        description="Host names, comma-separated, under which callers and their web pages reach the services beside "
        "this machine's own, as those of a proxy.",
    )
    token: SecretStr | None = Field(None, description="Bearer token; demanded when `bind` is not a loopback address.")
    online_store: SecretStr | None = Field(
        None, description="redis://[USER:PASSWORD@]HOST:PORT/DB, or rediss:// for TLS; unset means SQLite in the home."
    )
    mlflow_store: SecretStr | None = Field(
        None, description="postgresql://USER:PASSWORD@HOST:PORT/DB of runs and registry; unset: SQLite in the home."
    )
    mlflow_artifacts: str | None = Field(
        None, description="s3://BUCKET/PREFIX of what runs and versions leave; unset means a folder in the home."
    )
    keep_models: int = Field(20, ge=1, description="This many of a model's newest versions are never removed.")
    collector_url: str | None = Field(
        None, description="Receiver of inference events, http(s)://HOST[:PORT][/PATH]; unset: this home's collector."
    )
    openlineage_url: str | None = Field(
        None, description="Receiver of OpenLineage events of a run's steps, http(s)://HOST:PORT; unset: none are sent."
    )
    openlineage_key: SecretStr | None = Field(None, description="Bearer token of that receiver.")
    traffic: Literal["shadow"] | None = Field(
        None, description="`shadow` for a model server that only gets copies: they name the class of their originals."
    )
    clock: Literal["replay", "wall"] = Field("replay", description="What the data clock follows.")
    data_from: date | None = Field(None, description="First local day of data; unset means the declaration's.")
    data_until: date | None = Field(None, description="Local day at whose start the replay begins (exclusive).")
    spark_remote: str | None = Field(None, description="A Spark Connect URL (sc://...) to use instead of our own.")
    offline_engine: Literal["polars", "spark"] = Field("polars", description="What joins training rows to features.")
    spark_memory: str = Field("3g", description="Heap of the local Spark Connect server.")
    training_processes: int | None = Field(None, ge=1, description="Workers per training; unset: the declaration's.")
    training_epochs: int | None = Field(None, ge=1, description="Epochs per training; unset: the trainer's.")
    signing: str = Field(
        "key", description="What signs models: `key` (a pair in the home), `sigstore`, or pkcs11:... (an HSM or KMS)."
    )
    sigstore_identity: str | None = Field(None, description="Whose Sigstore signatures are trusted; unset: none.")
    sigstore_issuer: str | None = Field(None, description="URL of that identity's OpenID provider.")
    model_workers: int = Field(1, ge=1, le=64, description="Processes that answer predictions.")
    model_load_s: float = Field(60, gt=0, description="A model must load and score its recorded rows in this time.")
    model_memory_mb: int = Field(2048, ge=256, description="Memory that a model may take for that, in MB.")
    micro_batch: int | None = Field(
        None, ge=1, description="Requests that wait together are read together, at most so many; unset: 32 with Redis."
    )
    feature_cache: int = Field(
        20_000, ge=0, description="Rows of the SQLite online store that a model server keeps; 0: it reads each time."
    )
    step_timeout_s: float = Field(1800, gt=0, description="Deadline of one launched training, in seconds.")

    @field_validator(*SECRETS, mode="before")
    @classmethod
    def _blank_is_none(cls, secret: object) -> object:
        return None if isinstance(secret, str) and not secret.strip() else secret

    @field_validator(*_FORMS)
    @classmethod
    def _has_its_form(cls, value: SecretStr | str | None, info: ValidationInfo) -> SecretStr | str | None:
        if value is None:
            return None
        form, remedy = _FORMS[str(info.field_name)]
        if not re.fullmatch(form, value.get_secret_value() if isinstance(value, SecretStr) else value):
            raise ValueError(remedy)
        return value if isinstance(value, SecretStr) else value.rstrip("/")

    @field_validator("lakehouse_uri")
    @classmethod
    def _a_folder_or_a_bucket(cls, uri: str | None) -> str | None:
        if uri is None or re.fullmatch(_BUCKET, uri):
            return uri and uri.rstrip("/")
        if "://" in uri or not (path := Path(uri).expanduser()).is_absolute():
            # not repeated in the message: it may hold a password
            raise ValueError("give an absolute folder or s3://BUCKET/PREFIX; credentials come from AWS_* or a profile")
        return str(path)

    @model_validator(mode="after")
    def _beyond_loopback_needs_a_token(self) -> Settings:
        if not is_loopback(self.bind) and self.token is None:
            raise ValueError(f"other machines can reach bind={self.bind}: set THROUGHLINE_TOKEN, or bind to 127.0.0.1")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def port(self, service: str) -> int:
        """The port of one of `DEFAULT_PORTS`; consecutive from `port_base` when that is set."""
        if self.port_base is None:
            return DEFAULT_PORTS[service]
        return self.port_base + list(DEFAULT_PORTS).index(service)

    def url(self, service: str) -> str:
        """Base URL of an HTTP service, as seen from this machine; the collector may be on another."""
        if service == "collector" and self.collector_url:
            return self.collector_url
        return self.local_url(service)

    def local_url(self, service: str) -> str:
        """Base URL of an HTTP service of this machine."""
        host = self.bind
        if not is_loopback(host) and (service not in _GUARDED or host in _ANY_ADDRESS):
            host = "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port(service)}"

    def is_local(self, service: str) -> bool:
        """Whether a service is one of this home on this machine."""
        return not (service == "collector" and self.collector_url)

    @property
    def host_names(self) -> frozenset[str]:
        """The names in `hosts`, in lower case."""
        return frozenset(name.strip().lower() for name in (self.hosts or "").split(",") if name.strip())

    @property
    def spark_url(self) -> str:
        return self.spark_remote or f"sc://127.0.0.1:{self.port('spark')}"

    # The layout of the home folder: no other module joins these paths.
    @property
    def lakehouse(self) -> Path | UPath:
        """The root of all tables. In a bucket it is a name to build addresses from, not a file system."""
        return UPath(self.lakehouse_uri) if self.lakehouse_uri else self.home / "lakehouse"

    @property
    def catalog(self) -> Path:
        """Spark's tables by name; always on this machine."""
        return self.home / "lakehouse" / "catalog"

    @property
    def warehouse(self) -> Path:
        return self.home / "lakehouse" / "warehouse"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def dagster_home(self) -> Path:
        return self.home / "dagster"

    @property
    def workspace(self) -> Path:
        """Dagster's workspace file: it names the port of this home's code location."""
        return self.dagster_home / "workspace.yaml"

    @property
    def dbt_home(self) -> Path:
        return self.home / "dbt"

    @property
    def feast_home(self) -> Path:
        return self.home / "feast"

    @property
    def mlflow_home(self) -> Path:
        return self.home / "mlflow"

    @property
    def records(self) -> Path:
        return self.home / "records"

    @property
    def serving_home(self) -> Path:
        return self.home / "serving"

    @property
    def outboxes(self) -> Path:
        """A folder per process of the model server, with the events that the collector has not confirmed."""
        return self.serving_home / "spool" / "outbox"

    @property
    def keys(self) -> Path:
        """This home's key pair for signing models, and the public keys that it trusts."""
        return self.home / "keys"

    @property
    def profiles(self) -> Path:
        """Pages of plots, one per table version."""
        return self.home / "profiles"

    @property
    def load_reports(self) -> Path:
        """A page per load test."""
        return self.home / "loadtests"

    def table_path(self, usecase: str, layer: str, table: str) -> Path | UPath:
        """The address of the Delta table `usecase/layer/table`."""
        return self.lakehouse / usecase / layer / table


def in_bucket(location: object) -> bool:
    """Whether an address is on object storage, where only one engine writes a table."""
    return str(location).startswith("s3://")


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address or `localhost`; any other name counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(**overrides: Any) -> Settings:
    """Settings of this process; `home` is made absolute. Raises `ThroughlineError` naming each bad setting."""
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise ThroughlineError(f"Settings refused ({problems}): correct THROUGHLINE_* or throughline.toml.") from error
    except (tomllib.TOMLDecodeError, SettingsError) as error:
        raise ThroughlineError(f"Settings cannot be read ({error}): correct throughline.toml.") from error
    return settings.model_copy(update={"home": settings.home.expanduser().resolve()})
