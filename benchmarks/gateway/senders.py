"""Who sends: processes with a DICOM association each, kept HTTP connections, and a bare producer to Kafka itself."""

import multiprocessing as mp
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from benchmarks.gateway.objects import SOP_CLASS, SYNTAX, Message, name_object
from streaming.kafka.producer import Delivery, RecordProducer
from streaming.settings import KafkaSettings
from xray.simulator.answers import Verdict, read_http, read_status
from xray.simulator.association import Association

_PDU_BYTES = 131_072
_TIMEOUT_S = 120.0
_AGAIN_S = 0.2
"""Before an object is sent again that the receiver cannot take now."""
_LARGE_RECEIVE_BYTES = 65_536
_POLL_S = 0.01


@dataclass(frozen=True)
class Sent:
    """What one sender did.

    Parameters
    ----------
    started, ended : float
        By the machine's monotonic clock, which processes share.
    latencies : tuple of float
        Seconds from an object's first byte to its Success.
    later : int
        Answers that told to send again.
    """

    started: float
    ended: float
    latencies: tuple[float, ...]
    later: int


@dataclass(frozen=True)
class Burst:
    """What all senders did together.

    Parameters
    ----------
    size : int
        Bytes of an object.
    seconds : float
        From the first byte to the last Success.
    latencies : tuple of float
        Of all.
    later : int
        Of all.
    """

    size: int
    seconds: float
    latencies: tuple[float, ...]
    later: int

    @property
    def mb_s(self) -> float:
        """Megabytes a second."""
        return self.size * len(self.latencies) / self.seconds / 1e6


def send_dicom(port: int, dataset: bytes, uid: str, *, senders: int, objects: int, turn: int) -> Burst:
    """Let several processes send at once, each one object behind the other on one association.

    Parameters
    ----------
    port : int
        Of the receiver.
    dataset : bytes
        What is sent each time.
    uid : str
        Its SOP Instance UID, in whose place each object has its own.
    senders, objects : int
        Processes, and objects of each.
    turn : int
        Other turns have other UIDs.

    Raises
    ------
    RuntimeError
        An object was refused for good, or a sender has failed; its own words are on standard error.
    """
    context = mp.get_context("spawn")
    together, answers = context.Barrier(senders), context.SimpleQueue()
    processes = [
        context.Process(target=_send, args=(port, dataset, uid, objects, 1000 * turn + place, together, answers))
        for place in range(senders)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        msg = f"senders ended with {[process.exitcode for process in processes]}"
        raise RuntimeError(msg)
    return _gather(len(dataset), [answers.get() for _ in processes])


def _send(port: int, dataset: bytes, uid: str, objects: int, sender: int, together: Any, answers: "Any") -> None:
    with Association(
        ("127.0.0.1", port),
        calling=f"BENCH{sender % 1000}",
        called="XRAY",
        contexts=[(SOP_CLASS, [SYNTAX])],
        timeout_s=_TIMEOUT_S,
        max_pdu_bytes=_PDU_BYTES,
    ) as association:
        context = association.contexts[SOP_CLASS][SYNTAX]
        message = Message.encode(dataset, uid, context=context, max_pdu_bytes=association.max_pdu_bytes)
        together.wait(_TIMEOUT_S)
        started, latencies, later = time.monotonic(), [], 0
        for number in range(objects):
            message.rename(name_object(sender, number))
            began = time.monotonic()
            while (answer := read_status(association.send_encoded(message.data))).verdict is not Verdict.TAKEN:
                if answer.verdict is Verdict.REFUSED:
                    msg = f"the receiver answers {answer.name}"
                    raise RuntimeError(msg)
                later += 1
                time.sleep(_AGAIN_S)
            latencies.append(time.monotonic() - began)
        answers.put(Sent(started, time.monotonic(), tuple(latencies), later))


def send_http(port: int, payload: bytes, *, connections: int, seconds: float, turn: int) -> Burst:
    """Post a picture again and again over kept connections, each time under a name of its own.

    Parameters
    ----------
    port : int
        Of the gateway's HTTP door.
    payload : bytes
        A PNG.
    connections : int
        A thread each.
    seconds : float
        How long.
    turn : int
        Other turns have other names.
    """
    numbers = count()
    together = threading.Barrier(connections)
    found: list[Sent] = []

    def work() -> None:
        found.append(_post(port, payload, seconds, turn, numbers, together))

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) < connections:
        msg = "an HTTP sender has failed; its own words are on standard error"
        raise RuntimeError(msg)
    return _gather(len(payload), found)


def _post(
    port: int, payload: bytes, seconds: float, turn: int, numbers: "count[int]", together: threading.Barrier
) -> Sent:
    with socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        together.wait(_TIMEOUT_S)
        started, latencies, later = time.monotonic(), [], 0
        while time.monotonic() - started < seconds:
            head = (
                f"POST /images HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/png\r\n"
                f"Content-Length: {len(payload)}\r\nIdempotency-Key: bench-{turn}-{next(numbers)}\r\n\r\n"
            )
            began = time.monotonic()
            connection.sendall(head.encode() + payload)
            answer = read_http(_read_response(connection))
            if answer.verdict is Verdict.TAKEN:
                latencies.append(time.monotonic() - began)
            elif answer.verdict is Verdict.LATER:
                later += 1
                time.sleep(_AGAIN_S)
            else:
                msg = f"the gateway answers {answer.name}"
                raise RuntimeError(msg)
        return Sent(started, time.monotonic(), tuple(latencies), later)


def send_kafka(kafka: KafkaSettings, value: bytes, *, window: int, records: int) -> Burst:
    """Publish as the gateway does, with nothing before it: what Kafka itself takes.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topic.
    value : bytes
        Of each record.
    window, records : int
        How many are on their way at once, and how many in all.

    Raises
    ------
    RuntimeError
        A record was not confirmed.
    """
    producer = RecordProducer(kafka, kafka.images_topic)
    began: dict[int, float] = {}
    latencies: list[float] = []
    failed: list[str] = []

    def note(number: int, delivery: Delivery) -> None:
        latencies.append(time.monotonic() - began.pop(number))
        failed.extend(filter(None, [delivery.error]))

    started = time.monotonic()
    for number in range(records):
        while len(began) >= window:
            producer.poll(_POLL_S)
        began[number] = time.monotonic()
        producer.send(value, key=b"%d" % number, headers=[], on_delivery=partial(note, number))
    producer.flush()
    if failed:
        msg = f"{len(failed)} records were not confirmed: {failed[0]}"
        raise RuntimeError(msg)
    return Burst(len(value), time.monotonic() - started, tuple(latencies), 0)


def _read_response(connection: socket.socket) -> int:
    """Read an answer to its last byte; gives its status."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += _receive(connection)
    head, _, body = found.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    lengths = [line.partition(":")[2] for line in lines if line.lower().startswith("content-length:")]
    left = int(lengths[0]) - len(body)
    while left > 0:
        left -= len(_receive(connection))
    return int(lines[0].split()[1])


def _receive(connection: socket.socket) -> bytes:
    part = connection.recv(_LARGE_RECEIVE_BYTES)
    if not part:
        msg = "the gateway has closed the connection"
        raise RuntimeError(msg)
    return part


def _gather(size: int, found: Sequence[Sent]) -> Burst:
    return Burst(
        size,
        max(one.ended for one in found) - min(one.started for one in found),
        tuple(latency for one in found for latency in one.latencies),
        sum(one.later for one in found),
    )
