"""Runs uv with pip's configuration: ``python -m tools.uv pip compile ...``.

uv installs in seconds where pip takes minutes, but does not read pip's configuration, so it is told of it: on many
machines only pip knows where packages are to be had.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}
"""uv's name of each of pip's settings that it needs."""

_PLACES = ("global", "user", "site", "install", ":env:")
"""Where pip finds settings; a later one wins."""


def read_pip_settings(listing: str) -> dict[str, str]:
    """Translate pip's settings into uv's environment variables.

    Parameters
    ----------
    listing : str
        What ``pip config list`` prints: one setting a line, ``place.name='value'``.

    Returns
    -------
    dict of str to str
        Values by the name of the variable; settings that uv has no use for are left out.
    """
    found: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        place, _, setting = key.strip().partition(".")
        name = _NAMES.get(setting)
        if name is None or place not in _PLACES:
            continue
        rank = _PLACES.index(place)
        if name not in found or rank >= found[name][0]:
            separator = "," if name == "UV_FIND_LINKS" else " "
            found[name] = (rank, separator.join(str(ast.literal_eval(value)).split()))
    return {name: value for name, (_, value) in found.items() if value}


def run_uv(*arguments: str) -> None:
    """Run this environment's uv with pip's settings; what is set for uv itself comes first.

    Raises
    ------
    subprocess.CalledProcessError
        It failed, and has said why.
    """
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    environment = {**read_pip_settings(listing), **os.environ}
    uv = str(Path(sys.executable).parent / "uv")
    subprocess.run([uv, *arguments], env=environment, check=True)  # noqa: S603 - what this program's user asked for


def main() -> int:
    """Run uv with the command line's arguments."""
    try:
        run_uv(*sys.argv[1:])
    except subprocess.CalledProcessError as exc:
        return exc.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
