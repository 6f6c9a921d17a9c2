"""Faults that kill the whole stream, or its driver: at a moment of a micro-batch, or during a change of the model."""

import random
import time
from concurrent.futures import ThreadPoolExecutor, wait

from benchmarks.chaos.commands import run_command
from benchmarks.chaos.faults import (
    COMMAND_TIMEOUT_S,
    WATCH_S,
    Injury,
    Kind,
    await_halt,
    choose_batch,
    count_published,
    next_batch,
    recover,
    split,
)
from benchmarks.chaos.oracle import PREDICTION
from benchmarks.chaos.scene import Ends, Scene, measuring_ends

_SWAP_S = 3.0
_ORPHAN_S = 2.0
"""Rest before the next stream is started; what an orphan publishes in it can be told from what that one publishes."""

_EVEN = 0.5
"""As often the one as the other."""


class BeforeInference:
    """SIGKILL to everything when a micro-batch has begun."""

    name = "before-inference"
    about = "SIGKILL when offsets/N appears: nothing of batch N is published"
    kind: Kind = "killed"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        scene.ensure_running().aim()
        newest = scene.score.planned()
        with scene.publishing(before):
            batch = next_batch(scene.score, scene.kafka.images_topic, newest, skip=choose_batch(scene, rng, before))
            if batch is None:
                return Injury(False, "no batch began")
            scene.kill()
        places = scene.score.places(batch, scene.kafka.images_topic)
        published, committed = count_published(scene, places), scene.score.is_committed(batch)
        note = f"batch {batch} of {len(places)} images: {published} published, {'' if committed else 'not '}committed"
        return recover(scene, not published and not committed, note, after)


class AfterPublishing:
    """SIGKILL to everything when outcomes of a micro-batch are on the topics and Spark has not committed it."""

    name = "after-publishing"
    about = "SIGKILL when some or all outcomes of batch N are published and commits/N is absent"
    kind: Kind = "killed"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        scene.ensure_running().aim()
        newest = scene.score.planned()
        wants_all = rng.random() < _EVEN
        with scene.publishing(before):
            batch = self._strike(scene, newest, wants_all=wants_all)
        if batch is None:
            return Injury(False, "every batch was committed too fast")
        places = scene.score.places(batch, scene.kafka.images_topic)
        published, committed = count_published(scene, places), scene.score.is_committed(batch)
        note = f"batch {batch}: {published} of {len(places)} published, {'' if committed else 'not '}committed"
        return recover(scene, bool(published) and not committed, note, after)

    def _strike(self, scene: Scene, newest: int, *, wants_all: bool) -> int | None:
        """Kill at the first batch whose outcomes are seen before its commit; None where there was none."""
        kafka = scene.kafka
        with measuring_ends(kafka, kafka.predictions_topic, kafka.deadletters_topic) as ends:
            while (batch := next_batch(scene.score, kafka.images_topic, newest)) is not None:
                if self._await_outcomes(scene, batch, ends, wants_all=wants_all):
                    scene.kill()
                    return batch
                newest = batch
        return None

    @staticmethod
    def _await_outcomes(scene: Scene, batch: int, ends: Ends, *, wants_all: bool) -> bool:
        """Wait for the batch's first outcome, or its last; False where it is committed first."""
        size = len(scene.score.places(batch, scene.kafka.images_topic))
        wanted = ends.total() + (size if wants_all else 1)
        deadline = time.monotonic() + WATCH_S
        while ends.total() < wanted:
            if scene.score.is_committed(batch) or time.monotonic() > deadline:
                return False
        return not scene.score.is_committed(batch)


class AfterDeltaCommit:
    """SIGKILL to everything when a table has the rows and the archive has told nobody."""

    name = "after-delta-commit"
    about = "SIGKILL of everything when the archive has committed rows to a table and does not know it yet"
    kind: Kind = "killed"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        scene.ensure_running().aim()
        point = rng.choice(("appended", "group-untold"))
        scene.halts.ask_for(point)
        scene.publish(before)
        hit = await_halt(scene, point)
        scene.kill()
        return recover(scene, hit, f"the archive stood at {point!r}", after)


class ModelSwap:
    """SIGKILL to everything within seconds of the promotion of another model."""

    name = "model-swap"
    about = "'xray models promote' of another model while it streams, then SIGKILL at a random moment within 3 s"
    kind: Kind = "killed"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        old = scene.champion()
        new = next(model.name for model in scene.site.models if model.name != old)
        scene.ensure_running().aim()
        newest = scene.score.planned()
        with scene.publishing(before, seconds=_SWAP_S + 2):
            batch = next_batch(scene.score, scene.kafka.images_topic, newest)
            done = run_command(scene.environ, "models", "promote", "--no-mirror", new, timeout_s=COMMAND_TIMEOUT_S)
            wait_s = rng.uniform(0, _SWAP_S)
            time.sleep(wait_s)
            scene.kill()
        scene.reader.refresh()
        mine = {known.place for known in scene.oracle.records}
        models = {o.model for o in scene.reader.outcomes if o.kind == PREDICTION and o.place in mine}
        phase = "the new model had predicted" if new in models else "the new model had not predicted yet"
        note = f"killed {wait_s:.2f} s after the promotion: {phase}"
        hit = batch is not None and done.returncode == 0 and scene.champion() == new
        return recover(scene, hit, note, after)


class DriverKilled:
    """SIGKILL to the Python driver alone: whether its JVM ends by itself, and what it publishes until then."""

    name = "driver-alone"
    about = "SIGKILL of the Python driver alone; the JVM is an orphan"
    kind: Kind = "killed"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        stream = scene.ensure_running()
        kafka = scene.kafka
        newest = scene.score.planned()
        with measuring_ends(kafka, kafka.predictions_topic, kafka.deadletters_topic) as ends:
            with scene.publishing(before):
                batch = next_batch(scene.score, kafka.images_topic, newest, skip=choose_batch(scene, rng, before))
                if batch is None:
                    return Injury(False, "no batch began")
                stream.aim()
                at_death = ends.total()
                stream.kill_driver()
            with ThreadPoolExecutor(1) as pool:
                life = pool.submit(stream.time_orphans, WATCH_S)
                wait([life], timeout=_ORPHAN_S)
                published = ends.total() - at_death
                # A supervisor starts the next one whether or not the orphan is gone; so is it done here.
                scene.stream = None
                injury = recover(scene, True, "", after)
        lived_s = life.result()
        lived = f"more than {WATCH_S:.0f} s: {len(stream.left())} processes" if lived_s is None else f"{lived_s:.1f} s"
        stream.kill()
        note = f"orphans lived {lived}; {published} outcomes published in their first {_ORPHAN_S:.0f} s"
        return Injury(True, note, injury.recovery_s)
