"""What trickles into a sandbox: every kind that a consumer must bear, in turn."""

import threading
from typing import Any

import pytest

from schemas.errors import JobError, RecordError
from sparkdl.image.decode import decode_image
from streaming.settings import KafkaSettings
from xray import sandbox
from xray.sandbox import ROUND, SOURCE, Kind, Trickle, run_trickle


class FakePublisher:
    """Keeps what is published, and answers as it is told."""

    def __init__(self, _kafka: KafkaSettings, on_delivery: Any) -> None:
        self._on_delivery = on_delivery
        self.records: list[tuple[bytes, dict[str, bytes], bytes]] = []
        self.error: str | None = None

    def publish(self, payload: bytes, headers: list[tuple[str, bytes]], *, key: bytes, token: Any) -> None:
        self.records.append((payload, dict(headers), key))
        self._on_delivery(token, self.error)

    def flush(self) -> None:
        pass


@pytest.fixture
def trickle(monkeypatch: pytest.MonkeyPatch) -> Trickle:
    monkeypatch.setattr(sandbox, "ImagePublisher", FakePublisher)
    return Trickle(KafkaSettings(), seed=1)


def records_of(trickle: Trickle) -> list[tuple[bytes, dict[str, bytes], bytes]]:
    publisher = trickle._publisher
    assert isinstance(publisher, FakePublisher)
    return publisher.records


def test_a_round_has_every_kind(trickle: Trickle) -> None:
    kinds = [trickle.publish_next() for _ in ROUND]
    assert (kinds, set(kinds)) == ([*ROUND], set(Kind))
    assert trickle.published == len(ROUND)
    records = records_of(trickle)
    assert {headers["ce_source"] for _, headers, _ in records} == {SOURCE.encode()}
    for kind, (payload, _, _) in zip(kinds, records, strict=True):
        if kind is Kind.BROKEN:
            with pytest.raises(RecordError):
                decode_image(payload, origin=kind)
        else:
            decode_image(payload, origin=kind)


def test_a_repeated_one_is_the_one_before_it_and_no_other_is(trickle: Trickle) -> None:
    kinds = [trickle.publish_next() for _ in range(2 * len(ROUND))]
    records = [(payload, headers["ce_id"], key) for payload, headers, key in records_of(trickle)]
    for place, kind in enumerate(kinds[1:], 1):
        assert (records[place] == records[place - 1]) == (kind is Kind.REPEATED)
    assert len({payload for payload, _, _ in records}) == len(records) - kinds.count(Kind.REPEATED)


def test_what_is_not_confirmed_ends_it(trickle: Trickle) -> None:
    publisher = trickle._publisher
    assert isinstance(publisher, FakePublisher)
    publisher.error = "no broker"
    with pytest.raises(JobError, match="no broker"):
        run_trickle(trickle, threading.Event(), every_s=60)
    assert trickle.published == 0


def test_it_ends_while_it_waits(trickle: Trickle) -> None:
    ended = threading.Event()
    thread = threading.Thread(target=run_trickle, args=(trickle, ended, 3600))
    thread.start()
    ended.set()
    thread.join(20)
    assert not thread.is_alive()
    assert trickle.published <= 1
