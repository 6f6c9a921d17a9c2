"""Simulated devices against the real gateway and broker: what was answered Success is in Kafka, and nothing else."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="DICOM needs the gateway extra")

from schemas.envelope import CE_ID, CE_SOURCE, derive_image_event_id
from streaming.gateway.service import GatewayState, run_gateway
from streaming.settings import StreamSettings
from tests.integration.consumers import read_topic
from xray.simulator.account import Account
from xray.simulator.fleet import Plan, run_devices
from xray.simulator.habits import Way
from xray.simulator.patient import MARKER
from xray.simulator.pictures import Pictures
from xray.simulator.posting import HttpTarget
from xray.simulator.storing import DicomTarget

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


@contextmanager
def gateway(settings: StreamSettings) -> Iterator[GatewayState]:
    own = settings.gateway.model_copy(update={"dicom_port": 0, "http_port": 0, "metrics_port": 0})
    settings = settings.model_copy(update={"gateway": own})
    ended, ready = threading.Event(), threading.Event()
    states: list[GatewayState] = []

    def on_ready(state: GatewayState) -> None:
        states.append(state)
        ready.set()

    thread = threading.Thread(target=run_gateway, args=(settings,), kwargs={"ended": ended, "on_ready": on_ready})
    thread.start()
    try:
        while not ready.wait(0.1):
            assert thread.is_alive(), "the gateway has ended"
        yield states[0]
    finally:
        ended.set()
        thread.join(60)


def _hash(value: bytes | None) -> str:
    return hashlib.sha256(value or b"").hexdigest()


def test_the_account_and_the_topic_agree(
    settings: StreamSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("storing", "posting"):
        monkeypatch.setattr(f"xray.simulator.{module}.SLOW_S", 0.3)
    file = tmp_path / "account.jsonl"
    with gateway(settings) as state, Account(file) as account:
        assert state.dicom_port is not None
        assert state.http_port is not None
        dicom = DicomTarget("127.0.0.1", state.dicom_port, settings.gateway.aet)
        http = HttpTarget("127.0.0.1", state.http_port)
        plan = Plan(40, 4, seed=12, broken=0.3, images=200, dicom=dicom, http=http, http_share=0.4)
        run_devices(plan, account, Pictures(12, count=3, shape=(200, 170)), threading.Event())
        figures = account.figures()
    assert (figures["sent"], figures["failed"], figures["given_up"]) == (200, 0, 0)
    spoiling = set(figures["broken"]) - {"aborted", "slow"}
    assert spoiling == {"garbage", "no pixels", "truncated", "wrong class"}
    told = [json.loads(line) for line in file.read_text().splitlines()]
    spoiled = [line for line in told if line["broken"] in spoiling and line["outcome"] == "accepted"]
    # HTTP goes by what an object shows, not by its SOP class: one of CT that is a radiograph is taken there.
    assert [line for line in spoiled if (line["way"], line["broken"]) != (Way.STOW, "wrong class")] == []
    accepted: list[dict[str, Any]] = [line for line in told if line["outcome"] == "accepted"]
    records = read_topic(settings.kafka, settings.kafka.images_topic)
    assert len(accepted) == len(records) == figures["accepted"], "each once, those that were aborted first too"
    events = {derive_image_event_id(one.text(CE_SOURCE), one.text(CE_ID), _hash(one.value)) for one in records}
    assert len(events) == len(records)
    by_http = {line["event_id"] for line in accepted if line["way"] != Way.C_STORE}
    assert len(by_http) > 30
    assert by_http <= events
    sources = {line["device"] for line in accepted if line["way"] == Way.C_STORE}
    assert {f"/dicom/{device}" for device in sources} == {one.text(CE_SOURCE) for one in records} - {"/http"}


def test_no_marker_comes_through(settings: StreamSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "account.jsonl"
    with gateway(settings) as state, Account(file) as account:
        assert state.dicom_port is not None
        assert state.http_port is not None
        dicom = DicomTarget("127.0.0.1", state.dicom_port, settings.gateway.aet)
        http = HttpTarget("127.0.0.1", state.http_port)
        plan = Plan(40, 4, seed=13, images=120, dicom=dicom, http=http, http_share=0.5)
        run_devices(plan, account, Pictures(13, count=3, shape=(200, 170)), threading.Event())
        assert account.accepted == 120
    uids = {json.loads(line)["uid"].encode() for line in file.read_text().splitlines()}
    for topic in (settings.kafka.images_topic, settings.kafka.receipts_topic):
        for record in read_topic(settings.kafka, topic):
            texts = [record.key or b"", record.value or b"", *(value for _, value in record.headers)]
            assert not any(MARKER.encode() in text for text in texts)
            assert not any(uid in text for uid in uids for text in texts)
    assert MARKER not in caplog.text
    for path in (settings.home / "gateway").rglob("*"):
        if path.is_file():
            assert MARKER.encode() not in path.read_bytes(), path.name
