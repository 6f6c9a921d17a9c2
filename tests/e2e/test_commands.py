"""The installed command, run as a user runs it."""

import json
import re
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import Shell
from tests.testimages import good_files
from xray.phantom import write_folder

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.spark]

_NOISE = re.compile(r"WARN|incubator|ivy|tensorflow|log4j|SLF4J|Traceback|Deprecat", re.IGNORECASE)


@pytest.mark.long
def test_a_day_at_the_command_line(shell: Shell, tmp_path: Path) -> None:
    manifest = write_folder(tmp_path / "images", 24, seed=3)
    assert shell.json("up")["started"] is True
    assert shell.json("up") == {**shell.json("up"), "started": False, "created_topics": []}

    trained = shell.json("train", "--data", str(manifest))
    assert {"accuracy", "f1", "weightedPrecision", "weightedRecall", "model"} <= set(trained)
    assert Path(trained["model"]).is_dir()
    assert [m["champion"] for m in shell.json("models", "list")] == [True]

    stream = shell.start("stream", "--json")
    try:
        assert stream.stdout is not None
        ready = json.loads(stream.stdout.readline())
        assert ready["event"] == "ready"
        published = shell.json("publish", str(manifest.parent))
        assert (published["delivered"], published["failed"]) == (24, {})
        watched = shell.run("watch", "--json", "--from-beginning", "--count", "24", "--timeout", "60")
        assert len({json.loads(line)["event_id"] for line in watched.stdout.splitlines()}) == 24
        stream.send_signal(signal.SIGTERM)
        stdout, stderr = stream.communicate(timeout=90)
    finally:
        stream.kill()
    assert stream.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1]) == {"event": "ended"}
    assert not _NOISE.search(stderr), stderr

    # What the archive beside the stream had not written when that was ended.
    assert shell.json("archive", "--available-now") == {"event": "ended"}
    account = shell.json("audit")
    assert (account["balanced"], account["predicted"], account["repeated"]) == (True, 24, 0)
    assert account["tables"]["predictions"]["rows"] == 24
    assert shell.json("status")["topics"]["xray.images"]["messages"] == 24
    assert shell.json("down") == {"stopped": True}
    assert shell.run("status").returncode == 1


def test_demo_accounts_for_everything(shell: Shell) -> None:
    done = shell.run("demo", "--count", "24", "--json", timeout_s=280)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["published"], summary["predicted"], summary["dead_letters"]) == (29, 24, 5)
    assert summary["unaccounted"] == 0
    assert summary["images_per_second"] > 0
    assert 0 < summary["latency_seconds"]["p50"] <= summary["latency_seconds"]["p95"]
    assert 0 <= summary["accuracy"] <= 1
    assert not _NOISE.search(done.stderr), done.stderr


@pytest.mark.parametrize(
    ("environ", "arguments", "code", "said"),
    [
        ({"PATH": "", "JAVA_HOME": ""}, ["up"], 1, "Java 17 or newer is needed and none was found"),
        ({"XRAY_KAFKA__PARTITION": "2"}, ["status"], 2, "Did you mean XRAY_KAFKA__PARTITIONS?"),
        ({"XRAY_KAFKA__PARTITIONS": "none"}, ["status"], 2, "XRAY_KAFKA__PARTITIONS: "),
        ({"XRAY_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, ["status"], 2, "also needs sasl_mechanism"),
        (
            {"XRAY_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"},
            ["publish", "IMAGE"],
            1,
            "Start the local one with 'xray up'",
        ),
        ({"XRAY_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}, ["deadletters", "list"], 1, "cannot reach Kafka"),
        ({}, ["audit"], 3, "no stream has run from this state folder"),
        ({"XRAY_KAFKA__BOOTSTRAP_SERVERS": "elsewhere:9092"}, ["down"], 2, "on this machine only"),
        ({}, ["stream"], 1, "xray train --data"),
        ({}, ["publish", "no-such-folder"], 1, "no-such-folder: no such file"),
        ({}, ["train", "--data", "no-such-folder"], 1, "no-such-folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    shell: Shell, tmp_path: Path, environ: dict[str, str], arguments: list[str], code: int, said: str
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(good_files()["gray.png"])
    done = Shell({**shell.environ, **environ}).run(*[str(image) if a == "IMAGE" else a for a in arguments])
    text = " ".join(done.stderr.split())
    assert done.returncode == code, done.stderr
    assert said in text
    assert text.count("error: ") == 1
    assert "Traceback" not in text
