"""Settings: a bad value stops the start with the variable's name; every client gets what it needs."""

import json
import traceback
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from schemas.errors import SettingsError
from sparkdl.image.limits import DecodeLimits
from streaming.settings import (
    ENV_FILE_NAME,
    KafkaSettings,
    ScoreSettings,
    SparkSettings,
    choose_env_file,
    find_sources,
    load_settings,
    variable_names,
)
from xray.commands.app import app

_SASL = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "SCRAM-SHA-512",
    "sasl_username": "stream",
    "sasl_password": 'a"b\\c',
    "ssl_ca_location": Path("/etc/ca.pem"),
}


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRAY_KAFKA__BOOTSTRAP_SERVERS", "one:9092,two:9092")
    monkeypatch.setenv("XRAY_SCORE__MAX_IMAGES_PER_BATCH", "50")
    settings = load_settings()
    assert settings.kafka.bootstrap_servers == "one:9092,two:9092"
    assert settings.score.max_images_per_batch == 50


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("XRAY_KAFKA__PARTITIONS", "0", "XRAY_KAFKA__PARTITIONS: "),
        ("XRAY_KAFKA__SECURITY_PROTOCOL", "TLS", "'PLAINTEXT', 'SSL'"),
        ("XRAY_SPARK__DRIVER_MEMORY", "2 GB", "XRAY_SPARK__DRIVER_MEMORY: "),
        ("XRAY_SCORE__CANARY_S", "61", "XRAY_SCORE__CANARY_S: "),
        ("XRAY_METRICS__PORT", "http", "XRAY_METRICS__PORT: "),
        ("XRAY_SCORE__MODALITIES", "CR;DX", "XRAY_SCORE__MODALITIES: "),
        ("XRAY_SCORE__MODALITIES", "", "XRAY_SCORE__MODALITIES: "),
        ("XRAY_SCORE__MAX_IMAGES_PER_BATCHES", "5", "Did you mean XRAY_SCORE__MAX_IMAGES_PER_BATCH?"),
        ("XRAY_KAFKA__BOOTSTRAP_SERVERS", "broker", "'broker' is not one (found 'broker')"),
        ("XRAY_KAFKA__BOOTSTRAP_SERVERS", "one:9092,two:http", "wanted HOST:PORT"),
        ("XRAY_SPARK__MASTER", "local[x]", "XRAY_SPARK__MASTER: wanted local[*]"),
        ("XRAY_SPARK__MASTER", "locl", "wanted local[*], local[4], spark://HOST:PORT"),
        ("XRAY_KAFKA__SECURITY_PROTOCOL", "SASL_SSL", "also needs sasl_mechanism, sasl_username, sasl_password"),
    ],
)
def test_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert said in str(caught.value)


def test_password_is_never_shown() -> None:
    kafka = KafkaSettings(**{**_SASL, "sasl_password": "geheim"})  # type: ignore[arg-type]
    assert "geheim" not in repr(kafka)
    assert "geheim" not in str(kafka.model_dump(mode="json"))
    with pytest.raises(SettingsError) as caught:
        load_settings(kafka={"sasl_password": "geheim", "security_protocol": "SASL_SSL"})
    assert "geheim" not in str(caught.value)


def test_the_secret_of_a_spark_cluster_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRAY_SPARK__SECRET", "geheim")
    settings = load_settings()
    assert settings.spark.to_conf() == {"spark.authenticate.secret": "geheim"}
    assert "geheim" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    for arguments in (["settings"], ["settings", "--json"]):
        answer = CliRunner().invoke(app, arguments)
        assert answer.exit_code == 0
        assert "SECRET" in answer.output
        assert "geheim" not in answer.output
    assert SparkSettings().to_conf() == {}


@pytest.mark.parametrize(
    ("section", "name"), [("kafka", "sasl_password"), ("kafka", "sasl_passwords"), ("spark", "secret")]
)
def test_what_could_be_a_secret_is_not_repeated(section: str, name: str) -> None:
    secret = "ge" + "heim"  # put together here: a stack shows the lines of the source
    with pytest.raises(SettingsError) as caught:
        load_settings(**{section: {name: [secret]}})
    assert f"XRAY_{section}__{name}: ".upper() in str(caught.value)
    assert secret not in "".join(traceback.format_exception(caught.value))


def test_a_variable_in_small_letters_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("xray_kafka__sasl_passwort", "geheim")
    with pytest.raises(SettingsError, match="XRAY_KAFKA__SASL_PASSWORT") as caught:
        load_settings()
    assert "geheim" not in str(caught.value)


def test_no_setting_is_meant_where_only_the_prefix_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRAY_FOO", "1")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("master", ["local", "local[2]", "local[*, 4]", "spark://a:7077", "yarn", "k8s://https://a"])
def test_masters_that_spark_knows(monkeypatch: pytest.MonkeyPatch, master: str) -> None:
    monkeypatch.setenv("XRAY_SPARK__MASTER", master)
    assert load_settings().spark.master == master


# --- the file of settings ---------------------------------------------------------------------------------------------


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    yield tmp_path / ENV_FILE_NAME
    choose_env_file(None)


def test_the_file_in_the_state_folder_is_read_and_the_environment_wins(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file.write_text("# ours\nXRAY_KAFKA__PARTITIONS=7\nexport XRAY_KAFKA__BOOTSTRAP_SERVERS='a:1,b:2'\n")
    assert load_settings().kafka.partitions == 7
    assert load_settings().kafka.bootstrap_servers == "a:1,b:2"
    monkeypatch.setenv("XRAY_KAFKA__PARTITIONS", "9")
    assert load_settings().kafka.partitions == 9
    assert load_settings().kafka.bootstrap_servers == "a:1,b:2"
    sources = find_sources()
    assert sources["XRAY_KAFKA__PARTITIONS"] == "environment"
    assert sources["XRAY_KAFKA__BOOTSTRAP_SERVERS"] == str(env_file)
    assert sources["XRAY_MODEL"] == "default"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "XRAY_KAFKA__PARTITION=7",
            "XRAY_KAFKA__PARTITION: there is no such setting. Did you mean XRAY_KAFKA__PARTITI",
        ),
        ("KAFKA=7", "KAFKA: there is no such setting"),
        (
            "XRAY_SCORE__MAX_BATCH_BYTES=500000000",
            "XRAY_SCORE__MAX_BATCH_BYTES: there is no such setting any more: memory does not depend on how many bytes",
        ),
        ("XRAY_KAFKA__PARTITIONS=0", "XRAY_KAFKA__PARTITIONS: "),
        ("XRAY_KAFKA__SASL_MECHANISM=PLAIN\nXRAY_KAFKA__SECURITY_PROTOCOL=SASL_SSL", "XRAY_KAFKA: security_protocol"),
        ("XRAY_KAFKA__PARTITIONS", "line 1 is not KEY=VALUE"),
        ("= 7", "line 1 is not KEY=VALUE"),
        ("XRAY_HOME=/elsewhere", "XRAY_HOME says where this very file is"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_the_file(env_file: Path, text: str, said: str) -> None:
    env_file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert f"{env_file}: {said}" in str(caught.value)


def test_a_secret_of_the_file_is_not_repeated(env_file: Path) -> None:
    env_file.write_text("XRAY_KAFKA__SASL_PASSWORT=geheim")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "geheim" not in str(caught.value)


def test_another_file_is_read_instead(env_file: Path, tmp_path: Path) -> None:
    env_file.write_text("XRAY_KAFKA__PARTITIONS=7")
    other = tmp_path / "other.env"
    other.write_text("XRAY_METRICS__PORT=9")
    answer = CliRunner().invoke(app, ["--env", str(other), "settings", "--json"])
    values = json.loads(answer.output)
    assert (values["XRAY_METRICS__PORT"], values["XRAY_KAFKA__PARTITIONS"]) == (9, 4)
    values = json.loads(CliRunner().invoke(app, ["settings", "--json"]).output)
    assert (values["XRAY_METRICS__PORT"], values["XRAY_KAFKA__PARTITIONS"]) == (9464, 7)


def test_another_file_that_is_not_there_stops_the_start(env_file: Path) -> None:
    choose_env_file(env_file.with_name("no.env"))
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings()


# --- certificates -----------------------------------------------------------------------------------------------------

_CERTIFICATE = "-----BEGIN CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"ca": None}, "XRAY_KAFKA__SSL_CA_LOCATION: "),
        ({"ca": "no PEM"}, "-----BEGIN CERTIFICATE-----"),
        ({"certificate": _CERTIFICATE}, "ssl_certificate_location and ssl_key_location are wanted both or neither"),
        ({"certificate": _CERTIFICATE, "key": None}, "XRAY_KAFKA__SSL_KEY_LOCATION: "),
        # Python's clients read this form, Java does not.
        ({"certificate": _CERTIFICATE, "key": "-----BEGIN RSA PRIVATE KEY-----\n"}, "-----BEGIN PRIVATE KEY-----"),
    ],
)
def test_pem_files_are_checked_at_the_start(tmp_path: Path, files: dict[str, str | None], said: str) -> None:
    for name, text in files.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(kafka={f"ssl_{name}_location": str(tmp_path / name) for name in files})
    assert said in str(caught.value)


def test_every_client_logs_in() -> None:
    kafka = KafkaSettings(**_SASL)  # type: ignore[arg-type]
    librdkafka, spark = kafka.to_librdkafka(), kafka.to_spark()
    assert librdkafka["sasl.password"] == 'a"b\\c'
    assert librdkafka["ssl.ca.location"] == "/etc/ca.pem"
    assert spark["kafka.security.protocol"] == "SASL_SSL"
    assert spark["kafka.sasl.mechanism"] == "SCRAM-SHA-512"
    assert spark["kafka.sasl.jaas.config"] == (
        'org.apache.kafka.common.security.scram.ScramLoginModule required username="stream" password="a\\"b\\\\c";'
    )
    assert spark["kafka.ssl.truststore.location"] == "/etc/ca.pem"


def test_every_limit_of_an_image_is_a_setting() -> None:
    given = ScoreSettings(max_payload_bytes=4096, max_pixels=5000, modalities="DX,MG", for_processing=True).to_limits()
    assert given == DecodeLimits(4096, 5000, ("DX", "MG"), for_processing=True)
    assert ScoreSettings().to_limits() == DecodeLimits()
    assert {field.name for field in fields(DecodeLimits)} <= set(ScoreSettings.model_fields)


def test_every_setting_says_what_it_means() -> None:
    assert all(variable_names().values())


def test_the_largest_message_may_be_an_image() -> None:
    settings = load_settings()
    assert settings.score.max_payload_bytes == settings.kafka.max_message_bytes
    assert settings.train.max_file_bytes > settings.score.max_payload_bytes
    assert settings.to_file_limits() == DecodeLimits(settings.train.max_file_bytes)


def test_training_takes_the_images_that_the_stream_takes() -> None:
    settings = load_settings(score={"modalities": "MG", "for_processing": True}, train={"max_file_bytes": 5000})
    assert settings.to_file_limits() == DecodeLimits(5000, modalities=("MG",), for_processing=True)


@pytest.mark.parametrize("title", ["", "SEVENTEEN_LETTERS", " XRAY", "XRAY ", "X\\RAY", "RÖNTGEN"])
def test_what_is_no_title_is_told_what_one_is(title: str) -> None:
    with pytest.raises(SettingsError, match="XRAY_GATEWAY__AET: an AE title has 1 to 16 printable characters"):
        load_settings(gateway={"aet": title})


@pytest.mark.parametrize("title", ["X", "SIXTEEN_LETTERS_", "X RAY", "x-ray.1"])
def test_titles_of_the_standard_are_taken(title: str) -> None:
    assert load_settings(gateway={"aet": title}).gateway.aet == title
