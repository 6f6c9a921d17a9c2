"""HL7 v2: segments and fields by a foreign reader, escaping, and what a receiver answers."""

from typing import Any

import hl7
import pytest

from schemas.envelope import DISCLAIMER
from streaming.reports.hl7v2 import Answer, Parties, read_answer, to_message
from tests.reportparts import CORRECTION, identity, report

PARTIES = Parties("WARD", "RIS", "HOSPITAL", "MRN", "P")


def read(**kind: Any) -> Any:
    return hl7.parse(to_message(report(**kind), PARTIES).decode())


def results(message: Any) -> dict[str, Any]:
    return {str(segment[3][0][0]): segment for segment in message.segments("OBX")}


def test_it_says_who_sends_what_to_whom() -> None:
    header = read().segment("MSH")
    assert [str(header[i]) for i in (3, 4, 5, 6)] == ["xray-stream", "WARD", "RIS", "HOSPITAL"]
    assert str(header[9]) == "ORU^R01^ORU_R01"
    assert str(header[10]) == report().prediction.event_id
    assert [str(header[i]) for i in (11, 12, 18)] == ["P", "2.5.1", "UNICODE UTF-8"]


def test_it_names_the_patient_and_the_order_of_the_original() -> None:
    message = read(whose=identity(patient_id="4711", accession_number="A1", study_uid="1.2.3", sop_uid="1.2.3.4"))
    assert str(message.segment("PID")[3]) == "4711^^^MRN^MR"
    assert str(message.segment("OBR")[18]) == "A1"
    assert str(results(message)["113014"][5]) == "1.2.3"
    assert str(results(message)["121126"][5]) == "1.2.3.4"
    assert "pseudonym" not in str(message)


@pytest.mark.parametrize(
    ("kind", "states"),
    [
        ({}, {"P"}),
        ({"probability": 0.2}, {"P"}),
        ({"correction": CORRECTION}, {"C"}),
        ({"flags": ["uncertain"]}, {"P", "X"}),
    ],
)
def test_it_is_preliminary_or_a_correction(kind: dict[str, Any], states: set[str]) -> None:
    message = read(**kind)
    assert {str(segment[11]) for segment in message.segments("OBX")} == states
    assert str(message.segment("OBR")[25]) == ("C" if "correction" in kind else "P")


def test_a_correction_is_another_message_about_the_same_result() -> None:
    first, second = read(), read(correction=CORRECTION)
    assert str(first.segment("MSH")[10]) != str(second.segment("MSH")[10])
    assert str(first.segment("OBR")[3]) == str(second.segment("OBR")[3])
    assert str(results(second)["opacities"][5]).startswith("normal^")


@pytest.mark.parametrize("flags", [["uncertain"], ["unlike_training"], ["new_flag"]])
def test_a_flagged_prediction_has_no_result(flags: list[str]) -> None:
    message = read(flags=flags)
    assert str(results(message)["opacities"][5]) == ""
    assert str(results(message)["opacities"][11]) == "X"
    assert "probability" not in results(message)
    assert any(flags[0] in str(note) for note in message.segments("NTE"))


def test_it_says_model_and_research_use() -> None:
    message, said = read(), report()
    assert str(results(message)["model"][5]) == said.model
    assert any(DISCLAIMER in str(note) for note in message.segments("NTE"))
    assert str(message.segment("OBX")[18]).startswith(said.device_uid)


HOSTILE = [
    "a|b",
    "a^b~c&d",
    "a\\F\\b",
    "a\rMSH|x",
    "a\nb",
    "a\x0bb\x1cc\x1c\r",
    "Müller 東京",
    "a\u2028b\x85c",
    "\\X0D\\",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_structure(text: str) -> None:
    raw = to_message(report(whose=identity(patient_id=text, accession_number=text)), PARTIES)
    plain = to_message(report(whose=identity(patient_id="x", accession_number="x")), PARTIES)
    assert not set(raw) & {0x0B, 0x1C, 0x0A}
    assert raw.count(b"\r") == plain.count(b"\r")
    for one, other in zip(raw.split(b"\r"), plain.split(b"\r"), strict=True):
        for separator in (b"|", b"^", b"~", b"&"):
            assert one.count(separator) == other.count(separator)
    assert unescape(raw.decode().split("\r")[1].split("|")[3].split("^")[0]) == text


def unescape(text: str) -> str:
    out, rest = "", text
    while "\\" in rest:
        before, code, rest = rest.split("\\", 2)
        out += before
        out += bytes.fromhex(code[1:]).decode() if code[0] == "X" else dict(F="|", S="^", T="&", R="~", E="\\")[code]
    return out + rest


def test_the_same_report_gives_the_same_bytes() -> None:
    assert to_message(report(), PARTIES) == to_message(report(), PARTIES)


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("AA", Answer.ACCEPTED),
        ("CA", Answer.ACCEPTED),
        ("AE", Answer.FAILED),
        ("CE", Answer.FAILED),
        ("AR", Answer.REJECTED),
        ("CR", Answer.REJECTED),
        ("XX", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_answers(code: str, wanted: Answer | None, end: str) -> None:
    message = end.join(["MSH|^~\\&|RIS||||20260131||ACK^R01|1|P|2.5.1", f"MSA|{code}|id", ""]).encode()
    assert read_answer(message, "id") is wanted


@pytest.mark.parametrize(
    "message", [b"", b"MSH|^~\\&|", b"MSA", b"MSA|AA", b"MSA|AA|other", b"\xff\xfe", b"HTTP/1.1 200 OK\r\n\r\n"]
)
def test_what_does_not_name_the_message_is_no_answer(message: bytes) -> None:
    assert read_answer(message, "id") is None


def test_another_separator_of_the_receiver_is_read() -> None:
    assert read_answer(b"MSH#^~\\&#RIS\rMSA#AA#id\r", "id") is Answer.ACCEPTED
