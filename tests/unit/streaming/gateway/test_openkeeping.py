"""What the gateway says of the folders that it keeps things in, when it starts."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from streaming.gateway import service
from streaming.gateway.keeping.spool import Spool
from streaming.settings import GatewaySettings, StreamSettings
from tests.imageoutcomes import outgoing

_MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("min_free_bytes", "max_bytes", "is_told"),
    [(0, 10 * _MIB, False), (10**18, 10 * _MIB, True), (0, _MIB, True), (10**18, _MIB, True)],
)
def test_a_spool_that_takes_nothing_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, min_free_bytes: int, max_bytes: int, is_told: bool
) -> None:
    filled = Spool(tmp_path / "spool", max_bytes=2 * _MIB, min_free_bytes=0)
    filled.put(outgoing(b"x" * (_MIB + 1)))
    filled.close()
    gateway = GatewaySettings(spool=tmp_path / "spool", spool_max_bytes=max_bytes, spool_min_free_bytes=min_free_bytes)
    with ExitStack() as stack:
        service._open_keeping(StreamSettings(gateway=gateway), stack)
    assert ("there is no room" in caplog.text) is is_told
