"""What a log line keeps and what becomes a pseudonym."""

import pytest

from xray.support.masking import MASK, Masking


@pytest.fixture
def masking() -> Masking:
    return Masking()


@pytest.mark.parametrize(
    "line",
    [
        "image xray.images-3@1024: nChannels is 2, expected 1, 3 or 4",
        "26/11/30 21:00:00.123 WARN TaskSetManager: Lost task 0.0 in stage 1.0",
        "2026-11-30 21:00:00,123 ERROR the archive does not run",
        "batch 17: 600 rows in, 598 accepted, 2 rejected, 1.25 s",
        "org.apache.spark.SparkException: Job aborted",
        "\tat org.apache.spark.sql.execution.streaming.MicroBatchExecution.runBatch(MicroBatchExecution.scala:231)",
        "",
        "----------",
    ],
)
def test_what_the_programs_say_stays(masking: Masking, line: str) -> None:
    assert masking.mask_line(line) == line


@pytest.mark.parametrize(
    "hidden",
    [
        "DOE^JANE",
        "Kowalczyk",
        "kowalczyk",
        "4711",
        "007",
        "19500102",
        "1950-01-02",
        "1.2.840.113619.2.55.3",
        "PID00042",
        "0f8fad5b-d9cb-469f-a165-70867728950e",
        "10.20.30.40",
        "kowalczyk@hospital.example",
        "/srv/streaming/kafka",
        "Żółć",
        "9" * 64,
    ],
)
def test_what_may_be_a_patients_becomes_a_pseudonym(masking: Masking, hidden: str) -> None:
    for line in (
        hidden,
        f"image {hidden} cannot be read",
        f"PatientID={hidden}, name='{hidden}'.",
        f"[{hidden}] failed",
    ):
        shown = masking.mask_line(line)
        assert hidden not in shown
        assert "~" in shown


def test_a_trace_names_our_file_and_not_where_it_was_installed(masking: Masking) -> None:
    shown = masking.mask_line('  File "/home/kowalczyk/venv/streaming/score/query.py", line 120, in score_batch')
    assert shown == '  File "streaming/score/query.py", line 120, in score_batch'


def test_a_path_is_one_name_even_where_its_folders_have_names_that_are_words(masking: Masking) -> None:
    assert "streaming" not in masking.mask_line("/data/streaming/table")


def test_a_time_is_shown_at_the_beginning_of_a_line_alone(masking: Masking) -> None:
    shown = masking.mask_line("2026-11-30 21:00:00 born 1950-01-02 00:00:00")
    assert shown.startswith("2026-11-30 21:00:00 ")
    assert "1950" not in shown


def test_one_text_has_one_pseudonym_in_a_bundle_and_another_in_the_next(masking: Masking) -> None:
    assert masking.mask_line("PID00042 and again PID00042").split()[0] == masking.pseudonymize("PID00042")
    assert masking.pseudonymize("PID00042") == masking.pseudonymize("PID00042")
    assert masking.pseudonymize("PID00042") != Masking().pseudonymize("PID00042")


@pytest.mark.parametrize("secret", ["hunter2-long", "pa ss,w=rd", "streaming", "x"])
def test_a_known_secret_is_masked_even_where_it_is_a_word(secret: str) -> None:
    masking = Masking([secret, ""])
    assert masking.mask_line(f"password {secret} refused") == f"password {MASK} refused"
    assert masking.mask_values({"a": [f"{secret} twice {secret}"]}) == {"a": [f"{MASK} twice {MASK}"]}


def test_a_short_secret_does_not_make_nonsense_of_other_words() -> None:
    assert Masking(["in"]).mask_secrets("within in") == f"within {MASK}"


def test_of_two_secrets_the_longer_is_masked_whole() -> None:
    assert Masking(["abcd", "abcdefgh"]).mask_secrets("abcdefgh") == MASK


def test_user_and_password_of_a_url_are_masked(masking: Masking) -> None:
    assert masking.mask_secrets("http://user:pw@mlflow.example:5000/x") == f"http://{MASK}@mlflow.example:5000/x"


def test_labels_that_people_choose_are_pseudonyms(masking: Masking) -> None:
    shown = masking.mask_labels({"query": "score", "source": "Ward of Kowalczyk", "target": "mllp:10.0.0.1"})
    assert shown["query"] == "score"
    assert "Kowalczyk" not in shown["source"]
    assert "10.0.0.1" not in shown["target"]


def test_texts_of_a_health_page_are_masked_and_its_states_stay(masking: Masking) -> None:
    shown = masking.mask_texts({"ok": False, "tables": {"predictions": {"failure": "PID00042 refused", "n": 3}}})
    assert shown["ok"] is False
    assert shown["tables"]["predictions"]["n"] == 3
    assert "PID00042" not in shown["tables"]["predictions"]["failure"]
