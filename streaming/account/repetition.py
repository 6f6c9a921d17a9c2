"""Refuses a start that would score images again which have an outcome already."""

from schemas.errors import RepetitionError
from streaming.account.checkpoints import has_begun
from streaming.account.outcomes import read_outcomes
from streaming.kafka.reader import open_reader, read_spans
from streaming.kafka.topicids import TopicIds
from streaming.settings import KafkaSettings, StreamSettings


def check_not_scored(settings: StreamSettings, ids: TopicIds) -> None:
    """Refuse to begin without a checkpoint where images have outcomes already: they would all be scored again.

    Parameters
    ----------
    settings : StreamSettings
        Topics and checkpoints.
    ids : TopicIds
        Of the topics that SCORE reads.

    Raises
    ------
    RepetitionError
        How many images it is, and what to do.
    BrokerError
        The topics cannot be read.
    """
    checkpoint = settings.checkpoints_folder / "score"
    if settings.score.starting_offsets == "latest" or has_begun(checkpoint):
        return
    kafka = settings.kafka
    count = _count_scored(kafka, ids)
    if count:
        msg = (
            f"there is no checkpoint in {checkpoint}, but {count} images of {kafka.images_topic} have an outcome "
            "already and would be scored again. Is XRAY_HOME the one that the stream had before? To score them again, "
            "as after a lost checkpoint, start once with 'xray stream --from-beginning'."
        )
        raise RepetitionError(msg)


def _count_scored(kafka: KafkaSettings, ids: TopicIds) -> int:
    with open_reader(kafka) as reader:
        spans = read_spans(reader, kafka.images_topic)
    predictions, dead_letters = (
        read_outcomes(kafka, topic, ids, spans) for topic in (kafka.predictions_topic, kafka.deadletters_topic)
    )
    return sum(int(((predictions.counts[p] > 0) | (dead_letters.counts[p] > 0)).sum()) for p in spans)
