"""What is installed has a hash that is locked."""

import subprocess
from typing import Any

import pytest

from tools import install


def test_every_lock_is_installed_with_its_hashes_and_nothing_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(install, "run_uv", lambda *arguments: asked.append(list(arguments)))
    monkeypatch.setattr("sys.argv", ["install", "locks/train.lock"])
    assert install.main() == 0
    locks = {command[command.index("--requirement") + 1]: command for command in asked if "--requirement" in command}
    assert locks.keys() == {"locks/build.lock", "locks/train.lock"}
    assert all("--require-hashes" in command for command in locks.values())
    # The project itself, whose build takes setuptools of the lock.
    (own,) = [command for command in asked if "--editable" in command]
    for command in (locks["locks/train.lock"], own):
        assert "--no-deps" in command
        assert command[command.index("--build-constraints") + 1] == "locks/build.lock"
