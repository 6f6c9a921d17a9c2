"""Who starts where no lock tells looks on for a while, and is refused where somebody else writes."""

import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from deltalake import DeltaTable

from schemas.documents import load_tables
from schemas.errors import TableClaimedError, TableError
from streaming.archive import rivals
from streaming.archive.archivetable import ArchiveTable
from streaming.archive.knownids import KnownIds
from streaming.archive.rivals import refuse_rival
from streaming.archive.rows import Row
from streaming.kafka.topicids import TopicIds
from streaming.settings import StreamSettings, load_settings

_NAME, _TOPIC = "features", "xray.features"
_SPANS = {0: range(1000)}
_DAY = date(2026, 1, 31)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StreamSettings:
    monkeypatch.setattr(rivals, "_POLL_S", 0.01)
    monkeypatch.setattr(rivals, "_MORE_S", 0.3)
    retry = {"first_wait_s": 0.01, "max_wait_s": 0.01, "give_up_s": 0.2}
    return load_settings(environ={}, home=tmp_path, archive={"trigger_s": 0}, retry=retry)


def claimed(settings: StreamSettings, writer: str) -> ArchiveTable:
    table = ArchiveTable(settings.tables_folder, load_tables()[_NAME], _TOPIC, writer, KnownIds(35))
    table.claim(TopicIds("cluster", {_TOPIC: "id"}), _SPANS)
    return table


def append(table: ArchiveTable, name: str = "a") -> None:
    day = (_DAY - date(1970, 1, 1)).days
    assert table.append([Row(name, day, day, {"event_id": name, "date": _DAY}, 100)], {0: 1}) == 1


def look_on(settings: StreamSettings, change: Callable[[], object] = lambda: None) -> int:
    """Look on, while something is changed after the second look; give how many looks there were."""
    looks: list[None] = []

    def note() -> None:
        looks.append(None)
        if len(looks) == 2:
            change()

    refuse_rival(settings, threading.Event(), note)
    return len(looks)


def test_nobody_waits_where_no_archive_has_ever_been(settings: StreamSettings) -> None:
    assert look_on(settings) == 0


def test_one_that_writes_nothing_is_taken_over_from(settings: StreamSettings) -> None:
    append(claimed(settings, "old"))
    assert look_on(settings) > 2


def test_somebody_else_s_commits_are_no_archive_s(settings: StreamSettings) -> None:
    append(claimed(settings, "old"))
    assert look_on(settings, lambda: DeltaTable(f"{settings.tables_folder}/{_NAME}").delete("event_id = 'a'")) > 2


def test_one_that_writes_is_left_alone(settings: StreamSettings) -> None:
    old = claimed(settings, "old")
    with pytest.raises(TableClaimedError, match=r"is being filled by another archive \(old\)"):
        look_on(settings, lambda: append(old))


def test_one_that_commits_places_alone_is_left_alone(settings: StreamSettings) -> None:
    old = claimed(settings, "old")
    with pytest.raises(TableClaimedError, match=r"\(old\)"):
        look_on(settings, lambda: old.append([], {0: 5}))


def test_one_that_claims_meanwhile_is_left_alone(settings: StreamSettings) -> None:
    claimed(settings, "old")
    with pytest.raises(TableClaimedError, match=r"\(new\)"):
        look_on(settings, lambda: claimed(settings, "new"))


def test_it_ends_when_told_to(settings: StreamSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "_MORE_S", 60.0)
    claimed(settings, "old")
    ended = threading.Event()
    started = time.monotonic()
    refuse_rival(settings, ended, ended.set)
    assert time.monotonic() - started < 30


def test_what_cannot_be_read_is_tried_again_and_given_up(settings: StreamSettings) -> None:
    claimed(settings, "old")
    commit = Path(settings.tables_folder) / _NAME / "_delta_log" / f"{0:020}.json"
    text = commit.read_text(encoding="utf-8")
    commit.write_text("{", encoding="utf-8")
    with pytest.raises(TableError, match="cannot be read"):
        look_on(settings)
    assert look_on(settings, lambda: commit.write_text(text, encoding="utf-8")) > 2
