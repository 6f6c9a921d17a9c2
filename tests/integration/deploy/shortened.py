"""The rules of Prometheus as a run of minutes can meet them: the same expressions, with shorter times.

What is changed, and nothing else:

- a range (``[15m]``) and an ``offset`` last a sixtieth, five seconds at least: five scrapes. Of restarts that is too
  short for a program that takes seconds to start, so theirs last 90 s;
- ``for`` is two seconds, and a group is evaluated every second;
- what is compared with an age, e.g. ``time() - x > 1800``, is compared with 15 s; and five days, which one rule has
  both as an age and as a range, are 15 s in both places;
- half of the spool is half of the one that the test gives to the gateway.

Shares, counts and objectives stay as they are.
"""

import re
from pathlib import Path
from typing import Any

import yaml

LONGEST_AGE_S = 15
_RESTARTS = ("[30m]", "[90s]")
_FIVE_DAYS = ("[5d]", f"[{LONGEST_AGE_S}s]")
_AGES = ("> 120", "> 300", "> 900", "> 1800", "> 259200", "> 432000", "> bool 300")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SHORTEST_S = 5
_FACTOR = 60
_SPOOL = "> 5e9"


def shorten_rules(file: Path, *, spool_bytes: int) -> dict[str, Any]:
    """Read a file of rules, and give it with shorter times."""
    document: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    for group in document["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            text = rule["expr"].replace(*_FIVE_DAYS)
            if rule.get("alert") == "XrayStreamRestarting":
                text = text.replace(*_RESTARTS)
            text = re.sub(r"(\[|offset )(\d+)([mhd])\b", lambda m: f"{m[1]}{_shorten(m[2], m[3])}s", text)
            for age in _AGES:
                text = re.sub(rf"{age}\b", f"{age.rpartition(' ')[0]} {LONGEST_AGE_S}", text)
            rule["expr"] = text.replace(_SPOOL, f"> {spool_bytes / 2:g}")
            if "for" in rule:
                rule["for"] = "2s"
    return document


def _shorten(count: str, unit: str) -> int:
    return max(_SHORTEST_S, int(count) * _SECONDS[unit] // _FACTOR)
