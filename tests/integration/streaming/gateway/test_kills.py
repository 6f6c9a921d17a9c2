"""A gateway is killed at each point between reception and answer, its broker goes away, its disk is full.

Nothing that was answered as taken is lost, and each object is predicted once: `test_each_object_is_predicted_once`
scores what the tests before it have left behind.
"""

import json
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.chaos.halts import OF_GATEWAY, Halts
from streaming.gateway.keeping.spool import read_spool
from tests.conftest import Trained
from tests.gatewayprocess import Gateway, frozen, predicted_event_ids, wait_until
from tests.integration.consumers import read_topic
from tests.integration.streaming.gateway.ward import DICOM, HTTP, TAKEN, Ward, run_ward

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

OF_SPOOL = OF_GATEWAY[OF_GATEWAY.index("unspooled") : OF_GATEWAY.index("drain-began")]
OF_DRAIN = OF_GATEWAY[OF_GATEWAY.index("drain-began") :]
ON_THE_WAY = tuple(point for point in OF_GATEWAY if point not in {*OF_SPOOL, *OF_DRAIN})
OTHER = {DICOM: HTTP, HTTP: DICOM}
SHORT_ANSWER = {"answer_s": "4", "spool_min_free_bytes": "0"}


@pytest.fixture(scope="module")
def ward(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """A broker that may be stopped, and devices."""
    with run_ward(tmp_path_factory.mktemp("ward"), jars) as ward:
        yield ward


@pytest.fixture
def halts(tmp_path: Path, ward: Ward) -> Iterator[Halts]:
    halts, before = Halts(tmp_path / "halts"), ward.environ
    ward.environ = before | halts.environ(os.environ)
    yield halts
    ward.environ = before


@pytest.mark.parametrize("turn", [0, pytest.param(1, marks=pytest.mark.long)])
def test_killed_at_each_point_between_reception_and_answer(ward: Ward, halts: Halts, tmp_path: Path, turn: int) -> None:
    spool = tmp_path / "spool"
    options = ("--spool", str(spool), "--keep-originals", str(tmp_path / "originals"))
    gateway = ward.gateway(*options, **SHORT_ANSWER).start()
    try:
        for number, point in enumerate((*ON_THE_WAY, *OF_SPOOL)):
            door = (DICOM, HTTP)[(number + turn) % 2]
            shot = ward.shoot()
            with ThreadPoolExecutor(1) as pool, frozen(ward.broker.pid() if point in OF_SPOOL else None):
                halts.ask_for(point)
                answer = pool.submit(ward.send, gateway, shot, door)
                wait_until(lambda point=point: halts.has_halted(point), f"{door} at {point}")
                assert ward.send(gateway, ward.shoot(), OTHER[door]) in TAKEN, point  # it goes on serving others
                gateway.kill()
                assert answer.result() is None, point
            assert ward.lost(spool) == set(), point
            assert ward.left_of() == [], point
            gateway.start()
            assert ward.send_until_taken(gateway, shot, door)
        wait_until(lambda: read_spool(spool).count == 0, "the drain does not empty the spool")
    finally:
        gateway.kill()
    assert ward.lost() == set()


@pytest.mark.long
@pytest.mark.parametrize("turn", [0, 1])
def test_killed_at_each_point_of_the_drain(ward: Ward, halts: Halts, tmp_path: Path, turn: int) -> None:
    spool = tmp_path / "spool"
    gateway = ward.gateway("--spool", str(spool), **SHORT_ANSWER).start()
    try:
        for number, point in enumerate((*OF_DRAIN, "receipt-noted")):
            with frozen(ward.broker.pid()):
                for count in range(3):
                    door = (DICOM, HTTP)[(number + turn + count) % 2]
                    assert ward.send(gateway, ward.shoot(), door) in TAKEN, point
                assert read_spool(spool).count == 3
                halts.ask_for(point)
            wait_until(lambda point=point: halts.has_halted(point), point)
            gateway.kill()
            assert ward.lost(spool) == set(), point
            gateway.start()
            wait_until(lambda: read_spool(spool).count == 0, f"the drain does not empty the spool after {point}")
            assert ward.lost() == set(), point
    finally:
        gateway.kill()


@pytest.mark.parametrize("is_spooled", [False, True])
@pytest.mark.parametrize("end", ["stop", pytest.param("kill", marks=pytest.mark.long)])
def test_broker_is_away_in_the_middle_of_a_hundred_objects(
    ward: Ward, tmp_path: Path, is_spooled: bool, end: str
) -> None:
    spool = tmp_path / "spool"
    options = ("--spool", str(spool)) if is_spooled else ()
    told: Counter[int | None] = Counter()
    shots = [ward.shoot() for _ in range(100)]
    done, is_away = threading.Semaphore(0), threading.Event()
    with ward.gateway(*options, **SHORT_ANSWER) as gateway:

        def send(door: str, own: int) -> None:
            for number, shot in enumerate(shots[own::4]):
                if number == 12:
                    is_away.wait(60)  # so that half of them come when it is
                told.update(ward.send_until_taken(gateway, shot, door))
                done.release()

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(send, door, own) for own, door in enumerate((DICOM, HTTP, DICOM, HTTP))]
            for _ in range(20):
                assert done.acquire(timeout=60)
            getattr(ward.broker, end)()
            is_away.set()
            if is_spooled:
                for one in running:
                    one.result()  # all are taken meanwhile
                assert read_spool(spool).count > 0
            else:
                wait_until(lambda: told.total() > 0 and is_down(gateway), "the gateway does not see it")
            ward.broker.start()
            for one in running:
                one.result()
        if is_spooled:
            wait_until(lambda: read_spool(spool).count == 0, "the drain does not empty the spool")
        gateway.stop()
    assert {shot.sop_uid for shot in shots} <= set(ward.taken)
    assert set(told) <= ({*TAKEN} if is_spooled else {*TAKEN, 0xA700, 503})
    assert is_spooled or set(told) & {0xA700, 503}
    assert ward.lost() == set()


def is_down(gateway: Gateway) -> bool:
    """Tell whether it says of itself that it takes nothing now."""
    answer = gateway.request("GET", "/readyz")
    return answer is not None and answer[0] == 503


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """2 MB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    "how", ["by others", *(pytest.param(one, marks=pytest.mark.long) for one in ("by itself", "by its own limit"))]
)
def test_the_spools_disk_is_full_while_the_broker_is_away(ward: Ward, small_disk: Path, how: str) -> None:
    spool, shots, told = small_disk / "spool", [ward.shoot() for _ in range(36)], Counter[int | None]()
    own = SHORT_ANSWER | ({"spool_max_bytes": str(1024 * 1024)} if how == "by its own limit" else {})
    with ward.gateway("--spool", str(spool), **own) as gateway:
        with frozen(ward.broker.pid()):
            for number, shot in enumerate(shots):
                if how == "by others" and number == 5:
                    fill(small_disk / "ballast")
                told[ward.send(gateway, shot, (DICOM, HTTP)[number % 2])] += 1
        assert set(told) == {0, 202, 0xA701, 503}, told
        taken = [shot for shot in shots if shot.sop_uid in ward.taken]
        assert len(taken) >= 5
        (small_disk / "ballast").unlink(missing_ok=True)
        wait_until(lambda: read_spool(spool).count == 0, "the drain does not empty the spool")
        assert ward.lost() == set()
        for number, shot in enumerate(shots):
            ward.send_until_taken(gateway, shot, (DICOM, HTTP)[number % 2])
        wait_until(lambda: read_spool(spool).count == 0, "the drain does not empty the spool")
        gateway.stop()
    assert ward.lost() == set()


def fill(ballast: Path) -> None:
    """Leave no room."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 4096):
            pass


@pytest.mark.long
@pytest.mark.spark
def test_each_object_is_predicted_once(ward: Ward, trained: Trained) -> None:
    with ward.gateway(**SHORT_ANSWER) as gateway:
        assert ward.send(gateway, ward.shoot(), DICOM) in TAKEN
        gateway.stop()
    published = ward.published()
    assert len(set(published)) >= len(ward.taken)
    scored = ward.run("stream", "--available-now", "--model", str(trained.folder), "--json")
    assert scored.returncode == 0, scored.stderr
    predictions = read_topic(ward.settings.kafka, ward.settings.kafka.predictions_topic)
    # An object that came into Kafka twice has two predictions of one event id, which a consumer takes for one.
    by_event = {json.loads(one.value or b"")["event_id"]: one.value for one in predictions}
    assert set(by_event.values()) == {one.value for one in predictions}
    assert set(predicted_event_ids(predictions)) == set(published)
    assert len(by_event) == len(set(published)) == len(ward.taken)
    assert read_topic(ward.settings.kafka, ward.settings.kafka.deadletters_topic) == []
    audit = ward.run("audit", "--json")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert json.loads(audit.stdout.splitlines()[-1])["predicted"] == len(published)
