"""Small parts of the service: model cards, checkpoints, losses, folders, files to publish."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event

from schemas.errors import DataLossError, DatasetError, JobError, ModelLoadError, SettingsError
from schemas.modelcard import CARD_FILE, ModelCard, hash_model_folder, read_card, write_card
from sparkdl.image.limits import RENDERING_VERSION, RENDERING_VERSIONS
from streaming.account.checkpoints import Uncommitted, committed_offsets, find_uncommitted, last_committed
from streaming.account.losses import Loss, check_losses
from streaming.devices.publish import find_files, image_message
from streaming.folders import check_folder, check_folders
from streaming.metrics import parse_offsets
from streaming.run.models import ChampionWatch, check_card, warn_of_rendering
from streaming.run.supervisor import summarize
from streaming.settings import KafkaSettings, load_settings
from tests.savedmodels import add_model
from tests.testimages import png


def card(sha256: str) -> ModelCard:
    return ModelCard(
        "cxr",
        "v1",
        ("normal", "covid"),
        "covid",
        0.5,
        "untuned",
        "Lite0",
        "fp32",
        RENDERING_VERSION,
        sha256,
        "2026",
        {"accuracy": 0.9},
    )


def test_card_round_trip_and_tampering(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "part-0").write_text("{}")
    write_card(tmp_path, card(hash_model_folder(tmp_path)))
    (tmp_path / "metadata" / ".part-0.crc").write_bytes(b"side file")
    assert read_card(tmp_path) == card(hash_model_folder(tmp_path))
    (tmp_path / "metadata" / "part-0").write_text("{ }")
    with pytest.raises(ModelLoadError, match="was changed after training"):
        read_card(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"labels": 3}'])
def test_unreadable_card(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD_FILE).write_text(text)
    with pytest.raises(ModelLoadError, match="cannot read the model card"):
        read_card(tmp_path)


def test_committed_offsets(tmp_path: Path) -> None:
    assert committed_offsets(tmp_path) is None
    for folder in ("offsets", "commits"):
        (tmp_path / folder).mkdir()
    for batch, end in ((9, 5), (10, 8), (11, 12)):
        offsets = json.dumps({"images": {"0": end, "1": 2}})
        metadata = json.dumps({"batchTimestampMs": 1000 * batch})
        (tmp_path / "offsets" / str(batch)).write_text(f"v1\n{metadata}\n{offsets}")
    for batch in (9, 10):  # 11 was begun and not committed; 9 sorts behind 10 as text
        (tmp_path / "commits" / str(batch)).write_text("v1\n{}")
    (tmp_path / "commits" / ".10.crc").write_text("")
    assert committed_offsets(tmp_path) == {"images": {0: 8, 1: 2}}
    found = find_uncommitted(tmp_path)
    assert found == Uncommitted(10_000, {"images": {0: 8, 1: 2}})
    # Beyond the end of batch 11 too: what ran behind it may have left no file.
    assert [found.holds("images", 0, offset) for offset in (7, 8, 11, 12, 100)] == [False, True, True, True, True]
    assert [found.holds("images", 1, 1), found.holds("images", 1, 2), found.holds("canary", 0, 0)] == [
        False,
        True,
        True,
    ]
    (tmp_path / "commits" / "11").write_text("v1\n{}")
    assert find_uncommitted(tmp_path) == Uncommitted(11_000, {"images": {0: 12, 1: 2}})
    assert last_committed(tmp_path) == 11


def test_first_batch_may_be_the_unfinished_one(tmp_path: Path) -> None:
    assert find_uncommitted(tmp_path) is None
    assert last_committed(tmp_path) == -1
    (tmp_path / "offsets").mkdir()
    (tmp_path / "offsets" / "0").write_text('v1\n{"batchTimestampMs": 7}\n{"images": {"0": 5, "1": 0}}')
    assert find_uncommitted(tmp_path) == Uncommitted(7, {})


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "offsets").mkdir()
    (tmp_path / "offsets" / "0").write_text("")
    with pytest.raises(JobError, match=r"offsets/0 is damaged .* Move"):
        find_uncommitted(tmp_path)


@pytest.mark.parametrize("text", ["", "null", "None", None])
def test_progress_without_offsets(text: str | None) -> None:
    assert parse_offsets(text) == {}
    assert parse_offsets('{"images": {"0": 3}}') == {"images": {"0": 3}}


def test_a_failure_is_told_by_its_last_cause() -> None:
    message = """An exception was raised by the Python Proxy. Return Message: Traceback (most recent call last):
  File "archive.py", line 1, in merge_rows
py4j.protocol.Py4JJavaError: An error occurred while calling o1.sql.
: org.apache.spark.SparkException: Job aborted
\tat org.apache.spark.Some.method(Some.scala:1)
Caused by: java.io.IOException: No space left on device
\t... 3 more
"""
    assert summarize("Py4JException", message) == "java.io.IOException: No space left on device"
    assert summarize("EOFException", "") == "EOFException: "
    assert summarize("TimeoutException", "no answer\nwithin 60 s") == "TimeoutException: no answer"


def test_losses_are_named_and_refused_unless_accepted() -> None:
    kafka = KafkaSettings()
    lost = Loss(kafka.images_topic, 2, range(10, 15), renewed=False)
    canary = Loss(kafka.canary_topic, 0, range(3), renewed=False)
    renewed = Loss(kafka.images_topic, 1, range(4, 9), renewed=True)
    check_losses([canary], kafka, accepted=False)
    check_losses([lost, canary], kafka, accepted=True)
    with pytest.raises(DataLossError, match=r"5 records .* xray.images partition 2 offsets 10-14\. "):
        check_losses([lost, canary], kafka, accepted=False)
    with pytest.raises(DataLossError, match=r"xray\.images partition 1 offsets 4-8: .* SCORE is ahead .*--accept-loss"):
        check_losses([lost, renewed], kafka, accepted=True)


@pytest.mark.parametrize("name", ["checkpoints", "logs"])
def test_folders_of_score_are_probed_and_left_as_they_were(tmp_path: Path, name: str) -> None:
    settings = load_settings(home=tmp_path / "home")
    check_folders(settings)
    folder = settings.home / name
    assert list(folder.iterdir()) == []
    folder.rmdir()
    folder.write_text("")
    with pytest.raises(SettingsError, match=rf"cannot write to .*{name}: File exists.* XRAY_HOME"):
        check_folders(settings)


def _is_no_folder(tables: Path) -> Path:
    tables.write_text("")
    return tables


def _hangs_in_the_air(tables: Path) -> Path:
    tables.symlink_to("/nowhere/at/all")
    return tables


def _is_on_a_full_disk(_tables: Path) -> Path:
    return Path("/proc/self")  # as one where nothing can be written, for root too


@pytest.mark.parametrize("fault", [_is_no_folder, _hangs_in_the_air, _is_on_a_full_disk])
def test_tables_that_cannot_be_written_do_not_stop_score(tmp_path: Path, fault: Callable[[Path], Path]) -> None:
    """The archive's own start says so; SCORE goes on without."""
    tables = fault(tmp_path / "tables")
    settings = load_settings(home=tmp_path / "home", archive={"folder": str(tables)})
    check_folders(settings)
    with pytest.raises(SettingsError, match=rf"cannot write to {tables}: .* XRAY_ARCHIVE__FOLDER"):
        check_folder(tables, "XRAY_ARCHIVE__FOLDER")


def test_champion_watch_tells_of_another_model_once_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "champion").write_text("one\n")
    watch = ChampionWatch(tmp_path, tmp_path / "one")
    assert watch.find_new() is None
    (tmp_path / "champion").write_text("two\n")
    with pytest.raises(ModelLoadError, match="two"):
        watch.find_new()
    assert watch.waiting
    assert watch.find_new() is None  # not again at once
    (tmp_path / "two").mkdir()
    watch.accept(tmp_path / "one")
    assert watch.find_new() == tmp_path / "two"
    watch.accept(tmp_path / "two")
    assert watch.find_new() is None
    assert not watch.waiting


def test_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "deep/c.dcm"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    names = [path.name for path in find_files([str(tmp_path)])]
    assert sorted(names) == ["a.JPG", "b.png", "c.dcm"]
    assert [path.name for path in find_files([str(tmp_path / "*.txt"), str(tmp_path / "notes.txt")])] == ["notes.txt"]
    with pytest.raises(DatasetError, match="nowhere"):
        find_files([str(tmp_path / "nowhere")])


def test_published_message_is_a_cloud_event_for_another_library() -> None:
    payload, headers = image_message(png(), image_id="a.png-1", source="/dx-1")
    event = from_binary_event(KafkaMessage(headers=dict(headers), key=None, value=payload))
    assert (event.get_id(), event.get_source(), event.get_type()) == ("a.png-1", "/dx-1", "xray.image.v1")
    assert event.get_datacontenttype() == "image/png"
    assert event.get_data() == png()


@pytest.mark.parametrize("version", RENDERING_VERSIONS)
def test_models_of_every_known_rendering_are_served(
    tmp_path: Path, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    card = add_model(tmp_path, "v1", rendering=version)
    assert check_card(tmp_path / "models" / "v1") == card
    warn_of_rendering(card)
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == int(version != RENDERING_VERSION)
    for record in told:
        text = record.getMessage()
        assert "\n" not in text
        for part in ("model v1", "rendering version 1", "the next one does not", "xray train --data", "old_rendering"):
            assert part in text


@pytest.mark.parametrize("version", [-1, 0, max(RENDERING_VERSIONS) + 1])
def test_models_of_an_unknown_rendering_are_refused(tmp_path: Path, version: int) -> None:
    add_model(tmp_path, "v1", rendering=version)
    with pytest.raises(ModelLoadError, match=rf"v1 cannot be served\. .* version {version}, .*xray train --data"):
        check_card(tmp_path / "models" / "v1")
