"""The plain consumer: what a user would write in an afternoon, with this project's own decoding and network.

A process a core, in one consumer group; results are produced back, and offsets are committed after them. It leaves out
what docs/performance.md lists: repeated results after a kill, dead letters, feature vectors, the account, and more.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from benchmarks.engines import EngineChoice, Infer, Pixels
from schemas.errors import RecordError

_log = logging.getLogger(__name__)

_COMMIT_S = 1.0
"""Between two commits: one for each image would wait for the broker twice each time."""
_POLL_S = 0.1


@dataclass(frozen=True, eq=False)
class Classifier:
    """The logistic regression on top of the features.

    Parameters
    ----------
    labels : tuple of str
        Of the classes.
    coefficients, intercepts : numpy.ndarray
        As Spark has them: one row where there are two classes.
    """

    labels: tuple[str, ...]
    coefficients: npt.NDArray[np.float64]
    intercepts: npt.NDArray[np.float64]

    def predict(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Give probabilities; a row for each image, a column for each class."""
        margins = features.astype(np.float64) @ self.coefficients.T + self.intercepts
        if margins.shape[1] == 1:
            margins = np.hstack([np.zeros_like(margins), margins])
        powers = np.exp(margins - margins.max(axis=1, keepdims=True))
        shares: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return shares


@dataclass(frozen=True)
class ConsumerPlan:
    """What each process of the group is given.

    Parameters
    ----------
    kafka : dict
        Options of the client.
    images_topic, results_topic : str
        Where images come from and results go to.
    engine : EngineChoice
        What computes features, and how many images at a time.
    classifier : Classifier
        What makes answers of them.
    """

    kafka: dict[str, Any]
    images_topic: str
    results_topic: str
    engine: EngineChoice
    classifier: Classifier


def consume(plan: ConsumerPlan, ended: Any) -> None:
    """Score images until told to end.

    Parameters
    ----------
    plan : ConsumerPlan
        See there.
    ended : multiprocessing.Event
        Set it to end the process.
    """
    infer = plan.engine.start()
    options = {"group.id": plan.results_topic, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer, producer = Consumer(plan.kafka | options), Producer(plan.kafka | {"acks": "all"})

    def finish(*_: Any) -> None:
        _commit(consumer, producer)

    consumer.subscribe([plan.images_topic], on_revoke=finish)
    committed_s = time.monotonic()
    try:
        while not ended.is_set():
            _score(take(consumer, plan.engine.batch), plan, infer, producer)
            producer.poll(0)
            if time.monotonic() - committed_s > _COMMIT_S:
                _commit(consumer, producer)
                committed_s = time.monotonic()
    finally:
        consumer.close()  # gives the partitions back, which commits what is done


def take(consumer: Any, most: int) -> list[Message]:
    """Wait for one message, and take with it what is there already, up to a batch.

    Raises
    ------
    KafkaException
        The client cannot read.
    """
    first = consumer.poll(_POLL_S)
    if first is None:
        return []
    messages = [first, *(consumer.consume(most - 1, timeout=0) if most > 1 else ())]
    for message in messages:
        if message.error() is not None:
            raise KafkaException(message.error())
    return messages


def _score(messages: Sequence[Message], plan: ConsumerPlan, infer: Infer, producer: Any) -> None:
    decoded: list[tuple[bytes, Pixels]] = []
    for message in messages:
        try:
            decoded.append((message.key(), plan.engine.decode(message.value())))
        except RecordError as exc:
            _log.warning("left out: %s", exc)
    if not decoded:
        return
    keys, images = zip(*decoded, strict=True)
    labels = plan.classifier.labels
    for key, values in zip(keys, plan.classifier.predict(infer(images)), strict=True):
        result = {"label": labels[values.argmax()], "probabilities": dict(zip(labels, values.tolist(), strict=True))}
        producer.produce(plan.results_topic, json.dumps(result).encode(), key=key, on_delivery=_refuse_failure)


def _refuse_failure(error: KafkaError | None, _: Message) -> None:
    """Fail where the client gave a result up: its image must not be committed."""
    if error is not None:
        raise KafkaException(error)


def _commit(consumer: Any, producer: Any) -> None:
    """Commit what was read, once its results are with the broker."""
    producer.flush()
    try:
        consumer.commit(asynchronous=False)
    except KafkaException as exc:
        if exc.args[0].code() != KafkaError._NO_OFFSET:  # nothing was read since
            raise
