"""How far ARCHIVE has come: its places in the outcome topics are a part of each table's own commits.

There is no checkpoint beside the tables that could be lost, or be another table's. A place is Delta's application
transaction of one partition of one topic; the topic's own id is part of its name, so that a topic that was made anew
has none.
"""

import json
from collections.abc import Iterable, Mapping

from deltalake import DeltaTable

from schemas.deltatable import failing_as, open_table
from streaming.kafka.topicids import TopicIds, read_topic_ids
from streaming.settings import KafkaSettings

TOPIC_PROPERTY = "xray.archive.topic"
"""Property of a table: which topic it is filled from."""

FEATURES, PREDICTIONS, DEAD_LETTERS = "features", "predictions", "dead_letters"


def topics_by_table(kafka: KafkaSettings) -> dict[str, str]:
    """Give the topic that each table is filled from."""
    return {PREDICTIONS: kafka.predictions_topic, FEATURES: kafka.features_topic, DEAD_LETTERS: kafka.deadletters_topic}


def place_name(ids: TopicIds, topic: str, partition: int) -> str:
    """Name the transaction that holds ARCHIVE's place in a partition."""
    return f"xray-archive/{ids.cluster}/{ids.topics[topic] or topic}/{partition}"


def read_places(table: DeltaTable, ids: TopicIds, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Read how far a table has been filled.

    Parameters
    ----------
    table : DeltaTable
        As it was opened; its log is read once for each partition.
    ids : TopicIds
        Of the outcome topics, as they are now.
    topic : str
        The table's topic.
    partitions : iterable of int
        Of the topic.

    Returns
    -------
    dict of int to int
        Next offset by partition; those that nothing was read of are left out.

    Raises
    ------
    TableError
        The table cannot be read.
    """
    with failing_as(f"the table {table.table_uri} cannot be read"):
        places = {partition: table.transaction_version(place_name(ids, topic, partition)) for partition in partitions}
    return {partition: place for partition, place in places.items() if place is not None}


def describe_topic(ids: TopicIds, topic: str) -> str:
    """Say which topic a table is filled from, for its property."""
    return json.dumps({"cluster": ids.cluster, "topic": topic, "id": ids.topics[topic]})


def recorded_topic(table: DeltaTable) -> TopicIds | None:
    """Read which topic a table is filled from; None where no archive of this kind has written to it."""
    text = table.metadata().configuration.get(TOPIC_PROPERTY)
    if text is None:
        return None
    noted = json.loads(text)
    return TopicIds(noted["cluster"], {noted["topic"]: noted["id"]})


def find_archived(
    tables_folder: str, kafka: KafkaSettings, partitions: Mapping[str, Iterable[int]]
) -> dict[str, dict[int, int]]:
    """Find how far each table has been filled.

    Parameters
    ----------
    tables_folder : str
        Path or URI.
    kafka : KafkaSettings
        Broker and topics.
    partitions : Mapping of str to iterable of int
        Of the topics in question, by the topic's name.

    Returns
    -------
    dict of str to dict of int to int
        Next offset by topic and partition; without entries where there is no table.

    Raises
    ------
    TableError
        A table cannot be read.
    BrokerError
        Nobody answers.
    """
    tables = {topic: open_table(f"{tables_folder}/{name}") for name, topic in topics_by_table(kafka).items()}
    ids = read_topic_ids(kafka, list(partitions))
    return {
        topic: {} if (table := tables[topic]) is None else read_places(table, ids, topic, numbers)
        for topic, numbers in partitions.items()
    }
