"""Faults that leave the driver alone: parts of the stream die, it is stopped in order, or its files are damaged."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from statistics import median

from deltalake import DeltaTable

from benchmarks.chaos.commands import run_command
from benchmarks.chaos.faults import (
    COMMAND_TIMEOUT_S,
    WATCH_S,
    Injury,
    Kind,
    await_halt,
    choose_batch,
    next_batch,
    recover,
    split,
)
from benchmarks.chaos.oracle import DEAD_LETTER, FEATURES, PREDICTION
from benchmarks.chaos.scene import Scene, read_ends, tail
from benchmarks.chaos.stream import StreamProcess

_POLL_S = 0.1
_QUIET_S = 3.0
_AS_FAST_S = 1.0
"""Of two medians: what comes of the moments at which micro-batches begin."""


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


class CheckpointDeleted:
    """SCORE's checkpoint folder is deleted between a stop and a start."""

    name = "score-checkpoint"
    about = "SCORE's checkpoint is deleted"
    kind: Kind = "replayed"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        scene.publish(before)
        drained = scene.drain()
        code = scene.stop()
        there = len(scene.reader.refresh())
        was = scene.score.committed()
        shutil.rmtree(scene.score.folder)
        note = f"deleted at batch {was}, with {there} outcomes on the topics (stopped with exit {code})"
        scene.supervise("--from-beginning")  # as the runbook says: without it the stream does not start
        return recover(scene, drained and was >= 0, note, after)


class TablesDeleted:
    """The tables' folder is deleted between a stop and a start; the archive fills new ones from the topics."""

    name = "tables-deleted"
    about = "the tables' folder is deleted, and a checkpoint of a former release's archive appears"
    kind: Kind = "clean"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        scene.ensure_running()
        scene.publish(before)
        drained = scene.drain()
        code = scene.stop()
        shutil.rmtree(scene.settings.tables_folder)
        _add_former_checkpoint(scene)
        return recover(scene, drained and code == 0, f"all tables are gone (stopped with exit {code})", after)


class TablesDamaged:
    """Each table is damaged in another way between a stop and a start; the archive makes it good."""

    name = "tables-damaged"
    about = "one table is deleted, one is an older copy, RESTORE took rows from one; no former checkpoint"
    kind: Kind = "clean"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        scene.ensure_running()
        scene.publish(before // 2)
        drained = scene.drain()
        lost, old, restored = rng.sample((PREDICTION, FEATURES, DEAD_LETTER), 3)
        tables, copy = Path(scene.settings.tables_folder), scene.home / "tables.copy"
        shutil.rmtree(copy, ignore_errors=True)
        # The log before the files: while the archive runs, every file that it names is there by then.
        shutil.copytree(tables / old / "_delta_log", copy / "_delta_log")
        shutil.copytree(tables / old, copy, ignore=shutil.ignore_patterns("_delta_log", "*#*"), dirs_exist_ok=True)
        scene.publish(before - before // 2)
        drained = scene.drain() and drained
        code = scene.stop()
        shutil.rmtree(tables / lost)
        shutil.rmtree(tables / old)
        copy.rename(tables / old)
        version = DeltaTable(tables / restored).version()
        DeltaTable(tables / restored).restore(version // 2)
        shutil.rmtree(_former_checkpoint(scene), ignore_errors=True)
        note = (
            f"{lost} is gone, {old} is an older copy, {restored} is restored from version {version} to {version // 2}"
        )
        return recover(scene, drained and code == 0, note, after)


def _add_former_checkpoint(scene: Scene) -> None:
    """Put a checkpoint there as the former release's archive had, of one that had read all outcomes."""
    ends = {topic: read_ends(scene.kafka, topic) for topic in scene.outcome_topics.values()}
    for folder, last in {"offsets": json.dumps(ends), "commits": "{}"}.items():
        (_former_checkpoint(scene) / folder).mkdir(parents=True, exist_ok=True)
        (_former_checkpoint(scene) / folder / "0").write_text(f"v1\n{{}}\n{last}", encoding="utf-8")


def _former_checkpoint(scene: Scene) -> Path:
    return scene.home / "checkpoints" / "archive"


@dataclass
class ArchiveKilled:
    """SIGKILL to the archive's process at a point of its work: the stream goes on, and starts it again."""

    points: tuple[str, ...]
    name: str
    about: str
    kind: Kind = "clean"

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """See `Fault`."""
        before, after = split(records)
        stream = scene.ensure_running()
        point = rng.choice(self.points)
        scene.halts.ask_for(point)
        scene.publish(before, seconds=2)
        hit = await_halt(scene, point)
        pid = stream.archive_pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        again = self._await_another(stream, pid)
        scene.publish(after)
        went_on = hit and again and stream.alive
        return Injury(went_on, f"killed at {point!r}; {'started again' if again else 'not started again'}")

    @staticmethod
    def _await_another(stream: StreamProcess, pid: int | None) -> bool:
        deadline = time.monotonic() + WATCH_S
        while time.monotonic() < deadline:
            if stream.archive_pid() not in (None, pid):
                return True
            time.sleep(_POLL_S)
        return False


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
    """A table's log cannot be written for a while: SCORE goes on as fast as before, the tables catch up.

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
        log = Path(scene.settings.tables_folder) / rng.choice((PREDICTION, FEATURES)) / "_delta_log"
        away = log.with_name("_delta_log.away")
        calm = self._time_predictions(scene, before // 2)
        log.rename(away)
        log.write_bytes(b"")
        try:
            blocked = self._time_predictions(scene, before - before // 2)
            survived = stream.alive
        finally:
            log.unlink()
            away.rename(log)
        topic = scene.outcome_topics[log.parent.name]
        done = scene.archived().get(topic, {})
        stalled = any(done.get(p, 0) < end for p, end in read_ends(scene.kafka, topic).items())
        scene.publish(after)
        calm_s, blocked_s = (median(one) if one else inf for one in (calm, blocked))
        went_on = "the stream went on" if survived else "the stream ended"
        note = (
            f"{log.parent.name} blocked for {self.blocked_s:.0f} s: {len(blocked)} predictions meanwhile, after "
            f"{blocked_s:.2f} s, {calm_s:.2f} s before; {went_on}"
        )
        return Injury(stalled and survived and blocked_s < calm_s + _AS_FAST_S, note)

    def _time_predictions(self, scene: Scene, count: int) -> list[float]:
        """Publish images, spread over the time of the blockade; give how long each prediction took, by the broker."""
        with tail(scene.kafka, scene.kafka.predictions_topic) as consumer:
            scene.publish(count, seconds=self.blocked_s)
            found = []
            while (message := consumer.poll(_QUIET_S)) is not None:
                if message.error() is None:
                    received = datetime.fromisoformat(dict(message.headers())["xray_input_timestamp"].decode())
                    found.append(message.timestamp()[1] / 1000 - received.timestamp())
            return found
