"""A ward in front of a real gateway: devices that send an object until they are told that it is taken."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from benchmarks.ports import find_ports
from streaming.devices.crosswalk import read_crosswalk
from streaming.gateway.keeping.spool import Spool
from streaming.kafka.topics import create_topics
from streaming.settings import StreamSettings, load_settings
from tests.gatewayprocess import Gateway, image_event_ids, wait_until
from tests.integration.consumers import Record, read_topic
from xray.broker import LocalBroker
from xray.simulator.habits import CR, draw_habits
from xray.simulator.objects import Shot, write_dataset_bytes, write_file_bytes
from xray.simulator.pictures import Pictures

DICOM, HTTP = "dicom", "http"
TAKEN = {0x0000, 201, 202}
LATER = {0xA700, 0xA701, 503}
_SYNTAXES = tuple(map(str, (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless)))
_SEED = 11


@contextmanager
def run_ward(home: Path, jars: Path) -> Iterator["Ward"]:
    """Start a broker of its own, which may be stopped, in an empty state folder."""
    kafka = {"bootstrap_servers": f"127.0.0.1:{find_ports()}", "partitions": 2}
    settings = load_settings(home=home, jars=jars, kafka=kafka)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("XRAY_")} | {
        "XRAY_HOME": str(home),
        "XRAY_JARS": str(jars),
        "XRAY_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "XRAY_KAFKA__PARTITIONS": "2",
        "XRAY_METRICS__PORT": "0",
        "XRAY_ARCHIVE__METRICS_PORT": "0",
        "XRAY_ARCHIVE__TRIGGER_S": "1",
    }
    broker = LocalBroker.of(settings)
    broker.start()
    try:
        create_topics(settings.kafka)
        yield Ward(settings, broker, environ, home / "gateway.log")
    finally:
        broker.stop()


@dataclass
class Ward:
    """Devices, a gateway, and what the devices were told.

    Parameters
    ----------
    settings : StreamSettings
        State folder and broker of all gateways here.
    broker : LocalBroker
        Which may be stopped.
    environ : dict
        Of the gateways.
    log : Path
        Of the gateways.
    """

    settings: StreamSettings
    broker: LocalBroker
    environ: dict[str, str]
    log: Path
    pictures: Pictures = field(default_factory=lambda: Pictures(_SEED, count=4, shape=(232, 200)))
    taken: dict[str, str] = field(default_factory=dict)
    """What was answered as taken: its UID, and by which door."""
    _number: int = 0

    @property
    def crosswalk(self) -> Path:
        return self.settings.home / "crosswalk"

    def gateway(self, *options: str, **settings: str) -> Gateway:
        """Give a gateway that is not started yet; ``settings`` are its section's."""
        own = {f"XRAY_GATEWAY__{name.upper()}": value for name, value in settings.items()}
        return Gateway({**self.environ, **own}, self.log, ("--crosswalk", str(self.crosswalk), *options))

    def shoot(self) -> Shot:
        """Take the next radiograph."""
        self._number += 1
        habits = draw_habits(1, seed=_SEED, http=False)
        return Shot(replace(habits, bits=12, sop_class=CR), self._number, self._number)

    def send(self, gateway: Gateway, shot: Shot, door: str) -> int | None:
        """Send it once; gives the status, None where no answer came."""
        syntax = _SYNTAXES[shot.number % len(_SYNTAXES)]
        status: int | None
        if door == DICOM:
            status = gateway.store(write_dataset_bytes(shot, self.pictures, syntax), shot.sop_uid, syntax=syntax)
        else:
            answer = gateway.post(write_file_bytes(shot, self.pictures, syntax), "application/dicom")
            status = None if answer is None else answer[0]
            assert answer is None or status in {*TAKEN, *LATER}, answer
        if status in TAKEN:
            self.taken[shot.sop_uid] = door
        return status

    def send_until_taken(self, gateway: Gateway, shot: Shot, door: str) -> list[int | None]:
        """Send it as devices do, until it is taken; gives all answers."""
        told: list[int | None] = []

        def is_taken() -> bool:
            told.append(self.send(gateway, shot, door))
            return told[-1] in TAKEN

        wait_until(is_taken, f"{door} object is not taken")
        return told

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        command = [sys.executable, "-m", "xray", *arguments]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=240, check=False)

    # --- what is safe -----------------------------------------------------------------------------------------------

    def read_images(self) -> list[Record]:
        return read_topic(self.settings.kafka, self.settings.kafka.images_topic)

    def lost(self, *spools: Path) -> set[str]:
        """Give what was answered as taken, and is neither in Kafka nor in a spool of a gateway that has ended."""
        pseudonyms = {
            one.sop_uid.own: one.sop_uid.pseudonym
            for one in read_crosswalk(self.crosswalk, self.settings.crosswalk_key)
        }
        safe = {(one.text("ce_source"), one.text("ce_id")) for one in self.read_images()}
        safe |= {one for folder in spools for one in _read_spool(folder)}
        source = {DICOM: "/dicom/DX1", HTTP: "/http"}
        return {uid for uid, door in self.taken.items() if (source[door], pseudonyms.get(uid, "")) not in safe}

    def left_of(self) -> list[Path]:
        """Give what is on the disk of objects while they are received."""
        return [path for path in (self.settings.gateway_folder / "incoming").rglob("*") if path.is_file()]

    def published(self) -> list[str]:
        """Give the event ids of all images in Kafka."""
        return image_event_ids(self.read_images())


def _read_spool(folder: Path) -> Iterable[tuple[str, str]]:
    spool = Spool(folder, max_bytes=10**12, min_free_bytes=0)
    try:
        found = [spool.read(number) for number, _ in spool.first(10**6)]
    finally:
        spool.close()
    return [(one.header("ce_source"), one.key.decode()) for one in found]
