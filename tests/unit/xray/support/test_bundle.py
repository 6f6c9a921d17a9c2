"""The bundle: no marker that was planted comes into it, whatever part it was planted in."""

import errno
import io
import json
import os
import stat
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from schemas.deltatable import append_rows, arrow_schema, create_table
from schemas.documents import load_tables
from schemas.errors import BrokerError, SettingsError
from streaming.settings import StreamSettings, load_settings
from xray.doctor.finding import Finding, Verdict
from xray.support import bundle as module
from xray.support import parts as parts_module
from xray.support.bundle import Bundle, write_bundle
from xray.support.parts import find_secrets

NAME, FAMILY, PATIENT, STUDY = "KOWALCZYK^ZUZANNA", "Kowalczyk", "MRN0047110815", "1.2.840.99999.4711.8"
EVENT, ACCESSION, BIRTH = "0f8fad5b-d9cb-469f-a165-70867728950e", "ACC-77-1234", "19500102"
PASSWORD, TOKEN, SPARK, STORE = "pw-Hunter,2 x", "tok_8f7e6d5c4b3a", "spark-secret-999", "AWSSECRET/+abc=="
PATIENTS = (NAME, FAMILY, PATIENT, STUDY, EVENT, ACCESSION, BIRTH, "ZUZANNA")
SECRETS = (PASSWORD, TOKEN, SPARK, STORE, "mlflow-pw")
MARKERS = PATIENTS + SECRETS


class TalkativeProgram(BaseHTTPRequestHandler):
    """A fake part of the product, whose metrics and health say what they must not."""

    pages: ClassVar[dict[str, str]] = {
        "/metrics": (
            "# TYPE xray_gateway_objects_total counter\n"
            f'xray_gateway_objects_total{{source="{FAMILY}",result="{"accepted"}"}} 12\n'
        ),
        "/health": json.dumps({"ok": False, "archive": {"x": {"ok": False, "failure": f"{NAME} {PATIENT} {TOKEN}"}}}),
    }

    def do_GET(self) -> None:
        body = self.pages[self.path].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def program() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), TalkativeProgram)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def plant_logs(home: Path) -> None:
    said = f"image xray.images-3@1024 of {NAME}, ID {PATIENT}, {EVENT} failed"
    line = f"26/11/30 21:00:00.123 ERROR TaskSetManager: {said}\n"
    trace = (
        f'  File "/srv/{FAMILY}/streaming/score/query.py", line 12, in score\nValueError: {STUDY} {ACCESSION} {BIRTH}\n'
    )
    secret = f"password={PASSWORD} token {TOKEN} Authorization: Bearer {TOKEN} {SPARK} {STORE}\n"
    for path in ("logs/spark.log", "logs/spark-console.log", "kafka/kafka.log"):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text((line + trace + secret) * 3)


def plant_tables(home: Path) -> None:
    definition = load_tables()["predictions"]
    table = create_table(str(home / "tables" / "predictions"), definition, {})
    schema = arrow_schema(definition)
    row = {field.name: PATIENT if field.type == pa.string() else None for field in schema}
    append_rows(table, pa.Table.from_pylist([row], schema=schema), {"x": 1}, {"note": f"{NAME} {PATIENT}"})
    reopened = create_table(str(home / "tables" / "predictions"), definition, {})
    reopened.delete(f"event_id = '{PATIENT}'")


def plant_files(home: Path) -> None:
    """Plant markers in names and contents of what a bundle has no business with."""
    for folder in ("spool", "gateway", "alerts", "page", "reporting"):
        (home / folder).mkdir(mode=0o700)
        (home / folder / f"{PATIENT}.dcm").write_text(NAME)
    (home / "gateway" / "pseudonyms.key").write_text(TOKEN)
    (home / "page-trail.jsonl").write_text(f'{{"who": "{FAMILY}"}}\n')


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: int) -> StreamSettings:
    """A state folder with markers in every part, and a Kafka that answers with some."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    for name in ("AWS_SECRET_ACCESS_KEY",):
        monkeypatch.setenv(name, STORE)
    monkeypatch.setenv("XRAY_HOME", str(home))
    (home / "xray.env").write_text(
        f"XRAY_KAFKA__SECURITY_PROTOCOL=SASL_SSL\nXRAY_KAFKA__SASL_MECHANISM=PLAIN\nXRAY_KAFKA__SASL_USERNAME=stream\n"
        f"XRAY_KAFKA__SASL_PASSWORD='{PASSWORD}'\nXRAY_REPORTS__HTTP_TOKEN={TOKEN}\nXRAY_SPARK__SECRET={SPARK}\n"
        f"XRAY_TRACKING__URI=http://reader:mlflow-pw@mlflow.example:5000\nXRAY_GATEWAY__SPOOL={home / 'spool'}\n"
        f"XRAY_GATEWAY__METRICS_PORT={program}\nXRAY_METRICS__PORT=0\nXRAY_ARCHIVE__METRICS_PORT=0\n"
        "XRAY_ALERTS__METRICS_PORT=0\nXRAY_REPORTS__METRICS_PORT=0\n"
    )
    (home / "xray.env").chmod(0o600)
    plant_logs(home)
    plant_tables(home)
    plant_files(home)

    def examine(*_: Any, **__: Any) -> list[Finding]:
        return [Finding("kafka", Verdict.FAULT, f"log-in refused for {PASSWORD}", f"Check {TOKEN}.")]

    monkeypatch.setattr(parts_module, "examine", examine)
    monkeypatch.setattr(parts_module, "describe_status", lambda _: {"kafka": True, "why": f"with {PASSWORD}"})
    monkeypatch.setattr(
        parts_module, "read_topic_configs", lambda *_: {"xray.images": {"retention.ms": "1", "x": PASSWORD}}
    )
    return load_settings()


def read(bundle: Bundle) -> dict[str, str]:
    with zipfile.ZipFile(bundle.path) as file:
        assert file.testzip() is None
        return {name: file.read(name).decode() for name in file.namelist()}


def test_no_marker_that_was_planted_comes_into_the_bundle(planted: StreamSettings, tmp_path: Path) -> None:
    bundle = write_bundle(planted, tmp_path / "bundle.zip")
    assert bundle.missing == {}
    texts = read(bundle)
    assert set(bundle.parts) == set(texts)
    for name, text in texts.items():
        for marker in MARKERS:
            assert marker.lower() not in text.lower(), (name, marker)
            assert json.dumps(marker)[1:-1] not in text, (name, marker)
    whole = bundle.path.read_bytes()
    assert all(marker.encode() not in whole for marker in MARKERS)


def test_the_markers_are_where_the_bundle_looks(planted: StreamSettings) -> None:
    """Otherwise the test before says nothing."""
    home = planted.home
    assert all(
        marker in (home / "logs" / "spark.log").read_text() for marker in (NAME, PATIENT, PASSWORD, STORE, STUDY)
    )
    commits = "".join(path.read_text() for path in (home / "tables" / "predictions" / "_delta_log").glob("*.json"))
    assert PATIENT in commits
    assert NAME in commits
    assert planted.kafka.sasl_password is not None
    assert planted.kafka.sasl_password.get_secret_value() == PASSWORD


def test_what_a_helper_needs_is_in_the_bundle(planted: StreamSettings, tmp_path: Path) -> None:
    texts = read(write_bundle(planted, tmp_path / "bundle.zip"))
    log = texts["logs/spark.log"]
    assert "26/11/30 21:00:00.123 ERROR TaskSetManager: image xray.images-3@1024 of ~" in log
    assert 'File "streaming/score/query.py", line 12, in score' in log
    settings = json.loads(texts["settings.json"])
    assert settings["XRAY_KAFKA__SASL_USERNAME"] == {"value": "stream", "from": str(planted.home / "xray.env")}
    assert settings["XRAY_KAFKA__SASL_PASSWORD"]["value"] == "**********"
    assert settings["XRAY_SCORE__TRIGGER_S"] == {"value": 0.0, "from": "default"}
    assert settings["XRAY_TRACKING__URI"]["value"] == "http://**********@mlflow.example:5000"
    versions = json.loads(texts["versions.json"])
    assert versions["packages"]["pyspark"]
    gateway = json.loads(texts["metrics.json"])["gateway"]
    assert gateway["state"] == "not_ready"
    [sample] = gateway["series"]["xray_gateway_objects_total"]
    assert (sample["value"], sample["labels"]["result"]) == (12.0, "accepted")
    assert sample["labels"]["source"].startswith("~")
    table = json.loads(texts["tables.json"])["predictions"]
    assert [one["operation"] for one in table["commits"]] == ["DELETE", "WRITE", "CREATE TABLE"]
    assert "operationParameters" not in texts["tables.json"]
    assert json.loads(texts["topics.json"])["xray.images"]["retention.ms"] == "1"


def test_one_id_is_one_pseudonym_in_all_logs(planted: StreamSettings, tmp_path: Path) -> None:
    texts = read(write_bundle(planted, tmp_path / "bundle.zip"))
    first = {text.splitlines()[0] for name, text in texts.items() if name.startswith("logs/")}
    assert len(first) == 1


def test_the_bundle_is_for_its_owner_alone_and_overwrites_nothing(planted: StreamSettings, tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    write_bundle(planted, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(SettingsError, match="is there already"):
        write_bundle(planted, path)
    assert path.read_bytes() == before
    with pytest.raises(SettingsError, match="cannot be written"):
        write_bundle(planted, tmp_path / "none" / "bundle.zip")


def test_a_part_that_fails_or_hangs_is_left_out_and_named(
    planted: StreamSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def fail(*_: Any) -> None:
        msg = f"refused for {PATIENT}"
        raise BrokerError(msg)

    def break_down(*_: Any) -> None:
        raise ValueError(PATIENT)

    monkeypatch.setattr(module, "read_topics", fail)
    monkeypatch.setattr(module, "read_histories", break_down)
    monkeypatch.setattr(module, "ask_status", lambda *_: released.wait(60))
    bundle = write_bundle(planted, tmp_path / "bundle.zip", within_s=3.0)
    released.set()
    assert set(bundle.missing) == {"topics.json", "status.json", "tables.json"}
    assert bundle.missing["topics.json"].startswith("BrokerError: refused for ~")
    assert bundle.missing["status.json"] == "not there within 3 s"
    assert bundle.missing["tables.json"] == "ValueError", "what is no error of ours may quote anything"
    texts = read(bundle)
    assert json.loads(texts["missing.json"]) == dict(bundle.missing)
    assert {"settings.json", "logs/spark.log"} <= set(texts)
    assert all(PATIENT not in text for text in texts.values())


def test_on_a_full_disk_half_a_bundle_does_not_stay(
    planted: StreamSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_write", write)
    with pytest.raises(SettingsError, match="No space left on device"):
        write_bundle(planted, tmp_path / "bundle.zip")
    assert not (tmp_path / "bundle.zip").exists()


def test_an_empty_state_folder_makes_a_bundle_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "examine", lambda *_, **__: [])
    monkeypatch.setattr(parts_module, "describe_status", lambda _: {})
    monkeypatch.setattr(parts_module, "read_topic_configs", lambda *_: {})
    bundle = write_bundle(StreamSettings(home=tmp_path / "none"), tmp_path / "bundle.zip")
    assert bundle.missing == {}
    assert json.loads(read(bundle)["tables.json"]) == {}
    assert not (tmp_path / "none").exists()


def test_only_the_end_of_a_long_log_is_read(planted: StreamSettings, tmp_path: Path) -> None:
    text = io.StringIO()
    for number in range(60_000):
        text.write(f"batch {number}: the stream goes on\n")
    (planted.home / "logs" / "spark.log").write_text(text.getvalue())
    lines = read(write_bundle(planted, tmp_path / "bundle.zip"))["logs/spark.log"].splitlines()
    assert len(lines) == 1000
    assert lines[-1] == "batch 59999: the stream goes on"


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", True),
        ("AWS_ACCESS_KEY_ID", True),
        ("AWS_SESSION_TOKEN", True),
        ("PGPASSWORD", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("HOME", False),
    ],
)
def test_what_the_environment_calls_a_secret_is_one(name: str, is_secret: bool) -> None:
    assert find_secrets(StreamSettings(), {name: "value-of-it"}) == ({"value-of-it"} if is_secret else set())
