"""Spark writes SCORE's log while a micro-batch runs: what a kill leaves out is scored again, and published once."""

from collections import Counter
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from streaming.account.audit import audit_stream
from streaming.account.checkpoints import last_committed
from streaming.settings import StreamSettings
from tests.conftest import Trained
from tests.integration.streams import Headers, outcomes, publish, running, score, wait_for_count
from tests.testimages import good_files

pytestmark = [pytest.mark.kafka, pytest.mark.spark]


def images(first: int, count: int) -> dict[str, tuple[bytes | None, Headers]]:
    payload = good_files()["gray.png"]
    return {f"image-{first + i}": (payload if i % 4 else b"no image", []) for i in range(count)}


def lose(checkpoint: Path, folder: str, number: int) -> None:
    """Take a file of the log away, as if the stream had been killed before it was written."""
    for path in (checkpoint / folder).glob(f"*{number}*"):
        if path.name.strip(".").split(".")[0] == str(number):
            path.unlink()


def check_once(settings: StreamSettings, wanted: int) -> None:
    predictions, dead_letters = outcomes(settings)
    counts = Counter(record.key for record in (*predictions, *dead_letters))
    assert len(counts) == wanted
    assert set(counts.values()) == {1}
    account = audit_stream(settings)
    assert account.balanced
    assert account.total("repeated") == account.pending == 0


@pytest.mark.parametrize("lost", [["commits"], ["commits", "offsets"]], ids=" and ".join)
@pytest.mark.parametrize("at_once", [True, False], ids=["available now", "running"])
def test_what_the_log_does_not_know_of_is_published_once(
    spark: SparkSession, settings: StreamSettings, trained: Trained, lost: list[str], at_once: bool
) -> None:
    checkpoint = settings.checkpoints_folder / "score"
    publish(settings, images(0, 4))
    score(spark, settings, trained)
    publish(settings, images(4, 8))
    score(spark, settings, trained)
    number = last_committed(checkpoint)
    for folder in lost:
        lose(checkpoint, folder, number)
    assert last_committed(checkpoint) == number - 1

    # More than that micro-batch had, so that the one that is done now ends elsewhere.
    publish(settings, images(12, 5))
    if at_once:
        score(spark, settings, trained)
    else:
        with running(spark, settings, trained, archive=False) as state:
            wait_for_count(state.metrics_url, 13)
    check_once(settings, 17)


def test_a_checkpoint_goes_from_one_way_of_writing_to_the_other_and_back(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    for turn in range(4):
        publish(settings, images(10 * turn, 10))
        if turn % 2:
            score(spark, settings, trained)
        else:
            with running(spark, settings, trained, archive=False) as state:
                wait_for_count(state.metrics_url, 10)
        check_once(settings, 10 * (turn + 1))
