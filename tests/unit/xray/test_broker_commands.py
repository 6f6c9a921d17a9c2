"""What xray up and xray status say; the broker and Kafka are made up."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from xray.broker import LocalBroker
from xray.commands.app import app


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr("streaming.kafka.topics.create_topics", lambda *_: [])
    monkeypatch.setattr("streaming.kafka.topicchecks.check_topics", lambda *_, **__: None)
    monkeypatch.setattr(LocalBroker, "pid", lambda _: 1)


@pytest.mark.usefixtures("running")
def test_up_where_it_runs_starts_nothing_and_says_so() -> None:
    answer = CliRunner().invoke(app, ["up"])
    assert answer.exit_code == 0
    assert "was running already" in answer.output
    assert "starting" not in answer.output
    assert "fetch" not in answer.output


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("fetched", [True, False])
def test_a_first_start_says_that_jars_are_fetched(
    fetched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalBroker, "pid", lambda _: None)
    monkeypatch.setattr(LocalBroker, "has_jars", fetched)
    monkeypatch.setattr(LocalBroker, "start", lambda _: True)
    answer = CliRunner().invoke(app, ["up"])
    assert ("jars are fetched first" in answer.output) != fetched
    assert ": started." in answer.output


@pytest.mark.parametrize(
    ("servers", "advice"),
    [("127.0.0.1:1", "start it with 'xray up'"), ("kafka.invalid:9092", "look at XRAY_KAFKA__BOOTSTRAP_SERVERS")],
)
def test_status_advises_by_where_kafka_is(
    servers: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"bootstrap_servers": servers, "home": str(tmp_path), "champion": None, "kafka": False, "topics": {}}
    state |= {"champion_rendering_version": None, "spool": None}
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr("xray.status.describe_status", lambda _: state)
    answer = CliRunner().invoke(app, ["status"])
    assert answer.exit_code == 1
    assert advice in answer.output
    assert "Champion: none" in answer.output
