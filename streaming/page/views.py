"""What templates need beside the data: numbers, times and scores as people read them, and the templates themselves."""

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from schemas.envelope import DISCLAIMER
from streaming.page.people import Role
from streaming.page.pictures.picture import Picture

_KILO = 1000.0
_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86_400.0
_PACKAGE = "streaming.page"
_NONE = "\N{EN DASH}"

REASONS = {
    "empty_payload": "The record has no bytes.",
    "tombstone": "The record has a key and no value.",
    "unsupported_format": "The bytes are of no format that is read.",
    "truncated_image": "The file ends before its image does.",
}
"""In a sentence, where the code alone says little; the error says the rest."""


class Views:
    """Makes HTML of templates; each is compiled once."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=PackageLoader(_PACKAGE, "templates"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "score": write_score,
            "seconds": write_seconds,
            "size": write_size,
            "number": write_number,
            "clock": write_clock,
            "moment": write_moment,
            "device": write_device,
            "data": write_data,
            "sentence": write_sentence,
            "reason": lambda code: REASONS.get(code, ""),
            "query": lambda pairs: urlencode({k: v for k, v in pairs.items() if v not in {None, ""}}),
        }
        self._environment.globals |= {
            "disclaimer": DISCLAIMER,
            "asset": _Assets().address,
            "percent": write_percent,
            "Role": Role,
        }
        for name in self._environment.list_templates():  # at the start: nobody's first view waits for it
            self._environment.get_template(name)

    def render(self, name: str, data: Mapping[str, Any]) -> str:
        """Make the HTML of a template.

        Parameters
        ----------
        name : str
            File below ``templates``.
        data : Mapping
            What it needs; a missing name is an error.
        """
        return self._environment.get_template(name).render(data)


class _Assets:
    """Addresses of assets, each with a part of its content's hash: a browser keeps it until it changes."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}

    def address(self, name: str) -> str:
        if name not in self._addresses:
            content = files(_PACKAGE).joinpath("assets", *name.split("/")).read_bytes()
            self._addresses[name] = f"/assets/{name}?v={hashlib.sha256(content).hexdigest()[:12]}"
        return self._addresses[name]


def write_score(value: float | None) -> str:
    """Write a probability with three digits; one that is not 0 or 1 is never shown as one of them."""
    if value is None:
        return _NONE
    if 0 < value < 0.0005:  # noqa: PLR2004 - what three digits would show as 0.000
        return "<0.001"
    if 0.9995 <= value < 1:  # noqa: PLR2004
        return ">0.999"
    return f"{value:.3f}"


def write_percent(value: float) -> str:
    """Write a part of 1 as SVG wants a length."""
    return f"{100 * min(max(value, 0.0), 1.0):.2f}%"


def write_seconds(value: float | None) -> str:
    """Write a duration with three digits that count."""
    if value is None:
        return _NONE
    if value < 1:
        return f"{1000 * value:.0f} ms" if value >= 0.001 else f"{1000 * value:.1g} ms"  # noqa: PLR2004
    if value < _MINUTE_S:
        return f"{value:.3g} s"
    if value < _HOUR_S:
        return f"{value / _MINUTE_S:.0f} min"
    return f"{value / _HOUR_S:.0f} h" if value < 2 * _DAY_S else f"{value / _DAY_S:.0f} days"


def write_size(value: float | None) -> str:
    """Write a number of bytes, in powers of 1000."""
    if value is None:
        return _NONE
    for unit in ("B", "kB", "MB"):
        if value < _KILO:
            return f"{value:.3g} {unit}"
        value /= _KILO
    return f"{value:.3g} GB"


def write_number(value: float | None, digits: int = 1) -> str:
    """Write a count with spaces between thousands, another number with a few digits."""
    if value is None:
        return _NONE
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.{digits}f}"


def write_device(source: str | None) -> str:
    """Write the end of a device's name, where there is little room: the end tells devices apart."""
    parts = [part for part in (source or "").split("/") if part]
    return "/".join(parts[-2:]) if parts else "no device named"


def write_sentence(text: str) -> str:
    """Write some words as a sentence."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}." if text else ""


def write_data(picture: Picture) -> str:
    """Write a small picture as an address that holds it."""
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.content).decode()}"


def write_clock(value: float | None) -> str:
    """Write a moment as a clock shows it, UTC; a script in the browser makes it that of the browser's own zone."""
    if value is None:
        return _NONE
    at = datetime.fromtimestamp(value, UTC)
    iso = at.isoformat(timespec="milliseconds")
    return Markup('<time datetime="{}" title="{} UTC" data-clock>{}</time>').format(
        iso, iso[:-6].replace("T", " "), at.strftime("%H:%M:%S")
    )


def write_moment(value: float | None) -> str:
    """Write a day and a time, UTC; a script in the browser makes it that of the browser's own zone."""
    if value is None:
        return _NONE
    at = datetime.fromtimestamp(value, UTC)
    return Markup('<time datetime="{}" data-moment>{}</time>').format(
        at.isoformat(timespec="milliseconds"), at.strftime("%Y-%m-%d %H:%M:%S")
    )
