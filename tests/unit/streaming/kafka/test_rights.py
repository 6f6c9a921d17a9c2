"""The rights of each role, without a broker; the table of docs/security.md is tried on a real one elsewhere."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AclOperation

from schemas.errors import BrokerError
from streaming.kafka import rights as module
from streaming.kafka.rights import find_lacking, list_roles
from streaming.settings import KafkaSettings
from tests.paths import ROOT

_ALL = tuple(AclOperation)


class ToldAdmin:
    """A fake broker: what it grants by kind and name, or the error that it answers with."""

    def __init__(self, told: dict[tuple[str, str], Any], default: Any = _ALL) -> None:
        self.told, self.default = told, default

    def describe_topics(self, topics: Any, **options: Any) -> dict[str, "Future[Any]"]:
        assert options["include_authorized_operations"]
        return {name: self._answer("topic", name) for name in topics.topic_names}

    def describe_consumer_groups(self, names: list[str], **options: Any) -> dict[str, "Future[Any]"]:
        assert options["include_authorized_operations"]
        return {name: self._answer("group", name) for name in names}

    def _answer(self, kind: str, name: str) -> "Future[Any]":
        future: Future[Any] = Future()
        told = self.told.get((kind, name), self.default)
        if isinstance(told, int):
            future.set_exception(KafkaException(KafkaError(told)))
        else:
            future.set_result(SimpleNamespace(authorized_operations=list(told) or None))
        return future


def ask(monkeypatch: pytest.MonkeyPatch, admin: ToldAdmin) -> dict[str, list[str]]:
    monkeypatch.setattr(module, "open_admin", lambda _: (admin, None))
    return find_lacking(KafkaSettings())


def test_roles_have_the_rights_that_the_documentation_gives_them() -> None:
    """But for the admin's, on topics that are not there."""
    said = set()
    for line in (ROOT / "docs" / "security.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[1].startswith(("topic ", "group ")) and cells[0] != "admin":
            kind, name = cells[1].split()[0], cells[1].split("`")[1]
            said.add((cells[0], kind, name, "prefix" in cells[1], tuple(cells[2].split(", "))))
    known = {
        (role, right.kind, right.name, right.is_prefix, right.operations)
        for role, rights in list_roles(KafkaSettings()).items()
        for right in rights
    }
    assert known == said


def test_rights_are_of_the_topics_that_settings_name() -> None:
    [device] = list_roles(KafkaSettings(images_topic="other"))["device"]
    assert device.name == "other"


def test_whoever_may_do_all_may_be_every_role(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(not lacking for lacking in ask(monkeypatch, ToldAdmin({})).values())


def test_what_is_lacking_is_named_by_role(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = KafkaSettings()
    told: dict[tuple[str, str], Any] = {
        ("topic", kafka.images_topic): [AclOperation.READ, AclOperation.DESCRIBE],
        ("group", "xray-canary-doctor"): KafkaError.GROUP_AUTHORIZATION_FAILED,
    }
    found = ask(monkeypatch, ToldAdmin(told))
    assert found["device"] == ["Write on topic xray.images"]
    assert found["stream"] == [
        "DescribeConfigs on topic xray.images",
        "Read on group names beginning with xray-canary-",
    ]
    assert found["consumer"] == []


@pytest.mark.parametrize(
    "told",
    [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART, ()],
    ids=["denied", "gone", "none"],
)
def test_of_a_topic_that_is_not_shown_all_is_lacking(monkeypatch: pytest.MonkeyPatch, told: Any) -> None:
    found = ask(monkeypatch, ToldAdmin({("topic", "xray.predictions"): told}))
    assert found["consumer"] == ["Read on topic xray.predictions"]


def test_a_group_that_nobody_has_made_yet_is_no_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, ToldAdmin({("group", "xray-watch"): KafkaError.GROUP_ID_NOT_FOUND}))["consumer"] == []


def test_a_broker_that_does_not_tell_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokerError, match="does not tell this user's rights"):
        ask(monkeypatch, ToldAdmin({}, default=KafkaError.UNSUPPORTED_VERSION))
