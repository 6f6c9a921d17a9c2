"""What ends or blocks a part of the stream, each kind once, in one stream: the short form of the kill matrix."""

import random

import pytest

from benchmarks.chaos.damage import ArchiveKilled, WorkerKilled
from benchmarks.chaos.faults import ATTEMPTS
from benchmarks.chaos.halts import AT_WORK
from benchmarks.chaos.kills import AfterPublishing
from benchmarks.chaos.scene import Scene

pytestmark = [pytest.mark.chaos, pytest.mark.kafka, pytest.mark.spark, pytest.mark.delta, pytest.mark.train]

RECORDS = 60


@pytest.mark.timeout(600)  # each fault is tried up to four times, and a busy machine takes its time
def test_nothing_is_lost_and_nothing_is_twice(short_scene: Scene, seed: int) -> None:
    """A worker, the archive, and the stream itself between publishing and its commit; all others: the matrix."""
    scene, chance = short_scene, random.Random(seed)
    scene.ensure_running()
    scene.begin("each-kind")
    notes = []
    faults = (
        WorkerKilled(),
        ArchiveKilled(AT_WORK, "archive", "at any point of its work"),
        AfterPublishing(),
    )
    for fault in faults:
        for _ in range(ATTEMPTS):
            scene.ensure_running()
            injury = fault.inflict(scene, chance, RECORDS)
            notes.append(f"{fault.name}: {injury.note}")
            if injury.hit:
                break
        assert injury.hit, f"seed {seed}; {notes}"
    assert scene.drain(), f"seed {seed}; {notes}"

    verdict = scene.check()
    said = f"seed {seed}; {notes}; {verdict.examples}"
    assert verdict.records >= len(faults) * RECORDS
    assert verdict.troubles == {}, said  # missing, both, wrong reason or bytes, tables, the command's own account
    assert verdict.topic_duplicates == 0, said
    assert scene.deaths == [], said
