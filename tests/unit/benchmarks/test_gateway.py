"""Parts of the gateway's benchmark that need no gateway: what is sent, and the sampler."""

import hashlib
import io
import threading
import time

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="DICOM needs the gateway extra")

from benchmarks.gateway.objects import Message, draw_dataset, draw_png, name_object
from benchmarks.gateway.profiler import Sampler
from benchmarks.gateway.senders import Sent, _gather


@pytest.mark.parametrize("size", [300_000, 1_000_000])
def test_an_object_has_its_size(size: int) -> None:
    dataset, uid = draw_dataset(size)
    assert len(dataset) == pytest.approx(size, rel=0.01)
    read = pydicom.dcmread(io.BytesIO(dataset), force=True)
    assert read.SOPInstanceUID == uid
    assert (read.BitsStored, len(read.PixelData)) == (12, read.Rows * read.Columns * 2)


def test_a_png_has_its_size() -> None:
    assert len(draw_png(50_000)) == pytest.approx(50_000, rel=0.1)


@pytest.mark.parametrize("max_pdu_bytes", [16_384, 131_072])
def test_each_name_is_in_command_and_data_set(max_pdu_bytes: int) -> None:
    dataset, uid = draw_dataset(300_000)
    message = Message.encode(dataset, uid, context=1, max_pdu_bytes=max_pdu_bytes)
    size = len(message.data)
    for sender, number in ((0, 0), (7, 3), (99_999, 12)):
        message.rename(name_object(sender, number))
        assert message.data.count(name_object(sender, number).encode()) == 2
        assert uid.encode() not in message.data
        assert len(message.data) == size


def test_names_are_uids_and_differ() -> None:
    names = {name_object(sender, number) for sender in range(30) for number in range(30)}
    assert len(names) == 900
    assert all(pydicom.uid.UID(name).is_valid and len(name) == 44 for name in names)


def test_a_burst_lasts_from_the_first_byte_to_the_last_answer() -> None:
    burst = _gather(1_000_000, [Sent(10.0, 12.0, (1.0, 1.0), 1), Sent(11.0, 14.0, (2.0,), 0)])
    assert (burst.seconds, burst.latencies, burst.later) == (4.0, (1.0, 1.0, 2.0), 1)
    assert burst.mb_s == 0.75


def hash_for(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        hashlib.sha256(bytes(1_000_000))


def rest_until(ended: threading.Event) -> None:
    ended.wait()


def test_the_sampler_books_work_to_who_does_it_and_waiting_to_nobody() -> None:
    ended = threading.Event()
    sampler = Sampler()
    threads = [threading.Thread(target=hash_for, args=(0.5,)), threading.Thread(target=rest_until, args=(ended,))]
    sampler.start()
    for thread in threads:
        thread.start()
    threads[0].join()
    found = sampler.stop()
    ended.set()
    threads[1].join()
    functions = found["functions"]
    assert isinstance(functions, dict)
    (worked,) = (spent for name, spent in functions.items() if name.endswith(":hash_for"))
    assert worked == pytest.approx(0.5, rel=0.3)
    assert sum(spent for name, spent in functions.items() if name.endswith(":wait")) < 0.1
