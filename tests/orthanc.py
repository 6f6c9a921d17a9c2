"""Orthanc, a real archive, as a device that sends."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import which
from typing import Any

from benchmarks.ports import find_ports

PROGRAM = which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin")
_READY_S = 60.0


@contextmanager
def run_orthanc(folder: Path, port: int) -> Iterator[str]:
    """Run it with a gateway on this machine as its only peer, ``xray``; gives the address of its REST interface."""
    assert PROGRAM is not None
    http = find_ports(2)
    configuration = {
        "Name": "TEST",
        "StorageDirectory": str(folder / "orthanc"),
        "HttpPort": http,
        "DicomPort": http + 1,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomModalities": {"xray": ["XRAY", "127.0.0.1", port]},
        "Plugins": [],
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(configuration))
    with (folder / "orthanc.log").open("wb") as log, subprocess.Popen([PROGRAM, file], stdout=log, stderr=log) as own:
        address = f"http://127.0.0.1:{http}"
        try:
            until = time.monotonic() + _READY_S
            while not _answers(f"{address}/system"):
                assert own.poll() is None, "Orthanc has ended"
                assert time.monotonic() < until, "Orthanc did not start"
                time.sleep(0.05)
            yield address
        finally:
            own.terminate()


def call(address: str, body: bytes | None = None) -> Any:
    """Ask something of it."""
    with urllib.request.urlopen(address, body, timeout=60) as answer:  # noqa: S310
        return json.loads(answer.read())


def _answers(address: str) -> bool:
    with suppress(OSError):
        call(address)
        return True
    return False
