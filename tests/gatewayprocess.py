"""The real ``xray gateway`` as a process, devices that send to it, and what it has made safe."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from schemas.envelope import derive_image_event_id
from tests.integration.consumers import Record
from xray.simulator.association import Association, NoAnswerError, RejectedError
from xray.simulator.habits import CR

_READY_S = 60.0
_END_S = 40.0

# All of it speaks, also what a user never hears.
_TALKATIVE = """
import logging, runpy, sys
logging.basicConfig(level=logging.DEBUG, format="%(name)s %(levelname)s %(message)s")
runpy.run_module("xray", run_name="__main__", alter_sys=True)
"""


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Wait for a state."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@dataclass
class Gateway:
    """A gateway's process.

    Parameters
    ----------
    environ : Mapping
        Of its process; its broker and state folder are named there.
    log : Path
        What it writes on standard error goes behind what is there.
    options : tuple of str
        Of the command, beside those for free ports.
    is_talkative : bool
        Whether each library tells all that it does.
    """

    environ: Mapping[str, str]
    log: Path
    options: tuple[str, ...] = ()
    is_talkative: bool = False
    dicom_port: int = 0
    http_port: int = 0
    metrics: str = ""
    _process: "subprocess.Popen[str] | None" = field(default=None, repr=False)

    def start(self) -> "Gateway":
        """Start it, and wait until both doors are open."""
        program = ["-c", _TALKATIVE] if self.is_talkative else ["-m", "xray"]
        options = ["gateway", "--dicom-port", "0", "--http-port", "0", "--json", *self.options]
        environ = {"XRAY_GATEWAY__METRICS_PORT": "0", **self.environ}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *program, *options], env=environ, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.log.read_text(errors="replace")[-2000:]
        ready = json.loads(line)
        self.dicom_port, self.http_port, self.metrics = ready["dicom_port"], ready["http_port"], ready["metrics"]
        return self

    @property
    def pid(self) -> int:
        """Its id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order."""
        assert self._end(signal.SIGTERM) == 0, self.log.read_text(errors="replace")[-2000:]

    def _end(self, how: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(how)
        process.communicate(timeout=_END_S)
        return process.returncode

    def __enter__(self) -> "Gateway":
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()

    # --- what devices send --------------------------------------------------------------------------------------------

    def store(self, dataset: bytes, uid: str, *, syntax: str, sop_class: str = CR, calling: str = "DX1") -> int | None:
        """Send a data set by C-STORE, on an association of its own; gives the status, None where no answer came."""
        try:
            with Association(
                ("127.0.0.1", self.dicom_port),
                calling=calling,
                called="XRAY",
                contexts=[(sop_class, [syntax])],
            ) as association:
                return association.store(sop_class, uid, syntax, dataset)
        except (NoAnswerError, RejectedError):
            return None

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes] | None:
        """Send a request; gives status and body, None where no answer came."""
        connection = HTTPConnection("127.0.0.1", self.http_port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    def post(self, payload: bytes, content_type: str, **headers: str) -> tuple[int, bytes] | None:
        """Send an image by ``POST /images``."""
        return self.request("POST", "/images", payload, {"content-type": content_type, **headers})

    def receipt(self, event_id: str, **headers: str) -> dict[str, Any]:
        """Ask what became of an image that came by HTTP."""
        found = self.request("GET", f"/images/{event_id}", headers=headers)
        assert found is not None
        assert found[0] == 200, found
        receipt: dict[str, Any] = json.loads(found[1])
        return receipt


@contextmanager
def frozen(pid: int | None) -> Iterator[None]:
    """Have a process stand still: a broker that neither answers nor ends. None is nobody."""
    if pid is None:
        yield
        return
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def image_event_ids(records: list[Record]) -> list[str]:
    """Give the event id of each image that was published."""
    return [
        derive_image_event_id(one.text("ce_source"), one.text("ce_id"), hashlib.sha256(one.value or b"").hexdigest())
        for one in records
    ]


def predicted_event_ids(records: list[Record]) -> list[str]:
    """Give the event id of each prediction's image."""
    images = [json.loads(one.value or b"")["image"] for one in records]
    return [derive_image_event_id(image["source"], image["id"], image["sha256"]) for image in images]


def last_receipts(records: list[Record]) -> dict[str, dict[str, Any]]:
    """Give the last receipt of each event id; one is always in one partition."""
    return {(one.key or b"").decode(): json.loads(one.value) for one in records if one.value is not None}
