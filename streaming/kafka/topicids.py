"""Which topics a query has read: Kafka's own ids of them and of the cluster, kept beside the query's checkpoint.

A checkpoint holds names and offsets. A topic that was deleted and made again, or another cluster with the same names,
has other records at the same offsets: the query would go on in the middle of them and never read those before. Names
and offsets cannot tell, however long the new topic is; its id can.
"""

import base64
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection

from schemas.errors import BrokerError, DataLossError, JobError
from streaming.kafka.cluster import open_admin
from streaming.kafka.places import Origin
from streaming.periodic import PeriodicTask
from streaming.settings import KafkaSettings, StreamSettings

log = logging.getLogger(__name__)

IDS_FILE = "kafka_ids.json"
"""In a query's checkpoint folder, where Spark leaves it alone; moved aside with it."""

_TIMEOUT_S = 20
_WATCH_S = 10.0
"""A topic made anew while the stream runs fails the query almost always; this finds the rest."""


@dataclass(frozen=True)
class TopicIds:
    """Kafka's ids.

    Parameters
    ----------
    cluster : str
        Of the cluster; empty where the broker tells none.
    topics : Mapping of str to str
        By the topic's name; empty where the broker has none, as before Kafka 2.8.
    renewed : bool
        Whether there were other topics of these names before: what does not say which one it is about is about those.
    """

    cluster: str
    topics: Mapping[str, str]
    renewed: bool = False

    def select(self, names: Iterable[str]) -> "TopicIds":
        """Give those of some of the topics."""
        return replace(self, topics={name: self.topics[name] for name in names})

    def differ_from(self, noted: "TopicIds") -> list[str]:
        """Name the topics that are not those that were noted: made anew, of another cluster, or never read so far."""
        if self.cluster and noted.cluster and self.cluster != noted.cluster:
            return sorted(self.topics)
        return [name for name, one in sorted(self.topics.items()) if not _same(one, noted.topics.get(name))]

    def are_of(self, origin: Origin) -> bool:
        """Tell whether an outcome is about a record of this topic, rather than of an earlier one of its name.

        Outcomes of releases that did not note the topic's id count as if they were, unless there was an earlier one.
        """
        present = self.topics.get(origin.topic)
        if not origin.topic_id:
            return not self.renewed
        return not present or origin.topic_id == present


def _same(present: str, noted: str | None) -> bool:
    return noted is not None and (not present or not noted or present == noted)


def read_topic_ids(kafka: KafkaSettings, names: Sequence[str]) -> TopicIds:
    """Ask the broker for its id and its topics'.

    Raises
    ------
    BrokerError
        Nobody answers, or a topic is not there.
    """
    admin, _ = open_admin(kafka)  # an absent broker is told at once and by its reason
    try:
        cluster = admin.describe_cluster(request_timeout=_TIMEOUT_S).result().cluster_id
        answers = admin.describe_topics(TopicCollection(list(names)), request_timeout=_TIMEOUT_S)
        found = {name: _text(future.result().topic_id) for name, future in answers.items()}
    except KafkaException as exc:
        missing = exc.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART
        hint = "Create the topics with 'xray up'." if missing else "See the roles in docs/security.md."
        msg = f"cannot read the ids of {', '.join(names)}: {exc.args[0].str()}. {hint}"
        raise BrokerError(msg) from exc
    return TopicIds(cluster or "", found)


def _text(topic_id: Any) -> str:
    """Give an id as Kafka's own tools write it; empty where the broker has none."""
    high, low = topic_id.get_most_significant_bits(), topic_id.get_least_significant_bits()
    if not high and not low:
        return ""
    raw = (high % (1 << 64)).to_bytes(8, "big") + (low % (1 << 64)).to_bytes(8, "big")
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def recorded_ids(checkpoint: Path) -> TopicIds | None:
    """Read which topics a query has read; None where that was never noted, as before this was done.

    Raises
    ------
    JobError
        The file is damaged.
    """
    path = checkpoint / IDS_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        topics = {str(name): str(one) for name, one in found["topics"].items()}
        return TopicIds(str(found["cluster"]), topics, bool(found["renewed"]))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        msg = f"{path} is damaged; remove it if you know that Kafka's topics are the ones that {checkpoint.name} read"
        raise JobError(msg) from exc


def record_ids(checkpoint: Path, ids: TopicIds) -> None:
    """Note which topics a query reads."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    path = checkpoint / IDS_FILE
    text = json.dumps(asdict(ids), indent=2) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    written = path.with_suffix(".new")
    written.write_text(text, encoding="utf-8")
    written.replace(path)  # whole or not at all


def check_topic_ids(settings: StreamSettings) -> TopicIds:
    """Refuse to go on in another images topic than the one that SCORE has read so far.

    Returns
    -------
    TopicIds
        Of the topic that SCORE must not lose a record of; a canary is nobody's image.

    Raises
    ------
    DataLossError
        The topic was made anew, this is another cluster, or the settings name another topic; one message that says what
        to do.
    BrokerError
        See `read_topic_ids`.
    """
    present = read_topic_ids(settings.kafka, [settings.kafka.images_topic])
    noted = recorded_ids(settings.checkpoints_folder / "score")
    if noted is None:
        return present
    if renewed := present.differ_from(noted):
        raise DataLossError(_describe_renewal(renewed, noted))
    return replace(present, renewed=noted.renewed)


def _describe_renewal(renewed: Sequence[str], noted: TopicIds) -> str:
    if new := [name for name in renewed if name not in noted.topics]:
        return (
            f"{', '.join(new)}: the checkpoint of SCORE is of other topics: {', '.join(noted.topics)}. If the "
            f"settings XRAY_KAFKA__..._TOPIC are wrong, correct them. Otherwise {_ADVICE}"
        )
    return (
        f"{', '.join(renewed)}: the checkpoint of SCORE is of another topic of that name (deleted and created again, "
        "or of another Kafka cluster). What the old one held unread is gone, and the checkpoint's offsets mean nothing "
        f"here. If this is the wrong Kafka, correct XRAY_KAFKA__BOOTSTRAP_SERVERS. Otherwise {_ADVICE}"
    )


def describe_shrinking(places: str) -> str:
    """Say what it means that a topic ends before a checkpoint's place, and what to do."""
    return (
        f"{places}: the checkpoint of SCORE is ahead of the topic's end, so this is another topic of that name, or "
        "its brokers have lost records that they had confirmed. If this is the wrong Kafka, correct "
        f"XRAY_KAFKA__BOOTSTRAP_SERVERS. Otherwise {_ADVICE}"
    )


_ADVICE = (
    "start once with 'xray stream --accept-loss': it puts checkpoints/score aside and reads what there is from its "
    "beginning."
)


def set_checkpoint_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint, so that its query begins anew; give its new place."""
    aside = checkpoint.with_name(f"{checkpoint.name}.{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
    checkpoint.rename(aside)
    return aside


class TopicWatch:
    """Checks now and then that the images topic is still the one that SCORE reads, in a thread of its own.

    Parameters
    ----------
    settings : StreamSettings
        Broker, topics and checkpoints.
    interval_s : float
        Seconds between two checks.
    """

    def __init__(self, settings: StreamSettings, interval_s: float = _WATCH_S) -> None:
        self._settings = settings
        self._error: DataLossError | None = None
        # The broker is away, a topic between deletion and creation, a disk that does not answer: the queries find that
        # themselves.
        self._task = PeriodicTask(
            "topic-watch", self._compare, interval_s, failure="topics could not be compared", level=logging.INFO
        )

    def start(self) -> None:
        """Start the thread."""
        self._task.start()

    def stop(self) -> None:
        """Tell the thread to end; a question that is under way is not waited for."""
        self._task.stop()

    def check(self) -> None:
        """Raise what the thread has found.

        Raises
        ------
        DataLossError
            See `check_topic_ids`.
        """
        if self._error is not None:
            raise self._error

    def _compare(self) -> None:
        try:
            check_topic_ids(self._settings)
        except DataLossError as exc:
            self._error = exc
            self._task.stop()
