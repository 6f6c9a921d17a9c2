"""What is made of the broker's answers; the answers are made up."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.errors import BrokerError
from streaming.kafka.topicchecks import TopicFault
from streaming.kafka.topics import label_topics, receipt_topics, wanted_topics
from streaming.settings import KafkaSettings, StreamSettings
from xray.doctor import broker as module
from xray.doctor.broker import (
    check_clocks,
    check_reach,
    check_rights,
    check_topics,
    is_synchronized,
    judge_broker_clock,
    read_newest,
)
from xray.doctor.finding import Finding, Verdict

KAFKA = KafkaSettings()
SETTINGS = StreamSettings()
AWAY = "cannot reach Kafka at 127.0.0.1:19092: refused. Start the local one with 'xray up'."


def raise_away(*_: object) -> Any:
    raise BrokerError(AWAY)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    names = [*wanted_topics(KAFKA), *label_topics(KAFKA), *receipt_topics(KAFKA)]
    made = SimpleNamespace(brokers={1: None}, topics={name: SimpleNamespace(partitions={0: None}) for name in names})
    monkeypatch.setattr(module, "describe_cluster", lambda _: made)
    return made


@pytest.mark.parametrize("check", [check_reach, check_topics, check_rights, check_clocks])
def test_a_broker_that_is_away_is_a_fault_with_its_advice(monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    for name in ("describe_cluster", "find_topic_faults", "find_lacking", "read_newest"):
        monkeypatch.setattr(module, name, raise_away)
    [fault] = [one for one in check(SETTINGS) if one.verdict is Verdict.FAULT]
    assert fault.found == "cannot reach Kafka at 127.0.0.1:19092: refused"
    assert fault.advice == "Start the local one with 'xray up'."


@pytest.mark.parametrize(("replicas", "n_findings"), [(1, 1), (3, 2)])
def test_more_replicas_than_brokers_are_warned_of(cluster: SimpleNamespace, replicas: int, n_findings: int) -> None:
    found = list(check_reach(StreamSettings(kafka=KafkaSettings(replication_factor=replicas))))
    assert len(found) == n_findings
    assert found[-1].verdict is (Verdict.OK if n_findings == 1 else Verdict.WARNING)


def test_topics_are_told_one_by_one(cluster: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [
        TopicFault(KAFKA.images_topic, stops=True, text="topic xray.images is missing. Create it with 'xray up'."),
        TopicFault(KAFKA.features_topic, stops=False, text="topic xray.features is short. Raise it."),
        TopicFault(KAFKA.deadletters_topic, stops=True, text="topic xray.deadletters is hidden.", is_hidden=True),
    ]
    monkeypatch.setattr(module, "find_topic_faults", lambda _: faults)
    found = list(check_topics(SETTINGS))
    assert found[0] == Finding("topics", Verdict.FAULT, "topic xray.images is missing", "Create it with 'xray up'.")
    assert [one.verdict for one in found[1:3]] == [Verdict.WARNING] * 2
    assert [one.verdict for one in found[3:]] == [Verdict.OK] * (len(wanted_topics(KAFKA)) - 3)


def test_topics_that_not_everybody_uses_are_no_fault(cluster: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_topic_faults", lambda _: [])
    del cluster.topics[KAFKA.receipts_topic]
    [missing] = [one for one in check_topics(SETTINGS) if "is not there" in one.found]
    assert missing.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("roles", "verdicts"),
    [
        ((), [Verdict.OK]),
        (("device",), [Verdict.OK]),
        (("stream",), [Verdict.FAULT, Verdict.OK]),
        (("device", "stream"), [Verdict.FAULT, Verdict.OK]),
    ],
)
def test_a_role_that_is_wanted_and_lacks_something_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, roles: tuple[str, ...], verdicts: list[Verdict]
) -> None:
    lacking = {"device": [], "stream": ["Read on topic xray.images"]}
    monkeypatch.setattr(module, "find_lacking", lambda _: lacking)
    found = list(check_rights(SETTINGS, roles))
    assert [one.verdict for one in found] == verdicts
    assert found[-1].found == "this user may be: device"


def test_a_user_of_no_role_is_told_what_the_nearest_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = {"device": ["Write on topic xray.images"], "stream": ["a", "b"]}
    monkeypatch.setattr(module, "find_lacking", lambda _: lacking)
    [finding] = check_rights(SETTINGS)
    assert finding.verdict is Verdict.FAULT
    assert "for device, the nearest, it lacks Write on topic xray.images" in finding.found


@pytest.mark.parametrize(
    ("newest", "came_back", "verdict", "said"),
    [
        (None, None, Verdict.OK, "no canary"),
        (1000.0, None, Verdict.OK, "within 22 s"),
        (985.0, None, Verdict.OK, "within 22 s"),
        (1001.5, None, Verdict.OK, "within 22 s"),
        (1005.0, None, Verdict.FAULT, "5.0 s ahead"),
        (400.0, None, Verdict.OK, "600 s old"),
        (400.0, 500.0, Verdict.OK, "600 s old"),  # the stream stands still
        (400.0, 990.0, Verdict.FAULT, "clock is behind"),
        (950.0, 990.0, Verdict.OK, "50 s old"),  # a backlog
    ],
)
def test_the_brokers_clock_is_judged_by_its_newest_canary(
    newest: float | None, came_back: float | None, verdict: Verdict, said: str
) -> None:
    finding = judge_broker_clock(newest, 1000.0, 20.0, came_back=came_back)
    assert finding.verdict is verdict
    assert said in finding.found


@pytest.mark.parametrize(("held", "verdict"), [(True, Verdict.OK), (None, Verdict.OK), (False, Verdict.WARNING)])
def test_a_clock_that_no_time_server_holds_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, held: bool | None, verdict: Verdict
) -> None:
    monkeypatch.setattr(module, "is_synchronized", lambda: held)
    monkeypatch.setattr(module, "read_newest", lambda _: None)
    monkeypatch.setattr(module, "_ask_stream", lambda _: None)
    assert next(iter(check_clocks(SETTINGS))).verdict is verdict


def test_the_kernel_is_asked_without_changing_its_clock() -> None:
    assert is_synchronized() in (True, False, None)


def test_the_newest_of_all_partitions_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer() -> Iterator[SimpleNamespace]:
        for at in (-1, 1_700_000_000_000):
            yield SimpleNamespace(result=lambda _, at=at: SimpleNamespace(timestamp=at))

    admin = SimpleNamespace(list_offsets=lambda asked, **_: dict(zip(asked, answer(), strict=True)))
    topics = {KAFKA.canary_topic: SimpleNamespace(partitions={0: None, 1: None})}
    monkeypatch.setattr(module, "open_admin", lambda _: (admin, SimpleNamespace(topics=topics)))
    assert read_newest(KAFKA) == 1_700_000_000.0
    monkeypatch.setattr(module, "open_admin", lambda _: (admin, SimpleNamespace(topics={})))
    assert read_newest(KAFKA) is None
