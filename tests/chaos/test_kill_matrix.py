"""Every kill point of the running stream, once. The long form is ``python -m benchmarks.chaos``."""

import random
from collections.abc import Iterator

import pytest

from benchmarks.chaos.faults import Fault, run_fault
from benchmarks.chaos.matrix import make_faults
from benchmarks.chaos.scene import Scene, Site

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.long,
    pytest.mark.kafka,
    pytest.mark.spark,
    pytest.mark.delta,
    pytest.mark.train,
    pytest.mark.timeout(600),  # every fault is a restart; a busy machine takes its time
]

RECORDS = 60


@pytest.fixture(scope="module")
def scene(site: Site, seed: int) -> Iterator[Scene]:
    """One stream that suffers all faults, one after the other."""
    scene = Scene(site, "matrix", seed=seed, images_per_batch=15)
    yield scene
    scene.close()


@pytest.mark.parametrize("fault", make_faults(short=True), ids=lambda fault: fault.name)
def test_nothing_is_lost_and_nothing_is_twice(fault: Fault, scene: Scene, seed: int) -> None:
    found = run_fault(scene, fault, random.Random(f"{seed} {fault.name}"), RECORDS)

    verdict = found.verdict
    said = f"seed {seed}; {'; '.join(found.notes)}; {verdict.examples}"
    assert found.hit, said
    assert found.drained, said
    assert verdict.records >= RECORDS
    assert verdict.troubles == {}, said  # missing, both, wrong reason or bytes, tables, the command's own account
    assert found.deaths == [], said
    assert found.repeated == 0, said
    # Without a checkpoint what is scored again is published again; its ids, bytes and rows are above.
    assert verdict.places_with_several_ids == 0, said


def test_the_account_of_all_faults_together(scene: Scene) -> None:
    if not scene.everything.records:
        pytest.skip("no fault was inflicted before")
    scene.ensure_running()
    assert scene.drain()

    verdict = scene.check(scene.everything.records)

    assert scene.everything.unconfirmed == []
    assert (verdict.troubles, verdict.foreign) == ({}, 0), verdict.examples
    assert verdict.audit["balanced"] is True
    assert verdict.audit["pending"] == 0
    assert verdict.audit["predicted"] == verdict.predicted
    assert verdict.audit["dead_lettered"] == verdict.dead_lettered
