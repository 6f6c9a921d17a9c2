"""A month with confirmed findings: a retraining that is refused, one that is promoted, a stream that follows."""

import csv
import hashlib
import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import Shell
from training.lifecycle.refit import choose_held_out
from xray.phantom import FINDINGS, write_folder

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.spark, pytest.mark.train, pytest.mark.long]

_N_IMAGES = 160
_ARCHIVE_DEADLINE_S = 60


@pytest.mark.timeout(400)
def test_confirmed_findings_become_the_model_in_service(shell: Shell, tmp_path: Path) -> None:
    seen = write_folder(tmp_path / "seen", 24, seed=3)
    month = write_folder(tmp_path / "month", _N_IMAGES, seed=4)
    later = write_folder(tmp_path / "later", 8, seed=5)
    shell.json("up")
    old = Path(shell.json("train", "--data", str(seen), "--no-track")["model"]).name

    stream = shell.start("stream", "--json")
    try:
        assert stream.stdout is not None
        assert json.loads(stream.stdout.readline())["event"] == "ready"
        shell.json("publish", str(month.parent))
        assert {one["model"]["version"] for one in _watch(shell, _N_IMAGES)} == {old}
        _wait_until_archived(shell, _N_IMAGES)

        # What was learned is wrong, what it is held against is right: it is refused, and what serves stays.
        findings = _read_findings(month)
        mistaken = _turn_outside_held_out(findings)
        assert shell.json("label", str(_write_labels(tmp_path / "a.csv", mistaken)))["added"] == _N_IMAGES
        refused = shell.run("retrain", "--promote", "--json")
        assert refused.returncode == 1
        answer = json.loads(refused.stdout)
        assert (answer["allowed"], answer["promoted"]) == (False, False)
        assert answer["comparison"]["all"]["auroc"]["new"] < 0.5
        assert "refused" in refused.stderr
        assert _champion(shell) == old

        corrected = shell.json("label", str(_write_labels(tmp_path / "b.csv", findings)))
        assert corrected["changed"] == sum(mistaken[digest] != label for digest, label in findings.items())
        new = shell.json("retrain", "--promote")["version"]
        assert _champion(shell) == new != old

        # The stream is idle, so the next image begins the next micro-batch.
        shell.json("publish", str(later.parent))
        assert {one["model"]["version"] for one in _watch(shell, _N_IMAGES + 8)[_N_IMAGES:]} == {new}

        assert shell.json("models", "rollback")["version"] == old
        stream.send_signal(signal.SIGTERM)
        _, stderr = stream.communicate(timeout=90)
    finally:
        stream.kill()
    assert stream.returncode == 0, stderr
    account = shell.json("audit")
    assert (account["balanced"], account["predicted"], account["repeated"]) == (True, _N_IMAGES + 8, 0)


def _watch(shell: Shell, count: int) -> list[dict[str, Any]]:
    """Give so many predictions, oldest first: `xray watch` goes by partition where it begins with the oldest."""
    done = shell.run("watch", "--json", "--from-beginning", "--count", str(count), "--timeout", "90")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == count, done.stderr
    return sorted(found, key=lambda one: one["model"]["version"])


def _wait_until_archived(shell: Shell, count: int) -> None:
    deadline = time.monotonic() + _ARCHIVE_DEADLINE_S
    while shell.json("tables", "show")["tables"]["features"]["rows"] < count:
        assert time.monotonic() < deadline, f"not all {count} feature vectors are in the table"


def _champion(shell: Shell) -> str:
    [version] = [one["version"] for one in shell.json("models", "list") if one["champion"]]
    return str(version)


def _read_findings(manifest: Path) -> dict[str, str]:
    """Give what is on each image, by the SHA-256 of its bytes."""
    with manifest.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {hashlib.sha256((manifest.parent / row["file"]).read_bytes()).hexdigest(): row["finding"] for row in rows}


def _turn_outside_held_out(findings: Mapping[str, str]) -> dict[str, str]:
    held_out = choose_held_out(np.array([f"p-{digest}" for digest in findings]))
    other = dict(zip(FINDINGS, reversed(FINDINGS), strict=True))
    return {
        digest: label if held else other[label]
        for (digest, label), held in zip(findings.items(), held_out, strict=True)
    }


def _write_labels(path: Path, findings: Mapping[str, str]) -> Path:
    lines = ["sha256,label,patient_id", *(f"{digest},{label},p-{digest}" for digest, label in findings.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
