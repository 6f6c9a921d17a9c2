"""The store of receipts: what counts, what is told, what a damaged file does."""

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from streaming.gateway.receipts.outcome import read_prediction
from streaming.gateway.receipts.receipt import Receipt, State
from streaming.gateway.receipts.receiptstore import ReceiptStore, Shown, StoreError
from streaming.settings import KafkaSettings
from tests.imageoutcomes import outgoing, score

_NOW = datetime(2026, 1, 31, 14, 0, 0, 0, UTC)
_IMAGE = outgoing(name="1.2.3")
_ACCEPTED = Receipt.of_accepted(_IMAGE, "xray.images-0@12", _NOW)


def _predicted() -> Receipt:
    outcome = read_prediction(score(_IMAGE, KafkaSettings()), with_score=False)  # type: ignore[arg-type]
    assert outcome is not None
    return outcome.receipt


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway" / "receipts.db"


@pytest.fixture
def store(path: Path) -> ReceiptStore:
    return ReceiptStore(path)


def _absorb(store: ReceiptStore, *found: Receipt | Shown, place: int = 1) -> None:
    store.absorb(found, {("t", 0): place}, generation=store.read_generation())


def _count(path: Path, where: str = "1") -> int:
    db = sqlite3.connect(path)
    try:
        return int(db.execute(f"SELECT count(*) FROM receipts WHERE {where}").fetchone()[0])  # noqa: S608
    finally:
        db.close()


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_last_state_is_found_and_outlives_the_process(store: ReceiptStore, path: Path) -> None:
    assert store.find(_IMAGE.event_id) is None
    store.note(_ACCEPTED)
    assert store.find(_IMAGE.event_id) == _ACCEPTED
    _absorb(store, _predicted(), place=7)
    store.close()
    again = ReceiptStore(path)
    assert again.find(_IMAGE.event_id) == _predicted()
    again.read_places("t", "id")
    assert again.read_places("t", "id") == {0: 7}


def test_only_the_owner_can_read_the_file(store: ReceiptStore, path: Path) -> None:
    store.note(_ACCEPTED)
    files = list(path.parent.iterdir())
    assert len(files) > 1, "SQLite's other files are held to the same"
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_other_bytes_under_an_id_are_known(store: ReceiptStore) -> None:
    name = (_ACCEPTED.source, _ACCEPTED.image_id)
    assert not store.has_other_bytes(*name, "0" * 64)
    store.note(_ACCEPTED)
    assert store.has_other_bytes(*name, "0" * 64)
    assert not store.has_other_bytes(*name, _ACCEPTED.sha256), "the same bytes again"
    assert not store.has_other_bytes(*reversed(name), "0" * 64)
    assert not store.has_other_bytes(name[0] + name[1][0], name[1][1:], "0" * 64), "another name with the same letters"


def test_a_topic_made_anew_begins_from_its_start(store: ReceiptStore) -> None:
    assert store.read_places("t", "first") == {}
    _absorb(store, place=7)
    assert store.read_places("t", "first") == {0: 7}
    assert store.read_places("t", "second") == {}
    assert store.read_places("t", "second") == {}, "it is noted"
    assert store.read_places("other", "first") == {}


def test_old_receipts_are_removed_and_no_others(store: ReceiptStore, path: Path) -> None:
    for minute in range(30):
        image = outgoing(name=f"image {minute}")
        store.note(Receipt.of_accepted(image, "xray.images-0@1", _NOW.replace(minute=minute)))
    assert store.remove_before("2026-01-31T14:10:00.000Z") == 10
    assert store.remove_before("2026-01-31T14:10:00.000Z") == 0
    assert (_count(path), _count(path, "at < '2026-01-31T14:10'")) == (20, 0)


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_receipt_is_untold_until_it_is_confirmed(store: ReceiptStore) -> None:
    store.note(_ACCEPTED)
    assert store.list_untold(10) == [_ACCEPTED]
    store.mark_told([Shown(_ACCEPTED, 5)])
    assert store.list_untold(10) == []
    _absorb(store, _predicted())
    assert store.list_untold(10) == [_predicted()]
    store.mark_told([Shown(_ACCEPTED, 9)])
    assert store.list_untold(10) == [_predicted()], "what was confirmed is not its last state"


def test_a_repetition_is_not_told_again(store: ReceiptStore) -> None:
    _absorb(store, _predicted())
    store.mark_told([Shown(_predicted(), 5)])
    _absorb(store, replace(_predicted(), at="2026-02-01T00:00:00.000Z"))
    assert store.list_untold(10) == []
    store.note(_ACCEPTED)
    assert store.list_untold(10) == [], "sent again after its prediction"


def test_what_waits_in_the_spool_is_not_told(store: ReceiptStore) -> None:
    store.note(replace(_ACCEPTED, place=None), is_held=True)
    assert store.list_untold(10) == []
    assert store.find(_IMAGE.event_id) == replace(_ACCEPTED, place=None)
    store.mark_all_untold()
    assert store.list_untold(10) == []
    store.note(_ACCEPTED)
    assert store.list_untold(10) == [_ACCEPTED]


def test_a_new_receipts_topic_gets_everything(store: ReceiptStore) -> None:
    store.note(_ACCEPTED)
    store.mark_told([Shown(_ACCEPTED, 0)])
    store.mark_all_untold()
    assert store.list_untold(10) == [_ACCEPTED]


def test_the_oldest_are_told_first_and_no_more_than_asked_for(store: ReceiptStore) -> None:
    receipts = [Receipt.of_accepted(outgoing(), "xray.images-0@1", _NOW.replace(minute=m)) for m in (3, 1, 2)]
    for receipt in receipts:
        store.note(receipt)
    assert store.list_untold(2) == [receipts[1], receipts[2]]


# --- what the topic shows ---------------------------------------------------------------------------------------------

_DEAD = replace(
    _predicted(), state=State.DEAD_LETTERED, at="2026-01-31T13:00:00.000Z", reason="x", model=None, outcome_event_id="0"
)
_LATE: dict[str, tuple[Receipt, Receipt]] = {
    "accepted after predicted": (_predicted(), _ACCEPTED),
    "accepted after dead lettered": (_DEAD, _ACCEPTED),
    "an earlier dead letter after predicted": (_predicted(), _DEAD),
    "predicted without its flags": (replace(_predicted(), flags=("a",)), _predicted()),
}


@pytest.mark.parametrize("case", _LATE)
def test_an_earlier_state_behind_the_last_one_is_healed(store: ReceiptStore, case: str) -> None:
    last, late = _LATE[case]
    _absorb(store, last)
    store.mark_told([Shown(last, 5)])
    _absorb(store, Shown(late, 6))
    assert store.list_untold(10) == [last]
    store.mark_told([Shown(last, 7)])
    _absorb(store, Shown(last, 7))
    assert store.list_untold(10) == []


@pytest.mark.parametrize("case", _LATE)
def test_an_earlier_state_before_the_last_one_is_as_it_should_be(store: ReceiptStore, case: str) -> None:
    last, early = _LATE[case]
    _absorb(store, last)
    store.mark_told([Shown(last, 5)])
    _absorb(store, Shown(early, 4), Shown(last, 5))
    assert store.list_untold(10) == []


def test_what_another_gateway_wrote_is_known_and_not_written_again(store: ReceiptStore) -> None:
    _absorb(store, Shown(_ACCEPTED, 3))
    assert store.find(_IMAGE.event_id) == _ACCEPTED
    _absorb(store, _predicted(), Shown(replace(_predicted(), at="2026-01-31T14:05:00.000Z"), 4))
    assert store.list_untold(10) == [], "it says the same, by another clock"


def test_two_gateways_that_saw_different_times_do_not_write_for_ever(tmp_path: Path) -> None:
    """Each reads what the other has written, as long as there is something new."""
    stores = [ReceiptStore(tmp_path / name) for name in ("a.db", "b.db")]
    seen = [
        (_ACCEPTED, _predicted(), replace(_DEAD, flags=("a",))),
        (replace(_DEAD, at="2026-01-31T14:30:00.000Z"), replace(_predicted(), at="2026-01-31T15:00:00.000Z")),
    ]
    for store, receipts in zip(stores, seen, strict=True):
        _absorb(store, *receipts)
    topic: list[Receipt] = []
    read = [0, 0]
    for _ in range(20):
        for number, store in enumerate(stores):
            for receipt in store.list_untold(10):
                topic.append(receipt)
                store.mark_told([Shown(receipt, len(topic) - 1)])
            shown = [Shown(receipt, offset) for offset, receipt in enumerate(topic)][read[number] :]
            _absorb(store, *shown)
            read[number] = len(topic)
    assert len(topic) < 6
    assert {store.list_untold(10) == [] for store in stores} == {True}
    last = stores[0].find(_IMAGE.event_id)
    assert last is not None
    assert last.state == topic[-1].state == State.PREDICTED
    assert topic[-1].flags == ("a",)


# --- the file ---------------------------------------------------------------------------------------------------------


def _overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def _spoil_rows(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("UPDATE receipts SET value = 'nonsense'")
    db.commit()
    db.close()


_DAMAGES: dict[str, Callable[[Path], object]] = {
    "no database": lambda path: path.write_bytes(b"nonsense" * 4096),
    "damaged pages": lambda path: _overwrite(path, 4096, b"\xff" * 8 * 4096),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:6000]),
    "another version": lambda path: _overwrite(path, 60, (99).to_bytes(4, "big")),
    "rows that are no receipts": _spoil_rows,
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_file_is_made_anew(store: ReceiptStore, path: Path, damage: str) -> None:
    for _ in range(50):
        store.note(Receipt.of_accepted(outgoing(), "xray.images-0@1", _NOW))
    store.note(_ACCEPTED)
    store.read_places("t", "id")
    _absorb(store, place=7)
    before = store.read_generation()
    store.close()
    Path(f"{path}-wal").unlink(missing_ok=True)
    _DAMAGES[damage](path)
    with pytest.raises(StoreError):
        store.find(_IMAGE.event_id)
    store.note(_ACCEPTED)
    assert store.find(_IMAGE.event_id) == _ACCEPTED
    assert _count(path) == 1
    assert store.read_places("t", "id") == {}, "so that the topics are read again"
    with pytest.raises(StoreError, match="made anew"):
        store.absorb([], {("t", 0): 8}, generation=before)
    assert store.read_places("t", "id") == {}


def test_a_removed_file_is_noticed_and_made_anew(store: ReceiptStore, path: Path) -> None:
    store.note(_ACCEPTED)
    store.read_places("t", "id")
    _absorb(store, place=7)
    store.tidy()
    for file in list(path.parent.iterdir()):
        file.unlink()
    with pytest.raises(StoreError, match="is gone"):
        store.tidy()
    assert store.find(_IMAGE.event_id) is None
    assert store.read_places("t", "id") == {}


@pytest.mark.parametrize("wrong", ["folder in its place", "file in its folder's place", "locked by another"])
def test_a_file_that_cannot_be_used_is_told_and_used_again_later(store: ReceiptStore, path: Path, wrong: str) -> None:
    if wrong == "folder in its place":
        path.mkdir(parents=True)
        undo: Callable[[], object] = path.rmdir
    elif wrong == "file in its folder's place":
        path.parent.write_text("")
        undo = path.parent.unlink
    else:
        store.note(Receipt.of_accepted(outgoing(), "xray.images-0@1", _NOW))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        undo = other.close
    with pytest.raises(StoreError, match=r"receipts\.db"):
        store.note(_ACCEPTED)
    undo()
    store.note(_ACCEPTED)
    assert store.find(_IMAGE.event_id) == _ACCEPTED


def test_threads_share_it(store: ReceiptStore, path: Path) -> None:
    receipts = [[Receipt.of_accepted(outgoing(), "xray.images-0@1", _NOW) for _ in range(50)] for _ in range(4)]

    def note(some: list[Receipt]) -> None:
        for receipt in some:
            store.note(receipt)

    threads = [threading.Thread(target=note, args=(some,)) for some in receipts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _count(path) == 200


def test_what_was_written_is_brought_into_the_file_itself(store: ReceiptStore, path: Path) -> None:
    wal = Path(f"{path}-wal")
    while not wal.exists() or wal.stat().st_size < 5_000_000:
        for _ in range(100):
            store.note(Receipt.of_accepted(outgoing(b"image"), "xray.images-0@1", _NOW))
    store.tidy()
    assert wal.stat().st_size == 0
    assert path.stat().st_size > 100_000
    store.note(_ACCEPTED)
    assert store.find(_IMAGE.event_id) == _ACCEPTED
