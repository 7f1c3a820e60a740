"""Settings come from the environment or throughline.toml, are checked as a whole, and never show a secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import DEFAULT_PORTS, SECRETS, Settings, is_loopback, load_settings


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A throughline.toml of our own instead of the checkout's."""
    path = tmp_path / "throughline.toml"
    monkeypatch.setitem(Settings.model_config, "toml_file", path)
    return path


GIVEN = {
    "home": ("/tmp/somewhere", Path("/tmp/somewhere")),
    "lakehouse_uri": ("s3://lake/throughline/", "s3://lake/throughline"),
    "retention_days": ("30", 30),
    "port_base": ("24000", 24000),
    "bind": ("127.0.0.2", "127.0.0.2"),
    "hosts": ("ml.example.com, two.example.com", "ml.example.com, two.example.com"),
    "collector_url": ("http://collector:80", "http://collector:80"),
    "openlineage_url": ("https://marquez:5000/", "https://marquez:5000"),
    "traffic": ("shadow", "shadow"),
    "clock": ("wall", "wall"),
    "data_from": ("2013-02-03", "2013-02-03"),
    "data_until": ("2013-04-05", "2013-04-05"),
    "spark_remote": ("sc://cluster:15002", "sc://cluster:15002"),
    "spark_memory": ("8g", "8g"),
    "offline_engine": ("spark", "spark"),
    "training_processes": ("4", 4),
    "training_epochs": ("3", 3),
    "mlflow_artifacts": ("s3://mlflow/artifacts/", "s3://mlflow/artifacts"),
    "keep_models": ("5", 5),
    "signing": ("pkcs11:token=models;object=key", "pkcs11:token=models;object=key"),
    "sigstore_identity": ("models@example.org", "models@example.org"),
    "sigstore_issuer": ("https://accounts.example.org", "https://accounts.example.org"),
    "model_workers": ("2", 2),
    "model_load_s": ("5", 5.0),
    "model_memory_mb": ("512", 512),
    "micro_batch": ("8", 8),
    "feature_cache": ("0", 0),
    "step_timeout_s": ("12.5", 12.5),
}


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name not in SECRETS])
def test_every_setting_has_its_name_in_the_environment(name: str, monkeypatch: pytest.MonkeyPatch, toml: Path) -> None:
    text, value = GIVEN[name]
    monkeypatch.setenv(f"THROUGHLINE_{name.upper()}", text)
    read = getattr(load_settings(), name)
    assert read in (value, Path(text).resolve()) or str(read) == value


def test_an_argument_precedes_the_environment_which_precedes_the_file(
    monkeypatch: pytest.MonkeyPatch, toml: Path
) -> None:
    toml.write_text('spark_memory = "1g"\ntraining_processes = 7\nclock = "wall"\n')
    monkeypatch.setenv("THROUGHLINE_SPARK_MEMORY", "2g")
    monkeypatch.setenv("THROUGHLINE_TRAINING_PROCESSES", "8")
    settings = load_settings(spark_memory="3g")
    assert (settings.spark_memory, settings.training_processes, settings.clock) == ("3g", 8, "wall")


def test_a_home_is_absolute_whatever_was_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toml: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert load_settings(home="here").home == tmp_path / "here"
    assert load_settings(home="~/there").home == Path("/home/ada/there")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("nope = 1", "nope"),
        ('clock = "sundial"', "clock"),
        ("port_base = 80", "port_base"),
        ("port_base = 65500", "port_base"),
        ("training_processes = 0", "training_processes"),
        ("step_timeout_s = 0", "step_timeout_s"),
        ("retention_days = 6", "retention_days"),
        ('lakehouse_uri = "lake"', "lakehouse_uri: give an absolute folder"),
        ('lakehouse_uri = "gs://lake/x"', "lakehouse_uri: give an absolute folder"),
        ('lakehouse_uri = "s3://"', "lakehouse_uri: give an absolute folder"),
        ('data_from = "soon"', "data_from"),
        ("home = [", "throughline.toml"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(content: str, named: str, toml: Path) -> None:
    toml.write_text(content)
    with pytest.raises(ThroughlineError, match=named) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_named_at_once(toml: Path) -> None:
    with pytest.raises(ThroughlineError, match=r"port_base: .*; clock: "):
        load_settings(port_base=1, clock="sundial")


def test_services_have_the_well_known_ports_unless_a_base_moves_all_of_them(tmp_path: Path) -> None:
    usual = Settings(home=tmp_path)
    assert {name: usual.port(name) for name in DEFAULT_PORTS} == {
        "model_http": 8080, "model_grpc": 8081, "collector": 8090, "dagster": 3000, "mlflow": 5000, "spark": 15002,
        "graph": 4000,
    }  # fmt: skip
    moved = Settings(home=tmp_path, port_base=24000)
    assert [moved.port(name) for name in DEFAULT_PORTS] == list(range(24000, 24000 + len(DEFAULT_PORTS)))
    assert moved.url("mlflow") == "http://127.0.0.1:24004"
    assert moved.spark_url == "sc://127.0.0.1:24005"


def test_two_homes_whose_bases_are_as_far_apart_as_there_are_services_share_no_port(tmp_path: Path) -> None:
    one, other = Settings(home=tmp_path, port_base=24000), Settings(home=tmp_path, port_base=24000 + len(DEFAULT_PORTS))
    assert not {one.port(name) for name in DEFAULT_PORTS} & {other.port(name) for name in DEFAULT_PORTS}


@pytest.mark.parametrize("bind", ["0.0.0.0", "10.1.2.3", "::", "example.org", ""])
@pytest.mark.parametrize("token", [None, "", "  "])
def test_beyond_loopback_a_token_is_demanded_and_an_empty_one_is_none(
    tmp_path: Path, bind: str, token: str | None
) -> None:
    with pytest.raises(ThroughlineError, match="THROUGHLINE_TOKEN"):
        load_settings(home=tmp_path, bind=bind, token=token)
    assert load_settings(home=tmp_path, bind=bind, token="s3cret").bind == bind


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_on_loopback_no_token_is_needed(tmp_path: Path, bind: str) -> None:
    assert is_loopback(bind)
    assert load_settings(home=tmp_path, bind=bind).token is None


@pytest.mark.parametrize(
    ("bind", "guarded", "unguarded"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("::1", "[::1]", "[::1]"),
        ("0.0.0.0", "127.0.0.1", "127.0.0.1"),
        ("::", "127.0.0.1", "127.0.0.1"),
        ("10.1.2.3", "10.1.2.3", "127.0.0.1"),  # MLflow and Dagster demand no token: they stay on loopback
    ],
)
def test_a_url_leads_to_where_the_service_listens(tmp_path: Path, bind: str, guarded: str, unguarded: str) -> None:
    settings = Settings(home=tmp_path, bind=bind, token="t", port_base=24000)
    assert settings.url("model_http") == f"http://{guarded}:24000"
    assert settings.url("collector") == f"http://{guarded}:24002"
    assert settings.url("dagster") == f"http://{unguarded}:24003"


def test_the_collector_and_spark_may_be_elsewhere(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, collector_url="http://collector:80/", spark_remote="sc://cluster:15002")
    assert settings.url("collector") == "http://collector:80"
    assert settings.spark_url == "sc://cluster:15002"


@pytest.mark.parametrize(
    "url", ["ftp://h", "collector:80", "http://me:s3cret@h", "https://h/?token=s3cret", "https://"]
)
def test_an_address_of_the_collector_that_would_not_be_honoured_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ThroughlineError, match="collector_url: give http") as caught:
        load_settings(home=tmp_path, collector_url=url)
    assert "s3cret" not in str(caught.value)
    assert load_settings(home=tmp_path, collector_url="https://h/in/").url("collector") == "https://h/in"


def test_tables_may_be_in_another_folder_or_in_a_bucket_and_the_catalog_stays(tmp_path: Path) -> None:
    elsewhere = load_settings(home=tmp_path, lakehouse_uri=str(tmp_path / "lake"))
    assert elsewhere.table_path("u", "raw", "t") == tmp_path / "lake" / "u" / "raw" / "t"
    bucket = load_settings(home=tmp_path, lakehouse_uri="s3://lake/throughline/")
    assert str(bucket.table_path("u", "raw", "t")) == "s3://lake/throughline/u/raw/t"
    assert bucket.catalog == elsewhere.catalog == tmp_path / "lakehouse" / "catalog"


@pytest.mark.parametrize("uri", ["s3://key:s3cret@lake/x", "s3://lake/x?secret=s3cret", "https://key:s3cret@lake"])
def test_an_address_with_credentials_is_refused_without_repeating_them(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ThroughlineError, match=r"credentials come from AWS_\* or a profile") as caught:
        load_settings(home=tmp_path, lakehouse_uri=uri)
    assert "s3cret" not in str(caught.value)


def test_a_secret_is_in_no_text_made_of_settings(monkeypatch: pytest.MonkeyPatch, toml: Path) -> None:
    monkeypatch.setenv("THROUGHLINE_TOKEN", "s3cret-value")
    monkeypatch.setenv("THROUGHLINE_ONLINE_STORE", "redis://me:s3cret@cache:6379/3")
    settings = load_settings()
    assert settings.token.get_secret_value() == "s3cret-value"
    assert settings.online_store.get_secret_value() == "redis://me:s3cret@cache:6379/3"
    for text in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert "s3cret" not in text
    with pytest.raises(ThroughlineError) as caught:
        load_settings(clock="sundial")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://cache", "rediss://:pass@10.0.0.1:6380/2", "redis://cache:6379"])
def test_an_online_store_is_a_redis_database(url: str, toml: Path) -> None:
    assert load_settings(online_store=url).online_store.get_secret_value() == url


@pytest.mark.parametrize("url", ["memcached://:s3cret@cache", "cache:6379", "redis://", "redis://:s3cret@cache/a b"])
def test_another_online_store_is_refused_without_repeating_its_address(url: str, toml: Path) -> None:
    with pytest.raises(ThroughlineError, match="online_store: give redis://HOST:PORT/DB") as caught:
        load_settings(online_store=url)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["postgresql://mlflow@db/mlflow", "postgresql://me:p%40ss@10.0.0.1:5432/db?sslmode=require"]
)
def test_the_store_of_mlflow_is_a_postgresql_database(url: str, toml: Path) -> None:
    assert load_settings(mlflow_store=url).mlflow_store.get_secret_value() == url


@pytest.mark.parametrize(
    "url", ["mysql://me:s3cret@db/mlflow", "postgresql://me:s3cret@db", "postgresql://me:s3@cret@db/mlflow", "db:5432"]
)
def test_another_store_is_refused_without_repeating_its_address(url: str, toml: Path) -> None:
    with pytest.raises(ThroughlineError, match="mlflow_store: give postgresql://") as caught:
        load_settings(mlflow_store=url)
    assert not [word for word in ("s3cret", "cret@") if word in str(caught.value)]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["/a/folder", "gs://bucket/x", "s3://", "s3://key:s3cret@bucket/x"])
def test_artifacts_are_in_a_bucket_or_in_the_home(uri: str, toml: Path) -> None:
    with pytest.raises(ThroughlineError, match="mlflow_artifacts: give s3://BUCKET/PREFIX") as caught:
        load_settings(mlflow_artifacts=uri)
    assert "s3cret" not in str(caught.value)


def test_settings_do_not_change_once_read(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(ValidationError):
        settings.bind = "0.0.0.0"


def test_all_state_is_below_the_home(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    places = [name for name, value in vars(Settings).items() if isinstance(value, property) and name != "spark_url"]
    assert len(places) >= 8
    folders = [getattr(settings, name) for name in places if isinstance(getattr(settings, name), Path)]
    assert len(set(folders)) == len(folders)
    assert all(tmp_path in folder.parents for folder in folders)
    assert settings.table_path("u", "raw", "t") == tmp_path / "lakehouse" / "u" / "raw" / "t"
