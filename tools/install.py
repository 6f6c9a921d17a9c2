"""Installs a lock file and this project into the environment that runs it: ``python -m tools.install LOCK``.

Nothing is resolved: a lock is complete, and each file must have a hash that is in it.
"""

import subprocess
import sys
from pathlib import Path

from tools.uv import run_uv

_BUILD_LOCK = "locks/build.lock"
"""What installs and what builds: uv and setuptools."""


def install_uv() -> None:
    """Install uv, in the locked version, with the pip of this environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    subprocess.run([*command, "--requirement", _BUILD_LOCK], check=True)  # noqa: S603 - nothing comes from outside


def install(lock: str) -> None:
    """Install what is locked, then the project itself, editable."""
    into = ["pip", "install", "--quiet", "--python", sys.executable, "--no-deps", "--build-constraints", _BUILD_LOCK]
    run_uv(*into, "--require-hashes", "--requirement", lock)
    run_uv(*into, "--editable", ".")


def main() -> int:
    """Install the lock that the command line names; the working directory is the checkout."""
    (lock,) = sys.argv[1:]
    if not Path("pyproject.toml").is_file():
        sys.stderr.write("not installed: run it in the repository's root\n")
        return 1
    try:
        install_uv()
        install(lock)
    except subprocess.CalledProcessError as exc:
        sys.stderr.write(f"not installed: {Path(exc.cmd[0]).name} ended with exit code {exc.returncode}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
