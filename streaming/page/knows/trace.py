"""The way of one image, step by step with its times, and by whose clock each is."""

import threading
import time
from dataclasses import dataclass

from schemas.errors import XrayError
from streaming.account.archived import find_archived
from streaming.lookup.outcome import NO_PLACE, Outcome
from streaming.page.knows.feed import Feed, receipt_time
from streaming.page.knows.findings import Findings
from streaming.settings import StreamSettings

_KNOWN_S = 3.0
"""How long it is known how far the tables are filled."""


@dataclass(frozen=True)
class Passage:
    """One step of an image's way.

    Parameters
    ----------
    name : str
        ``captured``, ``accepted``, ``received``, ``scored``, ``published``, ``archived``, ``confirmed``.
    at : float or None
        Unix time in seconds; None where nobody noted it.
    clock : str
        Whose: ``device``, ``gateway``, ``Kafka``, ``stream``, ``archive``, ``page``.
    detail : str
        Where it was then, or what is to be known.
    has_passed : bool or None
        Whether the image came there; None where it cannot be told now.
    """

    name: str
    at: float | None
    clock: str
    detail: str = ""
    has_passed: bool | None = True


class Tracer:
    """Finds the way of images.

    Parameters
    ----------
    settings : StreamSettings
        Broker, topics and tables.
    feed : Feed
        What the gateways said.
    findings : Findings
        What people said.
    """

    def __init__(self, settings: StreamSettings, feed: Feed, findings: Findings) -> None:
        self._settings = settings
        self._feed = feed
        self._findings = findings
        self._lock = threading.Lock()
        self._archived: dict[str, dict[int, int]] = {}
        self._archived_at = float("-inf")

    def trace(self, outcome: Outcome) -> list[Passage]:
        """Find the way of an outcome's image; asks Kafka and the tables how far the archive is."""
        kafka = self._settings.kafka
        way: list[Passage] = []
        if outcome.captured_at:
            way.append(Passage("captured", None, "device", f"the device says {outcome.captured_at}"))
        receipt = self._feed.find_receipt(outcome.image_key)
        if receipt is not None:
            flags = f", {', '.join(receipt.flags)}" if receipt.flags else ""
            way.append(Passage("accepted", receipt_time(receipt), "gateway", f"safe in the gateway's hands{flags}"))
        again = f", sent again: it had failed at {outcome.redriven_from}" if outcome.redriven_from else ""
        way.append(Passage("received", outcome.received_at, "Kafka", f"{outcome.topic}-{outcome.place}{again}"))
        if outcome.decode_s is not None:
            spent = f"decoding took {outcome.decode_s:.3f} s, the network {outcome.predict_s or 0.0:.3f} s"
            way.append(Passage("scored", outcome.scored_at, "stream", spent))
        topic = kafka.predictions_topic if outcome.is_prediction else kafka.deadletters_topic
        if outcome.record == NO_PLACE:
            way.append(Passage("archived", None, "archive", "in its table, where this was read; it notes no time"))
        else:
            way.append(Passage("published", outcome.published_at, "Kafka", f"{topic}-{outcome.record}"))
            way.append(self._describe_archived(topic, outcome))
        state = self._findings.find_state(outcome.event_id)
        for one in () if state is None else (*state.former, state.current):
            said = f"{one.label}, by {one.who}; {one.progress}"
            way.append(Passage("confirmed", one.confirmed_ms / 1000, "page", said))
        return way

    def _describe_archived(self, topic: str, outcome: Outcome) -> Passage:
        try:
            place = self._find_archived(topic).get(outcome.record.partition, 0)
        except XrayError as exc:
            return Passage("archived", None, "archive", f"cannot be told now: {exc}", None)
        if outcome.record.offset < place:
            return Passage("archived", None, "archive", "in its table; the tables note no time")
        left = outcome.record.offset - place
        return Passage("archived", None, "archive", f"not yet: {left} records of its partition are before it", False)

    def _find_archived(self, topic: str) -> dict[int, int]:
        kafka = self._settings.kafka
        with self._lock:
            if time.monotonic() - self._archived_at > _KNOWN_S:
                topics = (kafka.predictions_topic, kafka.deadletters_topic)
                partitions = {name: self._feed.list_partitions(name) for name in topics}
                self._archived = find_archived(self._settings.tables_folder, kafka, partitions)
                self._archived_at = time.monotonic()
            return self._archived.get(topic, {})
