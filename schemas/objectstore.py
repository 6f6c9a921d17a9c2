"""Tables in an object store of the S3 kind: what is asked of its client, and what its failures mean.

Where the store is and what opens it, the client reads from the environment itself: AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID and the others that every program for S3 knows.
"""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

_RETRY_S = 45
"""Until a request is given up; by default 180 s. Whoever waits for it tries again by itself, or is a person."""

_TREE = re.compile(r"(?:\x1b\[[0-9;]*m|[\s↳])+")
_REQUEST = re.compile(r"Error performing [A-Z]+ https?://|conditional put is disabled")
_STATUS = re.compile(r"[1-5]\d\d [A-Z][A-Za-z ]+")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")

_MEANINGS = (
    ("NoSuchBucket", "there is no such bucket: look at XRAY_ARCHIVE__FOLDER"),
    ("URL scheme is not allowed", "it is reached without TLS: AWS_ALLOW_HTTP=true allows that"),
    (r"https?://169\.254\.", "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    (
        "InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|UnrecognizedClient",
        "the credentials are wrong: look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
    ),
    ("RequestTimeTooSkewed", "the clock of this machine is wrong"),
    ("AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocation|301 Moved", "look at AWS_REGION"),
    ("40[13] [A-Z]|AccessDenied", "it is not allowed: look at what AWS_ACCESS_KEY_ID may do in this bucket"),
    (
        "conditional put is disabled|501 Not Implemented",
        "two writers would overwrite each other: this store, or AWS_CONDITIONAL_PUT, does without the condition "
        "If-None-Match, and tables cannot be there",
    ),
    ("error sending request", "it does not answer: look at AWS_ENDPOINT_URL, and whether it runs"),
)
"""What to look at, by what the client says; the first that fits."""


def local_folder(folder: str) -> Path | None:
    """Give the folder on a disk that a path or URI names; None where it is elsewhere."""
    place = urlsplit(folder)
    if place.scheme == "file":
        return Path(unquote(place.path))
    return None if "://" in folder else Path(folder)


def store_options(place: str) -> dict[str, str] | None:
    """Give what the client of an object store is told beside its environment; None for a folder on a disk.

    Parameters
    ----------
    place : str
        Path or URI of a table.
    """
    return None if local_folder(place) is not None else {"retry_timeout": f"{_RETRY_S}s"}


def describe_failure(exc: Exception) -> str:
    """Say in one line what failed, and in an object store what to look at.

    Parameters
    ----------
    exc : Exception
        Of Delta, of the file system, or of the client of an object store, which says much: the request, and the store's
        answer, in which an access key may be named. Of all that a status and a code are kept.
    """
    text = str(exc)
    lines = [line for line in (_TREE.sub(" ", line).strip() for line in text.splitlines()) if line]
    if not lines:
        return type(exc).__name__
    if not _REQUEST.search(text):
        return lines[0]
    meaning = next((meaning for said, meaning in _MEANINGS if re.search(said, text)), None)
    status = next((line for line in lines if _STATUS.fullmatch(line)), None)
    code = _CODE.search(text)
    if status is not None:
        said = f"{status}, {code[1]}" if code else status
    else:
        said = lines[0] if "conditional put" in lines[0] else lines[-1]
    return f"the object store: {said}" + (f". Here {meaning}" if meaning else "")
