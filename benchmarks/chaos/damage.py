"""Faults that leave the driver alone: parts of the stream die, it is stopped in order, or its files are damaged."""

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.chaos.commands import run_command
from benchmarks.chaos.faults import COMMAND_TIMEOUT_S, Injury, Kind, choose_batch, next_batch, recover, split
from benchmarks.chaos.oracle import FEATURES, PREDICTION
from benchmarks.chaos.scene import Scene, measuring_ends
from benchmarks.chaos.stream import Checkpoint


class WorkerKilled:
    """SIGKILL to one Python worker: the stream must go on."""

    name = "worker"
    about = "SIGKILL of one Python worker in the midst of a batch"
    kind: Kind = "killed"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        stream = scene.ensure_running()
        newest = scene.score.planned()
        with scene.publishing(before):
            batch = next_batch(scene.score, scene.kafka.images_topic, newest, skip=choose_batch(scene, rng, before))
            workers = stream.worker_pids()
            if batch is None or not workers:
                return Injury(False, "no batch began" if batch is None else "no worker was found")
            worker = rng.choice(workers)
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
            killed_s = time.monotonic()
            in_flight = not scene.score.is_committed(batch)
        recovery_s = scene.time_new_prediction(after, since_s=killed_s)
        went_on = stream.alive
        note = f"one of {len(workers)} workers, batch {batch} {'in flight' if in_flight else 'committed already'}; "
        return Injury(in_flight, note + ("the stream went on" if went_on else "the stream ended"), recovery_s)


@dataclass
class BrokerKilled:
    """SIGKILL to the broker, which comes back after some time."""

    outage_s: float = 60.0
    name: str = "broker"
    about: str = "SIGKILL of the broker in the midst of a batch; it comes back after the outage"
    kind: Kind = "killed"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        stream = scene.ensure_running()
        broker = scene.site.broker
        newest = scene.score.planned()
        with scene.publishing(before, seconds=2):
            batch = next_batch(scene.score, scene.kafka.images_topic, newest, skip=choose_batch(scene, rng, before))
            broker.kill()
            try:
                in_flight = batch is not None and not scene.score.is_committed(batch)
                time.sleep(self.outage_s)
                survived = stream.alive
            finally:
                broker.start()
            back_s = time.monotonic()
        recovery_s = scene.time_new_prediction(after, since_s=back_s)
        outage = f"{self.outage_s:.0f} s without broker, {'batch in flight' if in_flight else 'between batches'}; "
        # An outage between two batches is one as well: the stream polls for new offsets all the time.
        return Injury(
            batch is not None, outage + ("the stream went on" if survived else "the stream ended"), recovery_s
        )


# -- clean stops and damaged state -------------------------------------------------------------------------------------


class CleanStop:
    """SIGTERM in the middle of a backlog: the running batch is finished, nothing is repeated."""

    name = "sigterm"
    about = "SIGTERM in the middle of a backlog"
    kind: Kind = "clean"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        stream = scene.ensure_running()
        newest = scene.score.planned()
        with scene.publishing(before):
            batch = next_batch(scene.score, scene.kafka.images_topic, newest, skip=choose_batch(scene, rng, before))
            code = scene.stop()
        done = scene.score.progress().get(scene.kafka.images_topic, {})
        left = sum(max(0, end - done.get(partition, 0)) for partition, end in scene.everything.ends().items())
        said = stream.events[-1].get("event") if stream.events else None
        note = f"exit {code}, last event {said}, {left} records left for the next start"
        return recover(scene, batch is not None and left > 0 and code == 0, note, after)


@dataclass
class CheckpointDeleted:
    """A query's checkpoint folder is deleted between a stop and a start."""

    query: Literal["score", "archive"]
    name: str
    about: str
    kind: Kind

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        scene.publish(before)
        drained = scene.drain()
        code = scene.stop()
        there = len(scene.reader.refresh())
        checkpoint = scene.home / "checkpoints" / self.query
        was = Checkpoint(checkpoint).committed()
        shutil.rmtree(checkpoint)
        note = f"deleted at batch {was}, with {there} outcomes on the topics (stopped with exit {code})"
        if self.query == "score":
            scene.supervise("--from-beginning")  # as the runbook says: without it the stream does not start
        return recover(scene, drained and was >= 0, note, after)


class TwoJobs:
    """A second stream on the same checkpoints is refused, and the first is unharmed."""

    name = "two-jobs"
    about = "a second 'xray stream' on the same checkpoints"
    kind: Kind = "clean"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        stream = scene.ensure_running()
        with scene.publishing(records, seconds=2):
            try:
                done = run_command(scene.environ, "stream", "--json", timeout_s=COMMAND_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                return Injury(False, "the second stream was not refused")
        lines = [line for line in " ".join(done.stderr.split()).split("error: ") if line]
        refused = (
            done.returncode != 0 and len(lines) == 1 and "Traceback" not in done.stderr and not done.stdout.strip()
        )
        note = f"second: exit {done.returncode}, {lines[0] if lines else 'silent'}"[:160]
        return Injury(refused and stream.alive, f"{note}; the first {'went on' if stream.alive else 'ended'}")


@dataclass
class TableBlocked:
    """A table's log cannot be written for a while: SCORE goes on, the tables catch up.

    A read-only folder means nothing to root, so a plain file takes the log folder's place.
    """

    blocked_s: float = 10.0
    name: str = "table-blocked"
    about: str = "a table's log folder is replaced by a plain file for some seconds"
    kind: Kind = "clean"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        stream = scene.ensure_running()
        kafka = scene.kafka
        log = Path(scene.settings.tables_folder) / rng.choice((PREDICTION, FEATURES)) / "_delta_log"
        away = log.with_name("_delta_log.away")
        newest = scene.score.planned()
        with measuring_ends(kafka, kafka.predictions_topic, kafka.deadletters_topic) as ends:
            with scene.publishing(before, seconds=self.blocked_s):
                next_batch(scene.score, kafka.images_topic, newest)
                log.rename(away)
                log.write_bytes(b"")
                try:
                    at_first = ends.total()
                    time.sleep(self.blocked_s)
                    scored = ends.total() - at_first
                    stalled = scene.archive.planned() > scene.archive.committed()
                    survived = stream.alive
                finally:
                    log.unlink()
                    away.rename(log)
        scene.publish(after)
        went_on = "the stream went on" if survived else "the stream ended"
        note = f"{log.parent.name} blocked for {self.blocked_s:.0f} s: {scored} outcomes meanwhile; {went_on}"
        return Injury(stalled and scored > 0, note)
