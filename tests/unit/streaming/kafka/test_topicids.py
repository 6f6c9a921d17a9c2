"""Which topics a checkpoint is of, and which outcomes are about them."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.errors import BrokerError, DataLossError, JobError
from streaming.kafka import topicids
from streaming.kafka.places import Origin, Place
from streaming.kafka.topicids import (
    IDS_FILE,
    TopicIds,
    TopicWatch,
    check_topic_ids,
    record_ids,
    recorded_ids,
)
from streaming.settings import KafkaSettings, load_settings

_NOTED = TopicIds("c1", {"images": "one", "labels": "two"})


@pytest.mark.parametrize(
    ("present", "others"),
    [
        (TopicIds("c1", {"images": "one"}), []),
        (TopicIds("c1", {"images": "new"}), ["images"]),
        (TopicIds("c1", {"images": "new", "labels": "two"}), ["images"]),
        (TopicIds("c2", {"images": "one"}), ["images"]),  # another cluster, whatever its ids
        (TopicIds("", {"images": "one"}), []),  # a broker that tells no cluster
        (TopicIds("c1", {"images": ""}), []),  # or no topic's id
        (TopicIds("c1", {"elsewhere": "three"}), ["elsewhere"]),  # never read so far
        (TopicIds("c1", {"elsewhere": ""}), ["elsewhere"]),
    ],
)
def test_topics_are_told_by_their_ids(present: TopicIds, others: list[str]) -> None:
    assert present.differ_from(_NOTED) == others


@pytest.mark.parametrize("renewed", [False, True])
@pytest.mark.parametrize(
    ("said", "is_about"),
    [("one", True), ("other", False), ("", None)],
)
def test_an_outcome_that_names_no_topic_is_about_a_former_one_where_there_was_one(
    said: str, is_about: bool | None, renewed: bool
) -> None:
    """Former releases named none: theirs count, until the topic was made anew."""
    ids = TopicIds("c1", {"images": "one"}, renewed)
    assert ids.are_of(Origin("images", Place(0, 1), said)) == (not renewed if is_about is None else is_about)


def test_where_the_broker_has_no_ids_every_outcome_counts() -> None:
    assert TopicIds("c1", {"images": ""}).are_of(Origin("images", Place(0, 1), "any"))


def test_ids_are_noted_whole_and_read_back(tmp_path: Path) -> None:
    assert recorded_ids(tmp_path / "score") is None
    for ids in (_NOTED, TopicIds("", {"images": ""}, renewed=True)):
        record_ids(tmp_path / "score", ids)
        assert recorded_ids(tmp_path / "score") == ids
    assert [path.name for path in (tmp_path / "score").iterdir()] == [IDS_FILE]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"cluster": "c", "topics": [], "renewed": False})])
def test_a_damaged_note_stops_the_start_and_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / IDS_FILE).write_text(text)
    with pytest.raises(JobError, match=IDS_FILE):
        recorded_ids(tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Which topics the broker was asked for; each has an id of its own."""
    asked: list[list[str]] = []

    def read(_kafka: KafkaSettings, names: list[str]) -> TopicIds:
        asked.append(names)
        return TopicIds("c", {name: f"id of {name}" for name in names})

    monkeypatch.setattr(topicids, "read_topic_ids", read)
    return asked


def test_score_goes_by_its_images_topic_alone(tmp_path: Path, asked: list[list[str]]) -> None:
    settings = load_settings(environ={}, home=tmp_path)
    images = settings.kafka.images_topic
    assert check_topic_ids(settings) == TopicIds("c", {images: f"id of {images}"})
    assert asked == [[images]]


def test_that_there_was_a_former_topic_is_remembered(tmp_path: Path, asked: list[list[str]]) -> None:
    settings = load_settings(environ={}, home=tmp_path)
    record_ids(settings.checkpoints_folder / "score", replace(check_topic_ids(settings), renewed=True))
    assert check_topic_ids(settings).renewed
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("noted", "message"),
    [
        (TopicIds("c", {"xray.images": "another"}), "the checkpoint of SCORE is of another topic of that name"),
        (TopicIds("d", {"xray.images": "id of xray.images"}), "or of another Kafka cluster"),
        (TopicIds("c", {"ward.images": "one"}), r"xray\.images: the checkpoint of SCORE is of other topics: ward"),
    ],
)
def test_score_refuses_another_topic_and_says_what_to_do(
    tmp_path: Path, asked: list[list[str]], noted: TopicIds, message: str
) -> None:
    settings = load_settings(environ={}, home=tmp_path)
    record_ids(settings.checkpoints_folder / "score", noted)
    with pytest.raises(DataLossError, match=rf"{message}.*'xray stream --accept-loss'"):
        check_topic_ids(settings)
    assert asked


@pytest.mark.parametrize("text", [None, "{", json.dumps({"cluster": "d", "topics": {"a": "b"}, "renewed": False})])
def test_what_a_former_archive_noted_is_not_scores_business(
    tmp_path: Path, asked: list[list[str]], text: str | None
) -> None:
    settings = load_settings(environ={}, home=tmp_path)
    former = settings.checkpoints_folder / "archive"
    former.mkdir(parents=True)
    if text is not None:
        (former / IDS_FILE).write_text(text)
    assert check_topic_ids(settings)
    assert len(asked) == 1


def test_the_watch_tells_of_a_topic_made_anew_and_then_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = threading.Event()
    answers: list[Exception] = [BrokerError("away"), DataLossError("made anew")]

    def check(*_: object) -> None:
        answer = answers.pop(0)
        if not answers:
            found.set()
        raise answer

    monkeypatch.setattr(topicids, "check_topic_ids", check)
    watch = TopicWatch(load_settings(environ={}, home=tmp_path), interval_s=0.01)
    watch.check()
    watch.start()
    assert found.wait(10)
    for thread in [thread for thread in threading.enumerate() if thread.name == "topic-watch"]:
        thread.join(10)
        assert not thread.is_alive(), "there is nothing more to find"
    with pytest.raises(DataLossError, match="made anew"):
        watch.check()
