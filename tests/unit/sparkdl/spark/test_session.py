"""Which properties keep others away from a Spark session, for each kind of master. No session is started."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pyspark.errors import PySparkRuntimeError

from schemas.errors import JobError, SettingsError
from sparkdl.spark import session
from sparkdl.spark.session import SECRET_PROPERTY, SessionOptions, protect, start_session
from streaming.run import session as stream_session
from streaming.settings import load_settings
from training.data.dataset import Dataset
from training.model.material import Procedure
from xray import featurize, train

SECRET = "of-this-test"  # noqa: S105  no cluster's
ADDRESSES = {"spark.driver.host", "spark.driver.bindAddress"}
CLUSTERS = ("spark://one:7077,two:7077", "yarn", "k8s://https://10.0.0.1:6443")


def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **options: Any) -> dict[str, str]:
    """The properties with which a session would be created, and the environment's of that moment."""
    found: dict[str, str] = {}

    def create(settings: Mapping[str, str]) -> None:
        found.update(settings)
        found.update({name: value for name, value in os.environ.items() if name.startswith("SPARK_LOCAL_")})

    monkeypatch.setattr(session, "_create", create)
    monkeypatch.setattr(session, "find_java", lambda: None)
    start_session(app_name="test", log_folder=tmp_path, **options)
    return found


@pytest.mark.parametrize("master", ["local", "local[2]", "local[*]", "local[2,4]", "local-cluster[1,1,1024]"])
def test_a_local_master_is_on_loopback_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, master: str
) -> None:
    monkeypatch.setenv("SPARK_LOCAL_IP", "10.0.0.7")
    monkeypatch.setenv("SPARK_LOCAL_HOSTNAME", "ward-3")
    found = started(monkeypatch, tmp_path, master=master)
    assert {found[name] for name in ADDRESSES} == {"127.0.0.1"}
    assert found["SPARK_LOCAL_IP"] == "127.0.0.1"
    assert "SPARK_LOCAL_HOSTNAME" not in found
    assert found["spark.authenticate"] == "true"
    assert (os.environ["SPARK_LOCAL_IP"], os.environ["SPARK_LOCAL_HOSTNAME"]) == ("10.0.0.7", "ward-3")


def test_an_environment_without_addresses_stays_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPARK_LOCAL_IP", raising=False)
    assert started(monkeypatch, tmp_path)["SPARK_LOCAL_IP"] == "127.0.0.1"
    assert "SPARK_LOCAL_IP" not in os.environ


@pytest.mark.parametrize("master", CLUSTERS)
def test_a_cluster_authenticates_and_encrypts_and_keeps_its_addresses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, master: str
) -> None:
    monkeypatch.setenv("SPARK_LOCAL_IP", "10.0.0.7")
    found = started(monkeypatch, tmp_path, master=master, conf={SECRET_PROPERTY: SECRET})
    assert found["spark.master"] == master
    assert not ADDRESSES & set(found)
    assert found["SPARK_LOCAL_IP"] == "10.0.0.7"
    assert {name: value for name, value in found.items() if name in protect(master)} == {
        "spark.authenticate": "true",
        "spark.network.crypto.enabled": "true",
        "spark.network.crypto.authEngineVersion": "2",
        "spark.network.crypto.cipher": "AES/GCM/NoPadding",
        "spark.network.crypto.saslFallback": "false",
        "spark.io.encryption.enabled": "true",
    }
    assert found[SECRET_PROPERTY] == SECRET


@pytest.mark.parametrize("conf", [{}, {SECRET_PROPERTY: ""}])
@pytest.mark.parametrize("as_property", [False, True])
def test_a_cluster_without_a_secret_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, conf: dict[str, str], as_property: bool
) -> None:
    master = {"conf": conf | {"spark.master": CLUSTERS[0]}} if as_property else {"master": CLUSTERS[0], "conf": conf}
    with pytest.raises(SettingsError, match=r"XRAY_SPARK__SECRET.*spark\.authenticate\.secret") as caught:
        started(monkeypatch, tmp_path, **master)
    assert CLUSTERS[0] in str(caught.value)


@pytest.mark.parametrize("master", ["yarn", "k8s://https://10.0.0.1:6443", "local[2]"])
def test_where_spark_makes_up_the_secret_none_is_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, master: str
) -> None:
    assert SECRET_PROPERTY not in started(monkeypatch, tmp_path, master=master)


def test_a_cluster_on_this_machine_gets_a_secret_of_its_own() -> None:
    first, second = (protect("local-cluster[1,1,1024]") for _ in range(2))
    assert len(first[SECRET_PROPERTY]) == 64
    assert first[SECRET_PROPERTY] != second[SECRET_PROPERTY]
    assert first["spark.io.encryption.enabled"] == "true"


def test_properties_of_the_callers_own_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = {"spark.driver.bindAddress": "10.0.0.7", "spark.network.crypto.cipher": "AES/CTR/NoPadding"}
    found = started(monkeypatch, tmp_path, master="local[2]", conf=own)
    assert own.items() <= found.items()
    assert found["spark.driver.host"] == "127.0.0.1"
    off = {"spark.authenticate": "false"}
    assert started(monkeypatch, tmp_path, master=CLUSTERS[0], conf=off)["spark.authenticate"] == "false"


@pytest.mark.parametrize("master", ["local[2]", "local-cluster[1,1,1024]", "yarn"])
def test_only_one_process_finds_jars_by_the_class_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, master: str
) -> None:
    found = started(monkeypatch, tmp_path, master=master, jars=[Path("/a.jar"), Path("/b.jar")])
    if master == "local[2]":
        assert found["spark.driver.extraClassPath"] == "/a.jar:/b.jar"
        assert "spark.jars" not in found
    else:
        assert found["spark.jars"] == "/a.jar,/b.jar"


@pytest.mark.parametrize("master", CLUSTERS)
def test_options_that_are_shown_show_no_secret(tmp_path: Path, master: str) -> None:
    options = SessionOptions("x", tmp_path, master, "1g", (), (), {SECRET_PROPERTY: SECRET}, False)
    assert SECRET not in f"{options} {options!r}"
    assert master in repr(options)


class _StartedError(Exception):
    """Raised in place of starting Spark."""


@pytest.mark.parametrize("command", ["stream", "train", "featurize"])
def test_every_command_hands_over_the_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str) -> None:
    monkeypatch.setenv("XRAY_SPARK__SECRET", SECRET)
    settings = load_settings(home=tmp_path)
    found: dict[str, str] = {}

    def start(**options: Any) -> None:
        found.update(options["conf"])
        raise _StartedError

    monkeypatch.setattr(stream_session, "start_with", lambda options, _: start(conf=options.conf))
    for module in (train, featurize):
        monkeypatch.setattr(module, "start_session", start)
    monkeypatch.setattr(stream_session, "resolve_jars", lambda *_: [])
    monkeypatch.setattr(train, "read_dataset", lambda *_, **__: Dataset((), ("normal", "ill"), True))
    monkeypatch.setattr(train, "train_model", lambda spark, *_, **__: spark())
    calls: dict[str, Callable[[], object]] = {
        "stream": lambda: stream_session.open_session(settings),
        "train": lambda: train.train_on(settings, tmp_path, classes=None, procedure=Procedure(), seed=0, verbose=False),
        "featurize": lambda: featurize.featurize(settings, tmp_path, tmp_path, images_per_batch=1, verbose=False),
    }
    with pytest.raises(_StartedError):
        calls[command]()
    assert found[SECRET_PROPERTY] == SECRET


def test_a_spark_that_does_not_start_says_why_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the JVM prints and what pyspark raises is made up here; starting one takes seconds."""

    def create(_: object) -> None:
        os.write(2, b"WARN noise\nException in 'main' org.apache.spark.SparkException: Could not parse Master URL\n")
        raise PySparkRuntimeError(errorClass="JAVA_GATEWAY_EXITED", messageParameters={})

    monkeypatch.setattr(session, "_create", create)
    with pytest.raises(JobError) as caught:
        session.start_session(app_name="x", log_folder=tmp_path, master="local[*]")
    said = str(caught.value)
    assert said.startswith("Spark did not start with the master local[*]: Could not parse Master URL; ")
    assert str(tmp_path / "spark-console.log") in said
    assert "\n" not in said
