"""The one producer of this project's own commands: all replicas confirm a record, or it is told to have failed.

SCORE publishes through Spark's Kafka sink and the canary may lose an image; everything else that writes to a topic
goes through here.
"""

from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.errors import BrokerError
from streaming.settings import KafkaSettings

_DELIVERY_TIMEOUT_MS = 60_000
_QUEUE_BYTES = 64 * 1024 * 1024
"""What may wait for the broker: a sender takes about this much memory, however much it sends."""
_POLL_S = 0.1
_ANY_PARTITION = -1


class RecordProducer:
    """Sends records to one topic, in order and idempotently, and tells what became of each.

    Memory is bounded: `send` waits while 64 MiB (or two of the largest messages, where that is more) are on their way.
    The client gives up on a record after a minute.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker, and the largest message.
    topic : str
        Where the records go.
    headroom_bytes : int
        How much larger than ``kafka.max_message_bytes`` a record may be.
    """

    def __init__(self, kafka: KafkaSettings, topic: str, *, headroom_bytes: int = 0) -> None:
        self._topic = topic
        largest = kafka.max_message_bytes + headroom_bytes
        options = {
            "log_level": 0,
            "acks": "all",
            "enable.idempotence": True,
            "message.max.bytes": largest,
            "delivery.timeout.ms": _DELIVERY_TIMEOUT_MS,
            # A message larger than the queue would wait for ever.
            "queue.buffering.max.kbytes": max(_QUEUE_BYTES, 2 * largest) // 1024,
            "linger.ms": 5,
        }
        self._producer = Producer(kafka.to_librdkafka() | options, logger=None)

    def send(
        self,
        value: bytes | None,
        *,
        key: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        on_delivery: Callable[[str | None], None],
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
            Called once, in this call, `poll` or `flush`: with None where the broker confirmed the record, else with
            the reason why not.
        partition : int, optional
            Where it goes.
        """

        def report(error: KafkaError | None, _message: Message) -> None:
            on_delivery(None if error is None else error.str())

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
                self._producer.poll(_POLL_S)  # the queue is full: wait for the broker to take some
            except KafkaException as exc:
                on_delivery(exc.args[0].str())
                break
        self._producer.poll(0)

    def poll(self, timeout_s: float) -> None:
        """Serve delivery reports for so many seconds."""
        self._producer.poll(timeout_s)

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
            msg = f"cannot publish to {self._topic}: {exc.args[0].str()}. See the roles in docs/security.md."
            raise BrokerError(msg) from exc
