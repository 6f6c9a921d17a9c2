"""Hides what is nobody's business: by what may be shown, not by what may not.

A log line can hold anything that a library quotes. So of a line those words are kept that are words of the programs
themselves, and numbers that say of what they are; all else becomes a pseudonym, the same one for the same text, so that
a reader can follow an image through the lines. The key of the pseudonyms is made for each bundle, and kept nowhere.
"""

import gzip
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

MASK = "**********"
_PACKAGES = ("streaming", "schemas", "sparkdl")
"""Not those that make up patients, whose words are names."""
_TIME = re.compile(r"\[?\d{2,4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d{1,6})?Z?\]?(?=[\s,]|$)")
_TOKEN = re.compile(r"[^\s\"'(),;:=\[\]{}<>|`!?]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_PARTS = re.compile(r"[._$/-]+")
_OWN_FILE = re.compile(r"(?:.*/)?(?P<file>(?:streaming|schemas|sparkdl|training|xray)(?:/[A-Za-z_]+)+\.py)")
"""In a trace; the folders that it was installed in are left out."""
_SOURCE_FILES = (".py", ".scala", ".java")
"""What a number is behind that is a line's."""
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,6})?")
_ORIGIN = re.compile(r"(?:(?P<topic>[A-Za-z._-]+)-)?\d{1,9}@\d{1,18}")
"""``xray.images-3@1024``: topic, partition, offset."""
_UNITS = frozenset(
    (
        "s ms min MB GB KB kB B bytes rows records images seconds retries attempts partitions times % "
        "accepted rejected files"
    ).split()
)
_COUNTED = frozenset(
    "line partition offset version batch batchId stage task TID code port attempt exit status broker".split()
)
"""Words that say what the number behind them is."""
_JAVA = re.compile(r"(?:org\.apache|java|javax|scala|py4j|sun|jdk|io\.delta|io\.netty)(?:\.[A-Za-z_$][A-Za-z_$]*)+")
_MORE = (
    "a an the of at by in on to for from with and or not no is was were be been has have had this that it its "
    "as if TRACE DEBUG INFO WARN WARNING ERROR FATAL CRITICAL Traceback most recent call last File Caused "
    "cause Exception Error Executor executor Driver driver Broker Task Stage Job Lost failed failure running "
    "started stopped stopping starting closed closing connection Connection refused reset timeout Timeout "
    "timed out host node Node leader follower replica log Log segment memory Memory heap space Space left "
    "device disk full file directory thread pool shutdown Shutting down could cannot unable Unable Failed "
    "while during after before because reason retry retrying session"
)
_SAFE_LABELS = frozenset(
    (
        "le quantile query reason stage state result door kind ok table topic partition why flag label "
        "implementation major minor patchlevel generation version model name sha256"
    ).split()
)
"""Labels of series whose values the programs make, or are names of models and topics."""
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")
_SHORT = 4


@cache
def _vocabulary() -> frozenset[str]:
    """Read every word of the programs' own sources, and every name of a Java class that they load."""
    words = set(_MORE.split())
    for package in _PACKAGES:
        for text in _read_sources(files(package)):
            words.update(_WORD.findall(text))
    classes = gzip.decompress((files("streaming.run") / "classes.lst.gz").read_bytes()).decode()
    words.update(_WORD.findall(classes))
    return frozenset(words)


def _read_sources(folder: Traversable) -> Iterable[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _read_sources(entry)
        elif entry.name.endswith(".py"):
            yield entry.read_text(encoding="utf-8")


class Masking:
    """Hides secrets and whatever may be a patient's, with pseudonyms of its own.

    Parameters
    ----------
    known_secrets : iterable of str
        Values that must not be anywhere, whatever says them.
    """

    def __init__(self, known_secrets: Iterable[str] = ()) -> None:
        self._key = secrets.token_bytes(32)
        # The longest first: one may be a part of another.
        self._secrets = sorted({one for one in known_secrets if one}, key=len, reverse=True)

    def mask_line(self, line: str) -> str:
        """Give a line of a log with its words, its time, and pseudonyms for all else."""
        line = self.mask_secrets(line)
        time = _TIME.match(line)
        start = time.end() if time else 0
        shown, before = [line[:start]], ""
        end = start
        for match in _TOKEN.finditer(line, start):
            shown.append(line[end : match.start()])
            after = _TOKEN.search(line, match.end())
            shown.append(self._mask_token(match[0], before, after[0] if after else ""))
            before, end = match[0], match.end()
        return "".join([*shown, line[end:]])

    def _mask_token(self, token: str, before: str, after: str) -> str:
        bare = token.rstrip(".")
        if token == MASK or not any(char.isalnum() for char in bare) or _may_be_shown(bare, before, after.rstrip(".")):
            return token
        own = _OWN_FILE.fullmatch(bare)
        shown = own["file"] if own is not None and _are_words(own["file"]) else ""
        return (shown or self.pseudonymize(bare)) + token[len(bare) :]

    def pseudonymize(self, text: str) -> str:
        """Give the pseudonym of a text: eight hexadecimal digits behind a tilde."""
        return "~" + hmac.digest(self._key, text.encode(errors="replace"), "sha256").hex()[:8]

    def mask_secrets(self, text: str) -> str:
        """Take the known secrets and every user and password of a URL out of a text."""
        for secret in self._secrets:
            if len(secret) >= _SHORT:
                text = text.replace(secret, MASK)
            else:  # within other words it is no secret, and would make nonsense of all
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
        return _USER_INFO.sub(f"{MASK}@", text)

    def mask_values(self, value: Any) -> Any:
        """Take secrets out of every text of a JSON value."""
        if isinstance(value, str):
            return self.mask_secrets(value)
        if isinstance(value, Mapping):
            return {self.mask_secrets(str(name)): self.mask_values(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.mask_values(one) for one in value]
        return value

    def mask_texts(self, value: Any) -> Any:
        """Mask every text of a JSON value as a log line; names stay."""
        if isinstance(value, str):
            return self.mask_line(value)
        if isinstance(value, Mapping):
            return {str(name): self.mask_texts(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.mask_texts(one) for one in value]
        return value

    def mask_labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Give a series' labels; values that people choose, such as names of devices, are pseudonyms."""
        return {name: text if name in _SAFE_LABELS else self.pseudonymize(text) for name, text in labels.items()}


def _may_be_shown(token: str, before: str, after: str) -> bool:
    if _is_origin(token) or _JAVA.fullmatch(token) or ("/" not in token and _are_words(token)):
        return True  # a path is one name, even where each of its parts is a word
    if token in _UNITS:
        return _NUMBER.fullmatch(before) is not None
    number = _NUMBER.match(token)
    if number is None:
        return False
    unit = token[number.end() :]
    is_told = before in _COUNTED or before.endswith(_SOURCE_FILES) or after in _UNITS or len(token) == 1
    return unit in _UNITS or (not unit and is_told)


def _is_origin(token: str) -> bool:
    match = _ORIGIN.fullmatch(token)
    return match is not None and _are_words(match["topic"] or "")


def _are_words(token: str) -> bool:
    return all(part in _vocabulary() for part in _PARTS.split(token) if part)
