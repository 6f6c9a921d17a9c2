"""Decodes images in a process of their own, so that one that kills its decoder kills nothing else.

A native decoder that crashes takes Spark's Python worker with it, and the micro-batch, and does so again when the
batch is done again. Nobody can tell from outside which of its images it was. So once a batch has lost its worker some
times it is decoded here: a child process gets one image after the other; one that ends it, or leaves it without an
answer, is tried again and then given up as a dead letter. It costs a copy of each image through a pipe, for that batch.
"""

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import Any

from schemas.errors import CorruptImageError, Reason
from streaming.score.decoding import DecodePlan, decode_record, name_origin, reject_record

_TIMEOUT_S = 60.0
"""The slowest image within the limits takes seconds."""


class IsolatedDecoder:
    """Decodes as `streaming.score.decoding.decode_record` does, in a child process; a context manager that ends it.

    Parameters
    ----------
    tries : int
        How often an image may end the child before it is given up.
    """

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "IsolatedDecoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_child()

    def decode(self, row: Mapping[str, Any], payload: bytes | None, plan: DecodePlan) -> dict[str, Any]:
        """Decode one Kafka row; one that ends the child each time carries the reason ``decoder_crash``."""
        why = ""
        for _ in range(self._tries):
            try:
                return self._child().submit(decode_record, row, payload, plan).result(_TIMEOUT_S)
            except BrokenProcessPool:
                why = "ended the process that decoded it"
            except TimeoutError:
                why = f"was not decoded within {_TIMEOUT_S:.0f} s"
            except MemoryError:
                why = "took more memory than there is"
            self._end_child()
        detail = f"this image {why}, {self._tries} times of {self._tries}; it was not looked at any further"
        return reject_record(row, payload, CorruptImageError(Reason.DECODER_CRASH, name_origin(row), detail))

    def _child(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Not forked: a worker has threads of several libraries, and a fork of such a process can hang.
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return self._pool

    def _end_child(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in (pool._processes or {}).values():
                process.kill()  # one that hangs ends no other way
            pool.shutdown(cancel_futures=True)
