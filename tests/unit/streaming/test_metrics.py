"""The page and its health, as a client sees them; and what a micro-batch leaves on it."""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from schemas.errors import SettingsError
from schemas.modelcard import ModelCard
from sparkdl.image.limits import RENDERING_VERSION
from streaming.archive.process import ArchiveProcess
from streaming.metrics import BATCH_BUCKETS_S, StreamMetrics, serve_metrics
from streaming.settings import StreamSettings

Serve = Callable[..., str]


@pytest.fixture
def registry() -> CollectorRegistry:
    """One counter that has counted 3."""
    registry = CollectorRegistry()
    Counter("xray_things", "Things.", registry=registry).inc(3)
    return registry


@pytest.fixture
def serve(registry: CollectorRegistry) -> Iterator[Serve]:
    """Serve the page until the test ends."""
    with ExitStack() as stack:

        def start(host: str = "127.0.0.1", port: int = 0, **options: Any) -> str:
            url, stop = serve_metrics(registry, host, port, **options)
            stack.callback(stop)
            return url

        yield start


def get(url: str) -> tuple[int, str, str]:
    """Status, kind and text of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.headers["Content-Type"], exc.read().decode()


def test_the_page_shows_the_series(serve: Serve) -> None:
    url = serve()
    status, kind, text = get(url)
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    assert "xray_things_total 3.0" in text


@pytest.mark.parametrize("query", ["", "?verbose=1"])
def test_health_is_asked_at_each_question_and_its_ok_is_the_status(serve: Serve, query: str) -> None:
    states: list[dict[str, Any]] = [{"ok": True, "tables": {"a": 1}}, {"ok": False, "why": "ünwell"}, {"ok": True}]
    health = f"{serve(health=lambda: states.pop(0)).removesuffix('metrics')}health{query}"
    for state in list(states):
        status, kind, text = get(health)
        assert (status, kind) == (200 if state["ok"] else 503, "application/json")
        assert json.loads(text) == state
    assert states == []


@pytest.mark.parametrize("path", ["metrics", "", "healthy", "health/more"])
def test_only_health_is_health(serve: Serve, path: str) -> None:
    def never() -> dict[str, Any]:
        pytest.fail("nobody asked for health")

    status, _, text = get(serve(health=never).removesuffix("metrics") + path)
    assert status == 200
    assert "xray_things_total 3.0" in text


def test_a_page_without_health_has_none(serve: Serve) -> None:
    status, kind, _ = get(f"{serve().removesuffix('metrics')}health")
    assert (status, kind.split(";")[0]) == (200, "text/plain")


def test_a_port_that_is_taken_is_told_with_its_setting(serve: Serve) -> None:
    port = int(serve().split(":")[-1].removesuffix("/metrics"))
    with pytest.raises(SettingsError, match=rf"XRAY_ARCHIVE__METRICS_PORT: .* 127\.0\.0\.1:{port}: Address already"):
        serve(port=port, setting="XRAY_ARCHIVE__METRICS_PORT")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "2001:db8::1"])
def test_an_address_that_is_not_this_machines_is_told(serve: Serve, host: str) -> None:
    with pytest.raises(SettingsError, match=rf"XRAY_METRICS__PORT: cannot listen on .*{host}.*: .+; choose another"):
        serve(host)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_ipv6_is_served_and_its_address_can_be_opened(serve: Serve, host: str) -> None:
    url = serve(host, health=lambda: {"ok": True})
    assert url.startswith(f"http://[{host}]:")  # as a browser wants it
    assert get(url)[0] == 200
    assert get(f"{url.removesuffix('metrics')}health")[0] == 200


def test_a_page_that_was_ended_frees_its_port(registry: CollectorRegistry) -> None:
    url, stop = serve_metrics(registry, "127.0.0.1", 0)
    stop()
    with pytest.raises(urllib.error.URLError):
        get(url)
    url, stop = serve_metrics(registry, "127.0.0.1", int(url.split(":")[-1].removesuffix("/metrics")))
    assert get(url)[0] == 200
    stop()


@pytest.fixture
def card() -> ModelCard:
    """A model's card."""
    return ModelCard(
        "cxr", "1", ("normal", "covid"), "covid", 0.5, "", "Lite0", "fp32", RENDERING_VERSION, "0" * 64, "2026", {}
    )


def test_a_micro_batch_of_score_is_one_series_from_the_start(card: ModelCard) -> None:
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry, card)
    assert registry.get_sample_value("xray_score_batch_seconds_count") == 0
    before = time.time()
    for seconds in (0.05, 0.3, 1000.0):
        metrics.record_batch(seconds)
    assert registry.get_sample_value("xray_score_batch_seconds_count") == 3
    assert registry.get_sample_value("xray_score_batch_seconds_sum") == pytest.approx(1000.35)
    buckets = [registry.get_sample_value("xray_score_batch_seconds_bucket", {"le": str(b)}) for b in BATCH_BUCKETS_S]
    assert buckets == [1, 1, *[2] * (len(BATCH_BUCKETS_S) - 2)]
    last = registry.get_sample_value("xray_last_batch_timestamp_seconds", {"query": "score"})
    assert last is not None
    assert before <= last <= time.time()


def test_of_the_archive_the_streams_page_tells_whether_it_runs_and_how_often_it_failed(card: ModelCard) -> None:
    registry = CollectorRegistry()
    ArchiveProcess(StreamSettings(), StreamMetrics(registry, card))
    of_archive = {
        sample.name
        for family in registry.collect()
        for sample in family.samples
        if "archive" in sample.name or "archive" in sample.labels.values()
    }
    assert of_archive == {"xray_query_up", "xray_query_failures_total"}
