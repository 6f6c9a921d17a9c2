"""Predictions on a terminal: none looks surer than it is, and nothing in a message draws on the screen."""

import io
import json
import re
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from streaming.deadletters.read import DeadLetter, Details
from streaming.kafka.places import Origin, Place
from streaming.results.watch import SeenPrediction
from streaming.settings import KafkaSettings
from tests.unit.docs.test_docs import example_prediction
from xray import views
from xray.demo import count_undecided, measure_accuracy
from xray.views import prediction_table, watch_live

NEW_FLAG = "of_a_later_version"


def seen(label: str = "normal", score: float = 0.275, image: str | None = "1f0c2a7e", **event: Any) -> SeenPrediction:
    """One prediction; ``flags=None`` is a model that checks nothing."""
    whole = {**example_prediction(), "label": label, **event}
    whole["probabilities"] = {"normal": 1 - score, "opacities": score}
    whole["image"] = {**whole["image"], "id": image}
    if whole["flags"] is None:
        del whole["flags"]
    return SeenPrediction(whole, {"xray_input_partition": "3", "xray_input_offset": "1024"}, 0.5, 0.0)


def draw(*predictions: SeenPrediction, width: int = 80, colours: bool = False) -> list[str]:
    """The rows of the table, one string each, on a terminal of that width."""
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colours, color_system="standard" if colours else None
    )
    console.print(prediction_table(deque(predictions), len(predictions)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line for line in text.splitlines() if line.startswith("│")]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("│").split("│")]


@pytest.mark.parametrize("flags", [["uncertain"], ["unlike_training"], [NEW_FLAG], ["uncertain", NEW_FLAG]])
@pytest.mark.parametrize("label", ["normal", "opacities"])
def test_a_flagged_prediction_reads_undecided_and_names_its_flags(label: str, flags: list[str]) -> None:
    rows = draw(seen(label, flags=flags))
    image, said, *_ = cells(rows[0])
    assert (image, said) == ("1f0c2a7e", "undecided")
    drawn = "".join(cells(row)[2] for row in rows)
    assert all(flag in drawn for flag in flags)
    assert label not in "".join(rows)


@pytest.mark.parametrize("flags", [[], None])
def test_a_sure_prediction_gives_its_label_and_no_flag(flags: list[str] | None) -> None:
    rows = [cells(row) for row in draw(seen("opacities", 0.9375, flags=flags), seen("normal", 0.0625, flags=flags))]
    assert rows == [
        ["1f0c2a7e", "opacities", "", "0.938", "500", "3072x2560"],
        ["1f0c2a7e", "normal", "", "0.062", "500", "3072x2560"],
    ]


def test_only_a_sure_finding_is_highlighted() -> None:
    sure, unsure = draw(seen("opacities"), seen("opacities", flags=["uncertain"]), colours=True)
    assert "\x1b[1;33mopacities" in sure
    assert "\x1b[1;33m" not in unsure


def test_eighty_columns_hold_a_whole_row_whatever_the_names_are() -> None:
    longest = seen(image="a-hospital-wide-accession-number-of-48-characters", flags=["unlike_training"])
    plain = seen(image=None, flags=[])
    rows = draw(longest, plain)
    assert {len(row) for row in rows} == {80}
    assert cells(rows[0])[1:] == ["undecided", "unlike_training", "0.275", "500", "3072x2560"]
    name = "".join(cells(row)[0] for row in rows[:-1])
    assert name == "a-hospital-wide-accession-number-of-48-characters", "half an image's name names nothing"
    assert cells(rows[-1])[0] == "3@1024"


@pytest.mark.parametrize("hostile", ["[bold]ok[/]\x1b[2J\nx", "[link=http://x]y", "[/]\N{RIGHT-TO-LEFT OVERRIDE}\\"])
@pytest.mark.parametrize("place", ["image", "label", "flags", "size"])
def test_nothing_in_a_message_draws_on_the_screen(place: str, hostile: str) -> None:
    message = seen(
        image=hostile if place == "image" else "a",
        label=hostile if place == "label" else "normal",
        flags=[hostile] if place == "flags" else [],
    )
    if place == "size":
        message.event["image"]["height"] = hostile
    [row] = draw(message, width=240)
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in hostile)
    assert shown in row
    [coloured] = draw(message, width=240, colours=True)
    assert "\x1b]8" not in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == row


def test_a_long_flag_is_shown_whole_in_eighty_columns() -> None:
    flag = "a_flag_of_a_later_version_with_a_long_name"
    rows = draw(seen("a_label_of_some_length_that_goes_on", image="i" * 48, flags=["uncertain", flag]))
    assert {len(row) for row in rows} == {80}
    assert "".join(cells(row)[2] for row in rows) == f"uncertain{flag}"


def test_a_place_from_headers_draws_nothing_either() -> None:
    message = seen(image=None)
    message.headers["xray_input_offset"] = "[red]7[/]"
    assert cells(draw(message, width=240)[0])[0] == "3@[red]7[/]"


@pytest.mark.parametrize("as_json", [False, True])
def test_watch_shows_flags_where_there_is_no_terminal(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = [seen(flags=["uncertain"]), seen("opacities", 0.9, flags=[])]

    def watch(*_: Any, **__: Any) -> Iterator[SeenPrediction | None]:
        yield None
        yield from messages

    monkeypatch.setattr(views, "watch_predictions", watch)
    monkeypatch.setattr(views, "out", Console(width=80, highlight=False))
    watch_live(KafkaSettings(), from_beginning=False, count=2, timeout_s=None, as_json=as_json)
    printed = capsys.readouterr().out
    if as_json:
        assert [json.loads(line)["flags"] for line in printed.splitlines() if line.startswith("{")] == [
            ["uncertain"],
            [],
        ]
    else:
        first, second = printed.splitlines()
        assert first.endswith("  undecided  score 0.275  500 ms  3072x2560  uncertain")
        assert second.endswith("  opacities  score 0.900  500 ms  3072x2560")


def test_the_demo_counts_undecided_predictions_apart() -> None:
    known = {"a.png": "opacities", "b.png": "normal", "c.png": "normal"}
    source = {"source": "/xray/demo"}
    found = [
        seen("opacities", image="a.png", flags=[]),
        seen("normal", image="b.png", flags=None),
        seen("opacities", image="c.png", flags=["uncertain"]),
        seen("opacities", image="c.png", flags=[NEW_FLAG]),
    ]
    for one in found:
        one.event["image"] |= source
    assert count_undecided(found) == 2
    assert measure_accuracy(found, known) == 1.0


@pytest.mark.parametrize("asked", [False, True])
def test_where_the_program_failed_is_shown_where_asked_for(capsys: pytest.CaptureFixture[str], asked: bool) -> None:
    place = Place(0, 17)
    letter = DeadLetter(
        place,
        datetime(2026, 1, 1, tzinfo=UTC),
        "e" * 32,
        "truncated_image",
        "decode",
        "TruncatedImageError",
        "the end is missing",
        Origin("xray.images", Place(0, 3), ""),
        "2026-01-01T00:00:00Z",
        3,
    )
    trace = 'Traceback (most recent call last):\n  File "decode.py", line 1'
    views.show_dead_letter(Details(letter, [], None, None, "0" * 64, trace, b"abc"), trace=asked)
    printed = capsys.readouterr().out
    assert "the end is missing" in printed
    assert ("Traceback" in printed) is asked


REMARKS = (["old_rendering"], ["of_a_later_version"], ["old_rendering", "of_a_later_version"], "a word alone")


@pytest.mark.parametrize("remarks", REMARKS)
@pytest.mark.parametrize("flags", [[], None])
def test_a_remark_is_told_and_the_prediction_stays_one_to_act_on(remarks: Any, flags: list[str] | None) -> None:
    remarked, plain = seen("opacities", remarks=remarks, flags=flags), seen("opacities", flags=flags)
    rows = draw(remarked, plain)
    assert cells(rows[0]) == cells(rows[1])
    assert cells(rows[0])[1] == "opacities"
    caption = prediction_table(deque([remarked, plain]), 2).caption
    for word in remarks if isinstance(remarks, list) else [remarks]:
        assert f"{word} (1 of these 2)" in str(caption)


def test_without_a_remark_the_table_is_what_it_was() -> None:
    assert prediction_table(deque([seen(), seen(flags=["uncertain"])]), 2).caption is None


def test_a_remark_draws_nothing_either() -> None:
    caption = str(prediction_table(deque([seen(remarks=["[red]x\x1b[2J\ny"])]), 1).caption)
    assert "\x1b" not in caption
    assert "\n" not in caption
    assert "\\[red]" in caption


@pytest.mark.parametrize(
    ("remarks", "flags", "end"),
    [
        (["old_rendering"], [], "3072x2560  remarks: old_rendering"),
        (["old_rendering"], ["uncertain"], "uncertain  remarks: old_rendering"),
        (["a", "b"], [], "3072x2560  remarks: a, b"),
        (None, [], "3072x2560"),
    ],
)
@pytest.mark.slow
def test_watch_writes_remarks_behind_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], remarks: Any, flags: list[str], end: str
) -> None:
    event = seen(remarks=remarks, flags=flags)
    monkeypatch.setattr(views, "watch_predictions", lambda *_, **__: iter([event]))
    monkeypatch.setattr(views, "out", Console(width=80, highlight=False))
    watch_live(KafkaSettings(), from_beginning=False, count=1, timeout_s=1, as_json=False)
    assert capsys.readouterr().out.rstrip("\n").endswith(end)


@pytest.mark.slow
def test_the_demo_counts_a_remarked_prediction_as_decided() -> None:
    remarked = [seen("normal", remarks=["old_rendering"], flags=[]), seen(remarks=["old_rendering"], flags=None)]
    assert count_undecided(remarked) == 0
