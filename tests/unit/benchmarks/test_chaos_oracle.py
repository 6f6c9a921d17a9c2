"""The checker of the kill matrix finds what it is there to find: a made-up account, with one thing wrong at a time."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from benchmarks.chaos.faults import Kind, Round
from benchmarks.chaos.matrix import make_faults
from benchmarks.chaos.oracle import (
    DEAD_LETTER,
    FEATURES,
    PREDICTION,
    Known,
    Oracle,
    Outcome,
    Row,
    Verdict,
    draw_account,
    read_oracle,
    read_outcome,
    read_rows,
)
from benchmarks.chaos.report import Report, fault_rows, measure_growth, render_markdown
from benchmarks.chaos.stream import Checkpoint, Memory
from benchmarks.chaos.traffic import Traffic, digest, poison
from schemas.errors import Reason
from sparkdl.image.decode import decode_image
from streaming.settings import load_settings

GOOD = Known("good", "phantom.png", None, "aa", 0, 5)
OTHER = Known("other", "phantom.jpg", None, "bb", 1, 5)
BAD = Known("bad", "truncated.jpg", "truncated_image", "cc", 0, 6)
NULL = Known("null", "tombstone", "tombstone", "null", 1, 6)
RECORDS = [GOOD, OTHER, BAD, NULL]
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def outcomes_of(known: Known) -> list[Outcome]:
    if known.reason is None:
        prediction = Outcome(PREDICTION, known.place, f"e-{known.id}", f"value {known.id}", known.sha256, None, "v1")
        return [prediction, Outcome(FEATURES, known.place, f"e-{known.id}", f"features {known.id}")]
    return [Outcome(DEAD_LETTER, known.place, f"e-{known.id}", known.sha256, known.sha256, known.reason)]


def all_outcomes() -> list[Outcome]:
    return [outcome for known in RECORDS for outcome in outcomes_of(known)]


def all_rows() -> dict[str, list[Row]]:
    good = [Row(f"e-{known.id}", known.place, known.sha256) for known in (GOOD, OTHER)]
    bad = [
        Row("e-bad", BAD.place, "cc", "truncated_image"),
        Row("e-null", NULL.place, EMPTY_SHA256, "tombstone"),
    ]
    return {PREDICTION: good, FEATURES: list(good), DEAD_LETTER: bad}


def troubles(outcomes: list[Outcome], rows: dict[str, list[Row]] | None = None) -> dict[str, int]:
    return draw_account(RECORDS, outcomes, all_rows() if rows is None else rows).troubles


def test_a_sound_account_balances() -> None:
    verdict = draw_account(RECORDS, all_outcomes(), all_rows())
    assert verdict.balanced
    assert (verdict.records, verdict.predicted, verdict.dead_lettered, verdict.table_rows) == (4, 2, 2, 4)
    assert (verdict.topic_duplicates, verdict.foreign, verdict.places_with_several_ids, verdict.examples) == (
        0,
        0,
        0,
        {},
    )


@pytest.mark.parametrize("lost", RECORDS, ids=lambda known: known.id)
def test_a_loss_is_found(lost: Known) -> None:
    outcomes = [outcome for outcome in all_outcomes() if outcome.place != lost.place]
    verdict = draw_account(RECORDS, outcomes, all_rows())
    assert verdict.troubles == {"missing": 1}
    assert lost.id in verdict.examples["missing"][0]


def test_features_alone_are_no_outcome() -> None:
    prediction, _ = outcomes_of(GOOD)
    assert troubles([outcome for outcome in all_outcomes() if outcome != prediction]) == {"missing": 1}


def test_a_prediction_without_features_is_found() -> None:
    _, features = outcomes_of(GOOD)
    outcomes = [outcome for outcome in all_outcomes() if outcome != features]
    assert troubles(outcomes) == {"features_missing": 1}


def test_repeated_outcomes_are_counted_by_kind_and_are_no_loss() -> None:
    verdict = draw_account(RECORDS, [*all_outcomes(), *outcomes_of(GOOD), *outcomes_of(GOOD), *outcomes_of(BAD)], {})
    assert verdict.topic_duplicates == 5
    assert verdict.duplicates_by_kind == {PREDICTION: 2, FEATURES: 2, DEAD_LETTER: 1}
    assert verdict.balanced


def test_one_id_with_different_bytes_is_found() -> None:
    prediction, _ = outcomes_of(GOOD)
    assert troubles([*all_outcomes(), replace(prediction, value_sha256="another")]) == {"ids_with_different_bytes": 1}


def test_one_id_for_two_records_with_different_bytes_is_found() -> None:
    prediction, features = outcomes_of(OTHER)
    forged = [replace(prediction, event_id="e-good"), replace(features, event_id="e-good")]
    found = troubles([*outcomes_of(GOOD), *forged, *outcomes_of(BAD), *outcomes_of(NULL)])
    assert found == {"ids_with_different_bytes": 2}


def test_an_image_that_two_models_scored_is_found() -> None:
    prediction, _ = outcomes_of(GOOD)
    verdict = draw_account(RECORDS, [*all_outcomes(), replace(prediction, event_id="e-good-v2", model="v2")], {})
    assert (verdict.places_with_several_ids, verdict.topic_duplicates) == (1, 1)
    assert verdict.table_missing == 0


@pytest.mark.parametrize(
    ("known", "outcome", "wanted"),
    [
        (BAD, Outcome(DEAD_LETTER, BAD.place, "e-bad", "cc", "cc", "corrupt_image"), "wrong_reason"),
        (GOOD, Outcome(DEAD_LETTER, GOOD.place, "e", "aa", "aa", "unexpected"), "table_missing wrong_reason"),
        (BAD, Outcome(PREDICTION, BAD.place, "e", "v", "cc"), "features_missing table_missing wrong_reason"),
        (BAD, Outcome(DEAD_LETTER, BAD.place, "e-bad", "dd", "dd", "truncated_image"), "wrong_bytes"),
    ],
    ids=["another reason", "a good image is dead", "a bad one is predicted", "other bytes"],
)
def test_another_fate_is_found(known: Known, outcome: Outcome, wanted: str) -> None:
    rest = [other for other in all_outcomes() if other.place != known.place]
    assert troubles([*rest, outcome]) == dict.fromkeys(wanted.split(), 1)


def test_both_fates_are_found() -> None:
    second = Outcome(DEAD_LETTER, GOOD.place, "e-dead", "aa", "aa", "unexpected")
    found = troubles([*all_outcomes(), second])
    assert found == {"both": 1, "wrong_reason": 1, "table_missing": 1}


def test_outcomes_of_other_records_are_foreign_and_their_rows_are_left_out() -> None:
    strange = Known("strange", "phantom.png", None, "ee", 0, 99)
    rows = all_rows()
    rows[PREDICTION].append(Row("e-strange", strange.place, "ee"))
    verdict = draw_account(RECORDS, [*all_outcomes(), *outcomes_of(strange)], rows)
    assert (verdict.foreign, verdict.table_rows, verdict.balanced) == (2, 4, True)


@pytest.mark.parametrize("kind", [PREDICTION, FEATURES, DEAD_LETTER])
def test_rows_that_are_missing_or_twice_or_wrong_are_found(kind: str) -> None:
    first, second = all_rows()[kind]
    assert troubles(all_outcomes(), all_rows() | {kind: [first]}) == {"table_missing": 1}
    assert troubles(all_outcomes(), all_rows() | {kind: [first, first, second]}) == {"table_duplicates": 1}
    under_another_id = replace(first, event_id="e-another")
    assert troubles(all_outcomes(), all_rows() | {kind: [first, under_another_id, second]}) == {"table_duplicates": 1}
    assert troubles(all_outcomes(), all_rows() | {kind: [replace(first, sha256="ff"), second]}) == {"table_wrong": 1}


def test_a_row_with_another_reason_is_found() -> None:
    first, second = all_rows()[DEAD_LETTER]
    rows = all_rows() | {DEAD_LETTER: [replace(first, reason="unexpected"), second]}
    assert troubles(all_outcomes(), rows) == {"table_wrong": 1}


def test_the_commands_own_account_counts() -> None:
    assert Verdict(records=1, audit_exit=1).troubles == {"audit_exit": 1}
    assert Verdict(records=1, audit_exit=0).balanced


def test_two_records_at_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="two records at one place"):
        draw_account([GOOD, replace(BAD, offset=GOOD.offset)], [], {})


def test_the_file_keeps_what_was_confirmed(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "folder" / "oracle.jsonl")
    for known in RECORDS:
        oracle.confirm(known)
    oracle.doubt("unknown")
    assert read_oracle(oracle.path) == RECORDS
    assert oracle.ends() == {0: 7, 1: 7}
    assert oracle.unconfirmed == ["unknown"]
    oracle.close()


def test_messages_of_the_outcome_topics_are_taken_apart() -> None:
    headers = {"xray_input_partition": "1", "xray_input_offset": "7", "ce_id": "sent", "xray_event_id": "e"}
    event = json.dumps({"event_id": "e", "image": {"sha256": "aa"}, "model": {"version": "v1"}}).encode()
    assert read_outcome(PREDICTION, event, headers) == Outcome(
        PREDICTION, (1, 7), "sent", digest(event), "aa", None, "v1"
    )
    dead = read_outcome(DEAD_LETTER, None, headers | {"xray_reason": "tombstone"})
    assert dead == Outcome(DEAD_LETTER, (1, 7), "e", "null", "null", "tombstone")
    empty = read_outcome(DEAD_LETTER, b"", headers | {"xray_reason": "empty_payload"})
    assert empty.image_sha256 == EMPTY_SHA256


def test_tables_are_read_for_one_topic(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    columns = {"event_id": ["e", "f"], "input_topic": [settings.kafka.images_topic, "another"],
               "input_partition": [0, 0], "input_offset": [6, 6], "sha256": ["cc", "cc"],
               "reason": ["truncated_image", "truncated_image"]}  # fmt: skip
    write_deltalake(f"{settings.tables_folder}/{DEAD_LETTER}", pa.table(columns))
    rows = read_rows(settings)
    assert rows == {PREDICTION: [], FEATURES: [], DEAD_LETTER: [Row("e", (0, 6), "cc", "truncated_image")]}


def test_checkpoint_files_tell_what_is_in_a_batch(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    assert (checkpoint.planned(), checkpoint.committed(), checkpoint.progress()) == (-1, -1, {})
    for name in ("offsets", "commits"):
        (tmp_path / name).mkdir()
    for batch, (first, second) in enumerate([(2, 0), (4, 1)]):
        text = "v1\n{}\n" + json.dumps({"images": {"0": first, "1": second}}) + "\n"
        (tmp_path / "offsets" / str(batch)).write_text(text)
    (tmp_path / "offsets" / ".2.5f.tmp").touch()
    (tmp_path / "commits" / "0").touch()
    assert (checkpoint.planned(), checkpoint.committed()) == (1, 0)
    assert checkpoint.places(1, "images") == {(0, 2), (0, 3), (1, 0)}
    assert checkpoint.places(0, "images") == {(0, 0), (0, 1)}
    assert checkpoint.places(1, "canary") == set()
    assert checkpoint.progress() == {"images": {0: 2, 1: 0}}


def test_traffic_is_seeded_and_every_message_is_its_own() -> None:
    messages = list(Traffic(7, "t").take(400))
    assert messages == list(Traffic(7, "t").take(400))
    assert messages != list(Traffic(8, "t").take(400))
    assert len({message.id for message in messages}) == 400
    reasons = {message.reason for message in messages}
    assert None in reasons
    assert len(reasons) > 10


def test_varied_images_still_decode() -> None:
    for message in Traffic(3, "t").take(150):
        if message.reason is None:
            assert decode_image(message.payload, origin=message.id).image.height > 0


def test_poison_covers_every_reason_a_message_alone_can_have() -> None:
    # The others are no property of value and headers, but of key, client, decoder, model, or a defect of ours.
    beyond = {"key_too_large", "record_too_large", "decoder_crash", "no_features", "unexpected"}
    assert {str(reason) for reason in Reason} - beyond <= {example.reason for example in poison()}


def test_growth_is_that_of_the_longest_life() -> None:
    flat = [Memory(10.0 * i, 1, 900_000_000, 100_000_000) for i in range(20)]
    growing = [Memory(300 + 10.0 * i, 2, 900_000_000 + 20_000_000 * i, 100_000_000) for i in range(10)]
    found = measure_growth(flat + growing)
    assert found is not None
    assert (found.samples, found.flat) == (10, True)
    grown = measure_growth(growing)
    assert grown is not None
    assert not grown.flat
    assert grown.share == pytest.approx(80 / 1100)
    assert measure_growth([]) is None


def test_the_report_says_what_no_loss_is_worth() -> None:
    report = Report(7, whole=[Verdict(records=3000, audit_exit=0)])
    assert "0 losses in 3000 records" in render_markdown(report, {"seed": 7})
    assert report.to_dict()["loss_rate_below"] == pytest.approx(0.001)
    lossy = Report(7, whole=[Verdict(records=3000, missing=1)])
    assert not lossy.balanced
    assert lossy.to_dict()["loss_rate_below"] is None


def test_help_names_the_options() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("--rounds", "--records", "--seed", "--faults", "--backlog", "--json"))


def test_faults_have_names_of_their_own() -> None:
    names = [fault.name for fault in make_faults()]
    assert len(set(names)) == len(names)
    assert names == [fault.name for fault in make_faults(short=True)]


@pytest.mark.parametrize(("kind", "passed"), [("clean", False), ("killed", False), ("replayed", True)])
def test_repeated_outcomes_need_a_reason(kind: Kind, passed: bool) -> None:
    verdict = draw_account(RECORDS, [*all_outcomes(), *outcomes_of(GOOD)], all_rows())
    found = Round("fault", kind, hit=True, attempts=1, drained=True, verdict=verdict)
    assert found.passed is passed
    assert not replace(found, drained=False).passed
    row = fault_rows([found])[0]
    assert row[:6] == [f"fault ({kind})", "1 of 1", "4", "0", "2", "0"]
    assert row[-1] == ("balanced" if passed else "repeated outcomes")
