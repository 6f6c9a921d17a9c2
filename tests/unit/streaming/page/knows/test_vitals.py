"""How the product is, from metrics pages: of parts that are well, that say they are not, that hang, that are absent."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from schemas.modelcard import ModelCard
from streaming.metrics import BatchTotals, StreamMetrics, serve_metrics
from streaming.page.knows.vitals import AUDIT, DRIFT, Vitals
from streaming.scraping import ALERTS, ARCHIVE, GATEWAY, STREAM, PartState, ask_part, explain_health, find_addresses
from streaming.settings import MetricsSettings, StreamSettings
from tests.drips import ENDLESS, run_drips
from tests.stored import NO_CARD


@contextmanager
def page(registry: CollectorRegistry, health: Callable[[], dict[str, Any]] | None = None) -> Iterator[str]:
    address, stop = serve_metrics(registry, "127.0.0.1", 0, health=health)
    try:
        yield address.removesuffix("/metrics")
    finally:
        stop()


@contextmanager
def silent() -> Iterator[str]:
    """A part that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def card() -> ModelCard:
    return NO_CARD


def test_figures_of_a_stream_that_works(card: ModelCard) -> None:
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry, card)
    metrics.query_up.labels("score").set(1)
    label, other = card.labels[0], card.labels[1]
    with page(registry) as address, Vitals({STREAM: address}, every_s=0.05) as vitals:
        wait_for(lambda: len(vitals.list_history()) > 1)
        waited = [0.25] * 90 + [1.5] * 10
        totals = BatchTotals(110, 1, {label: 70, other: 30}, {"uncertain": 4}, {"corrupt_image": 10}, (), (), waited)
        metrics.record_totals(totals, card.name)
        metrics.record_lag({"xray.images": {"0": 5}}, {"xray.images": {"0": 9}, "xray.canary": {"0": 50}})
        wait_for(lambda: bool(vitals.take_snapshot().classes.get(label)))
        found = vitals.take_snapshot()
    assert found.find_part(STREAM).state is PartState.UP
    assert found.classes[label] == 70
    assert found.classes[other] == 30
    assert found.flags["uncertain"] == 4
    assert found.dead_letters == {"corrupt_image": 10}
    assert found.lag == 4
    assert found.images_per_s is not None
    assert found.images_per_s > 0
    assert found.latency.p50 is not None
    assert found.latency.p99 is not None
    assert 0.2 <= found.latency.p50 <= 0.3
    assert 1.0 < found.latency.p99 <= 2.0
    assert found.model["version"] == card.version
    assert found.find_part(AUDIT).state is PartState.UNKNOWN
    assert found.find_part(DRIFT).state is PartState.UNKNOWN


def test_a_stream_that_was_started_again_gives_no_figure_below_nothing(card: ModelCard) -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    StreamMetrics(first, card).record_totals(BatchTotals(consumed=500), card.name)
    again = StreamMetrics(second, card)
    addresses = {STREAM: ""}
    with page(first) as one, page(second) as two:
        addresses[STREAM] = one
        vitals = Vitals(addresses)
        vitals._ask(STREAM)
        vitals._addresses[STREAM] = two
        vitals._ask(STREAM)
        assert vitals.take_snapshot().images_per_s is None
        again.record_totals(BatchTotals(consumed=5), card.name)
        vitals._ask(STREAM)
        rate = vitals.take_snapshot().images_per_s
    assert rate is not None
    assert rate > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda metrics: None, "score does not run"),
        (
            lambda metrics: (metrics.query_up.labels("score").set(1), metrics.query_up.labels("archive").set(0)),
            "archive",
        ),
        (lambda metrics: (metrics.query_up.labels("score").set(1), metrics.last_canary.set(1000.0)), "canary"),
        (lambda metrics: (metrics.query_up.labels("score").set(1), metrics.model_waiting.set(1)), "cannot be served"),
    ],
)
def test_a_stream_that_is_not_well_says_why(card: ModelCard, change: Callable[[StreamMetrics], Any], said: str) -> None:
    registry = CollectorRegistry()
    change(StreamMetrics(registry, card))
    with page(registry) as address:
        vitals = Vitals({STREAM: address})
        vitals._ask(STREAM)
    part = vitals.take_snapshot().find_part(STREAM)
    assert part.state is PartState.NOT_READY
    assert said in part.why


def test_a_strangers_page_at_the_streams_address_is_told() -> None:
    registry = CollectorRegistry()
    Gauge("xray_model_info", "Of somebody else, without our labels.", registry=registry).set(float("nan"))
    with page(registry) as address:
        vitals = Vitals({STREAM: address})
        vitals._ask(STREAM)
    found = vitals.take_snapshot()
    assert "is not the stream" in found.find_part(STREAM).why
    assert found.model == {}


def test_an_account_with_a_fault_is_told(card: ModelCard) -> None:
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry, card)
    metrics.last_audit.set(time.time())
    with page(registry) as address:
        vitals = Vitals({STREAM: address})
        vitals._ask(STREAM)
        assert vitals.take_snapshot().find_part(AUDIT).state is PartState.UP
        metrics.unaccounted.set(3)
        vitals._ask(STREAM)
    audit = vitals.take_snapshot().find_part(AUDIT)
    assert audit.state is PartState.NOT_READY
    assert "3 images" in audit.why


def test_a_part_that_hangs_or_is_absent_delays_no_other(card: ModelCard) -> None:
    registry = CollectorRegistry()
    StreamMetrics(registry, card)
    with page(registry) as address, silent() as hanging:
        addresses = {STREAM: address, ARCHIVE: hanging, GATEWAY: free_address()}
        with Vitals(addresses, every_s=0.05) as vitals:
            wait_for(lambda: len(vitals.list_history()) >= 5)  # five times within what the other takes once
            assert vitals.take_snapshot().find_part(ARCHIVE).state is PartState.UNKNOWN
            wait_for(lambda: vitals.take_snapshot().find_part(ARCHIVE).state is PartState.HANGING)
            found = vitals.take_snapshot()
    assert found.find_part(GATEWAY).state is PartState.DOWN
    assert "refused" in found.find_part(GATEWAY).why
    assert "within 1.5 s" in found.find_part(ARCHIVE).why
    assert "no setting says" in found.find_part("alerts").why


def test_a_part_that_may_not_be_used_is_down_only_once_it_was_seen() -> None:
    registry = CollectorRegistry()
    with page(registry) as address:
        vitals = Vitals({GATEWAY: free_address(), ALERTS: address, ARCHIVE: free_address()}, optional={GATEWAY, ALERTS})
        for name in (GATEWAY, ALERTS, ARCHIVE):
            vitals._ask(name)
    vitals._ask(ALERTS)
    found = {name: vitals.take_snapshot().find_part(name).state for name in (GATEWAY, ALERTS, ARCHIVE)}
    assert found == {GATEWAY: PartState.NOT_SEEN, ALERTS: PartState.DOWN, ARCHIVE: PartState.DOWN}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_part_that_drips_is_given_up_at_the_deadline(kind: str) -> None:
    with run_drips(ENDLESS[kind]) as port:
        began = time.monotonic()
        answer = ask_part(f"http://127.0.0.1:{port}", has_health=False, within_s=0.3)
    assert answer.state is PartState.HANGING
    assert time.monotonic() - began < 2.0


def test_what_health_says_is_put_in_words() -> None:
    health = {"ok": False, "tables": {"predictions": {"ok": False, "lag": 4}, "features": {"ok": True}}}
    with page(CollectorRegistry(), lambda: health) as address:
        answer = ask_part(address, has_health=True)
    assert answer.state is PartState.NOT_READY
    assert answer.why == "it says that it is not well: predictions: not working"
    sinks = {"ok": False, "holds_all_partitions": False, "sinks": {"ward": {"ok": False, "failure": "no answer"}}}
    assert explain_health(sinks) == "it says that it is not well: holds all partitions; ward: no answer"
    assert explain_health(json.loads('{"ok": false}')) == "it says that it is not well: no step for too long"


def test_addresses_are_those_of_the_settings() -> None:
    settings = StreamSettings(metrics=MetricsSettings(host="0.0.0.0", port=0))  # noqa: S104
    found = find_addresses(settings)
    assert STREAM not in found
    assert found[ARCHIVE] == "http://127.0.0.1:9465"
    assert find_addresses(StreamSettings(metrics=MetricsSettings(host="::1")))[STREAM] == "http://[::1]:9464"
