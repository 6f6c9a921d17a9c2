"""The one producer of this project's own commands: all replicas confirm a record, or it is told to have failed.

SCORE publishes through Spark's Kafka sink and the canary may lose an image; everything else that writes to a topic
goes through here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.errors import BrokerError
from streaming.settings import KafkaSettings

_DELIVERY_TIMEOUT_S = 60.0
QUEUE_BYTES = 64 * 1024 * 1024
"""What may wait for the broker: a sender takes about this much memory, however much it sends."""
_POLL_S = 0.1
_ANY_PARTITION = -1


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a record.

    Parameters
    ----------
    error : str or None
        Why it was not confirmed; None where it was.
    place : str or None
        ``topic-partition@offset`` of a confirmed record.
    is_too_large : bool
        It is above the limit of client, broker or topic: to try again would change nothing.
    is_fatal : bool
        The client will deliver no record any more: another one is wanted.
    """

    error: str | None
    place: str | None = None
    is_too_large: bool = False
    is_fatal: bool = False


_TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})


class RecordProducer:
    """Sends records to one topic, in order and idempotently, and tells what became of each.

    Memory is bounded: `send` waits while 64 MiB (or two of the largest messages, where that is more) are on their way.
    The client gives up on a record after ``timeout_s``, a minute by default.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker, and the largest message.
    topic : str
        Where the records go.
    headroom_bytes : int
        How much larger than ``kafka.max_message_bytes`` a record may be.
    timeout_s : float
        How long a record is tried before it is told as failed.
    queue_bytes : int
        In place of the 64 MiB.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topic: str,
        *,
        headroom_bytes: int = 0,
        timeout_s: float = _DELIVERY_TIMEOUT_S,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._topic = topic
        largest = kafka.max_message_bytes + headroom_bytes
        options = {
            "log_level": 0,
            "acks": "all",
            "enable.idempotence": True,
            "message.max.bytes": largest,
            "delivery.timeout.ms": int(timeout_s * 1000),
            # A message larger than the queue would wait for ever.
            "queue.buffering.max.kbytes": max(queue_bytes, 2 * largest) // 1024,
            "linger.ms": 5,
        }
        self._producer = Producer(kafka.to_librdkafka() | options, logger=None)
        self._failure: KafkaException | None = None

    @property
    def is_spent(self) -> bool:
        """Whether the client will deliver no record any more: another one is wanted."""
        return self._failure is not None

    @property
    def waiting(self) -> int:
        """Records of which is not known yet what became of them."""
        return len(self._producer)

    def send(
        self,
        value: bytes | None,
        *,
        key: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        on_delivery: Callable[[Delivery], None],
        partition: int | None = None,
    ) -> None:
        """Hand one record to the client; waits while its queue is full.

        Parameters
        ----------
        value : bytes or None
            None makes a tombstone.
        key : bytes or None
            Chooses the partition where none is given.
        headers : sequence of (str, bytes or None)
            In this order.
        on_delivery : callable
            Called once, in this call, `poll` or `flush`.
        partition : int, optional
            Where it goes.
        """

        def report(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                on_delivery(_describe_failure(error))
            else:
                on_delivery(Delivery(None, f"{self._topic}-{message.partition()}@{message.offset()}"))

        while True:
            try:
                self._producer.produce(
                    self._topic,
                    value,
                    key=key,
                    partition=_ANY_PARTITION if partition is None else partition,
                    headers=list(headers),
                    on_delivery=report,
                )
                break
            except BufferError:
                self.poll(_POLL_S)  # the queue is full: wait for the broker to take some
            except KafkaException as exc:
                on_delivery(_describe_failure(exc.args[0]))
                break
        self.poll(0)

    def poll(self, timeout_s: float) -> None:
        """Serve delivery reports for so many seconds."""
        try:
            self._producer.poll(timeout_s)
        except KafkaException as exc:
            # Said once, to whoever polls just then. Whose record it is hears of it by its delivery.
            self._failure = exc

    def flush(self) -> None:
        """Wait until the delivery of every record is reported.

        Raises
        ------
        BrokerError
            The broker gives this user no producer: it may write to no topic at all.
        """
        try:
            while self._producer.flush(_POLL_S):
                pass
        except KafkaException as exc:
            self._failure = exc
        if self._failure is not None:
            msg = f"cannot publish to {self._topic}: {self._failure.args[0].str()}. See the roles in docs/security.md."
            raise BrokerError(msg) from self._failure


def _describe_failure(error: KafkaError) -> Delivery:
    # A record that comes after a fatal error is refused for that, with an error that does not call itself fatal.
    is_fatal = error.fatal() or error.code() == KafkaError._FATAL
    return Delivery(error.str(), is_too_large=error.code() in _TOO_LARGE, is_fatal=is_fatal)
