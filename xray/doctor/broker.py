"""Kafka: whether it answers, what its topics are, what this user may do there, and what time it is there."""

import ctypes
import ctypes.util
import time
from collections.abc import Collection, Iterator

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from schemas.errors import BrokerError, SettingsError
from streaming.kafka.cluster import describe_cluster, open_admin
from streaming.kafka.rights import find_lacking
from streaming.kafka.topicchecks import find_topic_faults
from streaming.kafka.topics import label_topics, receipt_topics, wanted_topics
from streaming.scraping import STREAM, ask_part, find_addresses
from streaming.settings import KafkaSettings, StreamSettings
from xray.doctor.finding import Finding, Verdict

_WITHIN_S = 10.0
_SKEW_S = 2.0
"""Two machines with a time server are within a tenth of a second; this is more than a slow answer makes."""
_CANARY_S = 120.0
"""What a canary may take behind a backlog before a stream is called unwell."""
_UNSYNCHRONIZED = 5
"""What adjtimex says of a clock that no time server holds."""
_TIMEX_BYTES = 512
"""More than ``struct timex`` has anywhere."""


def check_reach(settings: StreamSettings) -> Iterator[Finding]:
    """Ask the broker for its cluster."""
    kafka = settings.kafka
    try:
        cluster = describe_cluster(kafka)
    except (BrokerError, SettingsError) as exc:
        yield _fault("kafka", exc)
        return
    brokers = len(cluster.brokers)
    yield Finding("kafka", Verdict.OK, f"{kafka.bootstrap_servers} answers, {brokers} broker(s)")
    if kafka.replication_factor > brokers:
        found = f"XRAY_KAFKA__REPLICATION_FACTOR is {kafka.replication_factor}, and there are {brokers} broker(s)"
        yield Finding("kafka", Verdict.WARNING, found, "Lower it, or start the brokers that are away.")


def check_topics(settings: StreamSettings) -> Iterator[Finding]:
    """Look at the topics: whether they are there, for how long they keep records, on how many disks, of what size."""
    kafka = settings.kafka
    try:
        faults = find_topic_faults(kafka)
        present = describe_cluster(kafka).topics
    except BrokerError as exc:
        yield _fault("topics", exc)
        return
    for fault in faults:
        found, _dot, advice = fault.text.partition(". ")
        # What this user lacks is told by the check of rights.
        verdict = Verdict.FAULT if fault.stops and not fault.is_hidden else Verdict.WARNING
        yield Finding("topics", verdict, found.rstrip("."), advice)
    for name in sorted(set(wanted_topics(kafka)) - {fault.topic for fault in faults}):
        yield Finding("topics", Verdict.OK, f"{name}: {len(present[name].partitions)} partition(s), as wanted")
    for name in (*label_topics(kafka), *receipt_topics(kafka)):
        if name not in present:
            advice = "Only if findings or the gateway's receipts are used: 'xray up' makes it."
            yield Finding("topics", Verdict.OK, f"{name} is not there", advice)


def check_rights(settings: StreamSettings, roles: Collection[str] = ()) -> Iterator[Finding]:
    """Tell which roles this user may be; where it must be some, what it lacks is a fault.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    roles : collection of str
        Those that it must be. By default any one will do, since each program has a user of its own.
    """
    try:
        lacking = find_lacking(settings.kafka)
    except BrokerError as exc:
        yield _fault("rights", exc)
        return
    advice = "Give the user these rights: docs/security.md, Who may do what."
    able = [role for role, missing in lacking.items() if not missing]
    for role in roles:
        if lacking[role]:
            yield Finding("rights", Verdict.FAULT, f"{role}: lacks {'; '.join(lacking[role])}", advice)
    if able:
        yield Finding("rights", Verdict.OK, f"this user may be: {', '.join(able)}")
    elif not roles:
        role, missing = min(lacking.items(), key=lambda one: len(one[1]))
        found = f"this user may be none of the roles; for {role}, the nearest, it lacks {'; '.join(missing)}"
        yield Finding("rights", Verdict.FAULT, found, f"{advice} Of topics that are not there nobody has any.")


def check_clocks(settings: StreamSettings) -> Iterator[Finding]:
    """Look at this machine's clock, and at the broker's as far as its newest records tell it."""
    yield _judge_own_clock(is_synchronized())
    try:
        newest = read_newest(settings.kafka)
    except (BrokerError, SettingsError) as exc:
        yield _fault("clocks", exc)
        return
    now = time.time()
    yield judge_broker_clock(newest, now, settings.score.canary_s, came_back=_ask_stream(settings))


def _ask_stream(settings: StreamSettings) -> float | None:
    """Ask a stream on this machine when its last canary came back, by this machine's clock."""
    address = find_addresses(settings).get(STREAM)
    answer = None if address is None else ask_part(address, has_health=False)
    return None if answer is None else answer.total("xray_last_canary_timestamp_seconds")


def is_synchronized() -> bool | None:
    """Tell whether a time server holds this machine's clock, as the kernel knows; None where it does not tell."""
    name = ctypes.util.find_library("c")
    if name is None:
        return None
    asked = getattr(ctypes.CDLL(name, use_errno=True), "adjtimex", None)
    if asked is None:
        return None
    state = asked(ctypes.create_string_buffer(_TIMEX_BYTES))  # all zero: it changes nothing
    return None if state < 0 else state != _UNSYNCHRONIZED


def _judge_own_clock(synchronized: bool | None) -> Finding:
    if synchronized is None:
        return Finding("clocks", Verdict.OK, "this system does not tell whether a time server holds the clock")
    if synchronized:
        return Finding("clocks", Verdict.OK, "a time server holds this machine's clock")
    advice = "Start chrony or systemd-timesyncd, on the host where this is a container."
    return Finding("clocks", Verdict.WARNING, "no time server holds this machine's clock", advice)


def read_newest(kafka: KafkaSettings) -> float | None:
    """Read when the broker received its newest canary, in seconds of its own clock; None where there is none.

    The canary's topic has the broker's time, and is written to every few seconds while a stream runs.

    Raises
    ------
    BrokerError
        Nobody answers, or the user may not see that topic.
    """
    admin, cluster = open_admin(kafka)
    topic = cluster.topics.get(kafka.canary_topic)
    if topic is None or not topic.partitions:
        return None
    asked = {TopicPartition(kafka.canary_topic, number): OffsetSpec.max_timestamp() for number in topic.partitions}
    try:
        futures = admin.list_offsets(asked, request_timeout=_WITHIN_S)
        found = [future.result(_WITHIN_S + 1.0).timestamp for future in futures.values()]
    except KafkaException as exc:
        msg = f"cannot ask for the newest record of {kafka.canary_topic}: {exc.args[0].str()}. See docs/security.md."
        raise BrokerError(msg) from exc
    except TimeoutError as exc:
        msg = f"the broker has not told its newest canary within {_WITHIN_S:g} s. Try again when it is less busy."
        raise BrokerError(msg) from exc
    newest = max(found, default=-1)
    return None if newest < 0 else newest / 1000


def judge_broker_clock(newest: float | None, now: float, canary_s: float, *, came_back: float | None = None) -> Finding:
    """Judge the broker's clock by its newest canary.

    Parameters
    ----------
    newest : float or None
        When the broker received it, Unix time in seconds by its clock.
    now : float
        Unix time in seconds by this one's, asked for afterwards.
    canary_s : float
        Seconds between two canaries.
    came_back : float, optional
        When the stream here last had one back, by this machine's clock.
    """
    if newest is None:
        return Finding("clocks", Verdict.OK, "no canary on the broker yet to compare the clocks by")
    ahead = newest - now
    if ahead > _SKEW_S:
        found = f"the broker's clock is at least {ahead:.1f} s ahead of this machine's"
        return Finding("clocks", Verdict.FAULT, found, "Set both by a time server; latencies and retention go by them.")
    if canary_s and -ahead <= canary_s + _SKEW_S:
        return Finding("clocks", Verdict.OK, f"the broker's clock is within {canary_s + _SKEW_S:.0f} s of this one")
    found = f"the broker's newest canary is {-ahead:.0f} s old by this machine's clock"
    if came_back is not None and now - came_back < _CANARY_S < -ahead:
        found += f", and the stream had one back {now - came_back:.0f} s ago: the broker's clock is behind"
        return Finding("clocks", Verdict.FAULT, found, "Set both by a time server; latencies and retention go by them.")
    advice = "While a stream runs there is one every few seconds: then the broker's clock is behind. Else all is well."
    return Finding("clocks", Verdict.OK, found, advice)


def _fault(check: str, exc: BrokerError | SettingsError) -> Finding:
    found, _dot, advice = str(exc).partition(". ")
    return Finding(check, Verdict.FAULT, found.rstrip("."), advice or "See 'kafka' above.")
