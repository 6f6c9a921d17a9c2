"""What docs/devices.md says of the gateway, checked against it: a vendor's engineer goes by this page alone."""

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydicom.uid import UID
from pynetdicom import AE, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification

from schemas.envelope import BURNED_IN, OTHER_BYTES
from sparkdl.image.dicomfile import NATIVE_SYNTAXES
from streaming.devices.crosswalk import Crosswalk
from streaming.devices.identity import Identity, Known
from streaming.gateway.devicelist import Device, read_devices
from streaming.gateway.dicom import commitment, contexts, dicomdoor
from streaming.gateway.dicom.contexts import STORAGE_CLASSES, TRANSFER_SYNTAXES
from streaming.gateway.http import httpserver, imageroutes, problems, stowroutes
from streaming.gateway.http.objectnames import ObjectNames
from streaming.gateway.http.openapi import describe_door
from streaming.gateway.http.stow import JSON_TYPE, StowAnswer
from streaming.gateway.intake import _HEADROOM_BYTES
from streaming.gateway.keeping.originals import Found
from streaming.gateway.refusals import Cause, Refusal
from streaming.settings import GatewaySettings, KafkaSettings
from tests.testimages import dicom, png
from tests.unit.docs.test_docs import code_blocks, names_in, read_page, rows_of, run_example, section

STATEMENT = "DICOM Conformance Statement"


def part(heading: str) -> str:
    """The text below a heading of the third level."""
    _, _, rest = read_page("devices").partition(f"\n### {heading}\n")
    assert rest, heading
    return re.split(r"\n###? ", rest)[0]


# --- answers ----------------------------------------------------------------------------------------------------------


def test_every_cause_has_its_row_with_what_a_device_is_told() -> None:
    rows = rows_of(section("devices", "Answers"), "status")
    assert names_in(rows[0][0]) == ["0000"]
    assert [tuple([*names_in(row[0]), row[1], *names_in(row[2]), row[3]]) for row in rows[1:]] == [
        (f"{cause.value.status:04X}", str(cause.value.http), cause.label, cause.value.comment) for cause in Cause
    ]
    assert [row[4] == "later" for row in rows[1:]] == [cause.value.is_transient for cause in Cause]
    assert all(row[5] for row in rows)


def test_the_problem_is_what_a_client_is_told() -> None:
    shown = json.loads(code_blocks("devices", "json")[1])
    told = problems.tell_refusal(Refusal(Cause.BROKER_AWAY))
    assert shown == json.loads(bytes(told.body))
    assert told.headers["content-type"] == "application/problem+json"


def test_the_answer_of_an_image_keeps_the_description() -> None:
    shown = json.loads(code_blocks("devices", "json")[0])
    schema = describe_door()["components"]["schemas"]["taken"]
    jsonschema.validate(shown, schema)
    assert set(shown) == set(schema["required"])
    assert shown["event_id"] == json.loads(code_blocks("results", "json")[1])["event_id"]
    text = part("One image")
    assert {f"`{BURNED_IN}`", f"`{OTHER_BYTES}`"} <= set(re.findall(r"`\w+`", text))
    assert f"up to {imageroutes.MAX_WAIT_S:g} seconds" in text
    assert f"up to {imageroutes.MAX_KEY} printable" in text
    assert set(imageroutes.MEDIA_TYPES) <= set(names_in(rows_of(text, "part of the request")[0][1]))


def test_the_answer_of_a_study_is_what_is_rendered() -> None:
    sop_class = str(STORAGE_CLASSES[0])
    answer = StowAnswer(
        stored=[(ObjectNames(sop_class, "2.25.5"), "3e097360bbf6b7355fc0b73f7a40e711")],
        failed=[(ObjectNames(sop_class, "2.25.7"), Cause.UNREADABLE)],
    )
    assert json.loads(code_blocks("devices", "json")[2]) == json.loads(answer.render(JSON_TYPE))
    text = part("A study")
    assert f"{Cause.UNREADABLE.value.status} is {Cause.UNREADABLE.value.status:04X}" in text
    assert f"up to {stowroutes.MAX_PARTS:,} objects" in text
    assert f"bytes as\n{stowroutes._OBJECTS_IN_BODY} of the largest" in text


def test_every_route_is_named() -> None:
    named = {
        (match[1].lower(), match[2].replace("event id", "event_id"))
        for row in rows_of(section("devices", "HTTP"), "request")
        for match in re.finditer(r"`(GET|POST) (/[^`]*)`", row[0])
    }
    described = {(method, path) for path, methods in describe_door()["paths"].items() for method in methods}
    assert named == {(method, path) for method, path in described if method in {"get", "post"} and path != "/"}


def test_the_other_statuses_of_http_are_named() -> None:
    rows = rows_of(section("devices", "Answers").partition("Other statuses")[2], "HTTP")
    named = {status for row in rows for status in row[0].split(", ")}
    described = {
        status
        for path in describe_door()["paths"].values()
        for method in ("get", "post")
        for status in path.get(method, {}).get("responses", {})
    }
    of_causes = {str(cause.value.http) for cause in Cause}
    assert described - of_causes - {"200", "201", "202"} <= named
    assert f"larger than {httpserver.MAX_HEAD_BYTES // 1024} KiB" in rows[-1][1]


# --- who may send, and how much ---------------------------------------------------------------------------------------


def test_the_file_of_devices_is_one(tmp_path: Path) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(code_blocks("devices", "toml")[0], encoding="utf-8")
    devices = read_devices(file)
    assert [device.aet for device in devices] == ["DX1", "WORKSTATION", "PACS"]
    assert [device.may_be_at("10.1.3.77") for device in devices] == [True, False, True]


def test_every_field_of_a_device_is_explained_and_shown() -> None:
    fields = set(Device.model_fields) - {"is_named"}
    rows = rows_of(section("devices", "Who may send"), "field")
    assert {name for row in rows for name in names_in(row[0])} == fields
    assert set(re.findall(r"^(\w+) = ", code_blocks("devices", "toml")[0], re.MULTILINE)) == fields


def test_the_limits_are_the_settings() -> None:
    rows = rows_of(section("devices", "Limits"), "limit")
    fields = GatewaySettings.model_fields
    for _, setting, value, beyond in rows:
        name = names_in(setting)[0].removeprefix("XRAY_GATEWAY__").lower()
        assert float(re.match(r"[\d,]+", value)[0].replace(",", "")) == fields[name].default, setting  # type: ignore[index]
        assert {word for word in names_in(beyond)} <= {cause.label for cause in Cause}
    assert f"{KafkaSettings().max_message_bytes - _HEADROOM_BYTES:,}" in rows[0][2]


def test_what_is_said_of_defaults_is_so() -> None:
    gateway, text = GatewaySettings(), section("devices", "For the modality's engineer")
    rows = {row[0]: row[1] for row in rows_of(text, "the device asks for")}
    assert rows["port"] == f"`{gateway.dicom_port}`"
    assert rows["called AE title, remote AE title"] == f"`{gateway.aet}`"
    assert f"{gateway.max_pdu_bytes:,}" in rows["maximum PDU"]
    assert f"within {gateway.answer_s:g}" in rows["time-out for an answer"]
    assert f"Port `{gateway.http_port}`" in section("devices", "HTTP")


# --- the conformance statement ----------------------------------------------------------------------------------------


def syntax_pairs(rows: list[list[str]]) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in rows]


def test_storage_is_stated_with_every_class_and_syntax() -> None:
    text = part("Storage SCP")
    assert syntax_pairs(rows_of(text, "SOP class")) == [(one.name, str(one)) for one in STORAGE_CLASSES]
    assert syntax_pairs(rows_of(text, "transfer syntax")) == [(one.name, str(one)) for one in TRANSFER_SYNTAXES]


@pytest.mark.parametrize(
    ("heading", "sop_class"),
    [("Verification SCP", Verification), ("Storage Commitment SCP", StorageCommitmentPushModel)],
)
def test_other_services_are_stated_with_their_syntaxes(heading: str, sop_class: UID) -> None:
    [row] = rows_of(part(heading), "SOP class")
    assert row == [sop_class.name, str(sop_class), ", ".join(one.name for one in NATIVE_SYNTAXES)]


def test_the_overview_names_each_service() -> None:
    rows = rows_of(section("devices", STATEMENT), "network service")
    services = [row[0] for row in rows]
    assert [one.name for one in STORAGE_CLASSES] == services[1:4]
    assert all(row[1] == "no" for row in rows)


def test_association_policies_are_the_gateways() -> None:
    gateway = GatewaySettings()
    rows = {row[0]: row[1] for row in rows_of(part("Networking"), "association policy")}
    assert rows["implementation class UID"] == str(contexts.IMPLEMENTATION_UID)
    assert rows["implementation version name"] == contexts.IMPLEMENTATION_VERSION
    assert rows["associations at once, as acceptor"] == f"{gateway.max_associations} (setting)"
    assert rows["maximum PDU received"] == f"{gateway.max_pdu_bytes:,} bytes (setting)"
    rejected = [
        tuple(map(int, re.findall(r"\d+", row[1]))) for row in rows_of(part("Networking"), "association is rejected")
    ]
    assert rejected == [dicomdoor._UNKNOWN_CALLED, dicomdoor._UNKNOWN_CALLING, dicomdoor._LIMIT_EXCEEDED]


def test_commitment_is_stated_as_it_is() -> None:
    text = part("Storage Commitment SCP")
    statuses = {names_in(row[0])[0]: row[1] for row in rows_of(text, "N-ACTION status")}
    wanted = (
        commitment.SUCCESS,
        commitment.NO_SUCH_INSTANCE,
        commitment.INVALID_ARGUMENT,
        commitment.NO_SUCH_ACTION,
        commitment.RESOURCE_LIMITATION,
    )
    assert list(statuses) == [f"{status:04X}" for status in wanted]
    assert f"{commitment.MAX_OBJECTS:,} objects" in statuses["0213"]
    assert str(StorageCommitmentPushModelInstance) in statuses["0112"]
    report = {row[0]: row[1] for row in rows_of(text, "report (N-EVENT-REPORT)")}
    words = {Found.MISSING: "not there", Found.OTHER_CLASS: "there under another SOP class", Found.DAMAGED: "damaged"}
    assert set(words) == set(commitment.FAILURES)
    for found, reason in commitment.FAILURES.items():
        assert f"`{reason:04X}` {words[found]}" in report[f"event type {commitment.SOME_FAILED}"]
    proposed = [one.name for one in build_context(StorageCommitmentPushModel).transfer_syntax]
    assert " ".join(text.split()).count(f"in {', '.join(proposed[:-1])} and {proposed[-1]}") == 1
    assert f"{AE().maximum_pdu_size:,} bytes" in text


# --- programs ---------------------------------------------------------------------------------------------------------


class _Gateway(ThreadingHTTPServer):
    """Stands in for the HTTP door: answers as it is told, then with 201."""

    def __init__(self, answers: list[tuple[int, dict[str, Any]]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers
        self.seen: list[tuple[dict[str, str], bytes]] = []


class _Handler(BaseHTTPRequestHandler):
    server: _Gateway

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
        answers = self.server.answers
        status, content = answers.pop(0) if answers else (201, {"event_id": "3e09"})
        if status == 0:
            self.connection.close()
            return
        self.send_response(status)
        self.send_header("Retry-After", "1")
        self.send_header("Content-Type", JSON_TYPE)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def gateway(*answers: tuple[int, dict[str, Any]]) -> Iterator[tuple[str, _Gateway]]:
    with _Gateway(list(answers)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/images", server
        finally:
            server.shutdown()
            thread.join()


def send(url: str, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Run the page's program; gives how long it waited."""
    waits: list[float] = []
    own, sleep = threading.get_ident(), time.sleep

    def wait(seconds: float) -> None:
        if threading.get_ident() == own:
            waits.append(seconds)
        else:  # of another test, which goes on in this process
            sleep(seconds)

    monkeypatch.setattr("time.sleep", wait)
    monkeypatch.setattr(sys, "argv", ["send", url, "secret", *map(str, files)])
    run_example(code_blocks("devices", "python")[0])
    return waits


def test_the_program_sends_each_file_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / name for name in ("a.png", "b.JPG", "c.dcm")]
    for number, path in enumerate(files):
        path.write_bytes(png() + bytes(number))
    with gateway() as (url, server):
        assert send(url, files, monkeypatch) == []
    assert [body for _, body in server.seen] == [path.read_bytes() for path in files]
    assert [head["content-type"] for head, _ in server.seen] == ["image/png", "image/jpeg", "application/dicom"]
    assert {head["authorization"] for head, _ in server.seen} == {"Bearer secret"}


@pytest.mark.parametrize(
    "answer",
    [(503, {"retry": True}), (429, {"retry": True}), (0, {})],
    ids=["away", "too fast", "no answer"],
)
def test_the_program_sends_again_what_may_still_be_taken(
    answer: tuple[int, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png())
    with gateway(answer, answer) as (url, server):
        waits = send(url, [file], monkeypatch)
    assert len(server.seen) == 3
    assert len(waits) == 2
    assert all(wait > 0 for wait in waits)


@pytest.mark.parametrize("cause", [Cause.UNREADABLE, Cause.NOT_ALLOWED, Cause.TOO_LARGE], ids=lambda cause: cause.label)
def test_the_program_ends_with_the_reason_where_it_is_refused(
    cause: Cause, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png())
    told = json.loads(bytes(problems.tell_refusal(Refusal(cause)).body))
    with gateway((cause.value.http, told)) as (url, server), pytest.raises(SystemExit, match=cause.value.comment):
        send(url, [file], monkeypatch)
    assert len(server.seen) == 1


def test_the_program_for_studies_tells_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("dicomweb_client", reason="the example is for dicomweb-client")
    file = tmp_path / "a.dcm"
    file.write_bytes(dicom())
    with gateway((202, json.loads(code_blocks("devices", "json")[2]))) as (url, server):
        monkeypatch.setattr(sys, "argv", ["store", url.removesuffix("/images"), "secret", str(file)])
        run_example(code_blocks("devices", "python")[1])
    [(head, _)] = server.seen
    assert head["authorization"] == "Bearer secret"
    assert head["content-type"].startswith("multipart/related")
    assert capsys.readouterr().out == f"refused: 2.25.7 {Cause.UNREADABLE.value.status:04X}\n"


def test_the_crosswalk_leads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, key = tmp_path / "crosswalk", tmp_path / "crosswalk.key"
    crosswalk = Crosswalk(file, key)
    for number in range(3):
        names = [Known(f"own-{name}-{number}", f"pseudonym-{name}-{number}") for name in "patient accession".split()]
        uids = [Known(f"1.2.{number}.{place}", f"2.25.{number}.{place}") for place in range(3)]
        crosswalk.note(Identity(*names, *uids))
    crosswalk.close()
    monkeypatch.setattr(sys, "argv", ["back", str(file), str(key), "2.25.1.2"])
    run_example(code_blocks("devices", "python")[2])
    assert capsys.readouterr().out == "own-accession-1 1.2.1.2\n"
    monkeypatch.setattr(sys, "argv", ["back", str(file), str(key), "2.25.9"])
    with pytest.raises(SystemExit, match="not in this crosswalk"):
        run_example(code_blocks("devices", "python")[2])
