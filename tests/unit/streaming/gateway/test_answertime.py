"""The time for an answer: what each part of the way may take is, all together, no more than that."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from streaming.gateway import service
from streaming.gateway.devicelist import Device
from streaming.gateway.gatewaymetrics import GatewayMetrics
from streaming.gateway.intake import BUSY_SHARE, Intake, Keeping
from streaming.gateway.publisher import GRACE_S
from streaming.gateway.refusals import Cause, Refusal
from streaming.settings import GatewaySettings, StreamSettings


@pytest.mark.parametrize("has_spool", [False, True])
@pytest.mark.parametrize("answer_s", [5.0, 20.0, 300.0])
def test_waiting_and_kafka_fit_into_the_time(monkeypatch: pytest.MonkeyPatch, has_spool: bool, answer_s: float) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr(service, "Publisher", lambda kafka, **options: made.update(options))
    settings = StreamSettings(gateway=GatewaySettings(answer_s=answer_s))
    metrics = GatewayMetrics(CollectorRegistry())
    service._open_publisher(settings, metrics, has_spool=has_spool)
    assert made["timeout_s"] >= 0.5
    assert BUSY_SHARE * answer_s + made["timeout_s"] + GRACE_S < answer_s
    assert made["queue_bytes"] == settings.gateway.max_pending_bytes


@pytest.mark.parametrize(("waited_s", "most_s"), [(0.0, 2.0), (0.5, 0.9), (5.0, 0.3)])
def test_who_has_waited_in_the_door_waits_less_for_memory(waited_s: float, most_s: float) -> None:
    settings = StreamSettings(gateway=GatewaySettings(answer_s=4.0))
    is_in, may_end = threading.Event(), threading.Event()
    metrics = GatewayMetrics(CollectorRegistry())
    intake = Intake(
        settings,
        deidentify=lambda *_, **__: None,  # type: ignore[arg-type, return-value]
        name=str,
        publisher=SimpleNamespace(is_up=True),  # type: ignore[arg-type]
        book=SimpleNamespace(),  # type: ignore[arg-type]
        metrics=metrics,
        keeping=Keeping(),
    )
    device = Device(source="/dx-1")
    size = settings.gateway.max_pending_bytes // 5

    def hold() -> Any:
        is_in.set()
        may_end.wait(20)
        raise Refusal(Cause.ENDING)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(intake.take, "http", device, size, hold)
        assert is_in.wait(20)
        began = time.monotonic()
        with pytest.raises(Refusal) as raised:
            intake.take("http", device, size, hold, waited_s=waited_s)
        took_s = time.monotonic() - began
        may_end.set()
        assert isinstance(holding.exception(20), Refusal)
    assert raised.value.cause is Cause.BUSY
    assert took_s < most_s
    answered = metrics.registry.get_sample_value("xray_gateway_answer_seconds_sum", {"door": "http"})
    assert answered is not None
    assert answered >= waited_s
