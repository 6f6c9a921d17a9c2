"""What goes into a bundle, each part by itself; what may be a patient's or a secret is left out or hidden here."""

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from schemas.deltatable import failing_as, open_table
from schemas.documents import load_tables
from schemas.errors import DependencyError, JobError
from schemas.extras import PACKAGE
from sparkdl.spark.java import describe_java
from streaming.kafka.topicchecks import read_topic_configs
from streaming.kafka.topics import label_topics, receipt_topics, wanted_topics
from streaming.scraping import STREAM, Answer, ask_part, find_addresses
from streaming.settings import StreamSettings, find_sources
from xray.doctor.examination import examine, list_checks
from xray.status import describe_status
from xray.support.masking import Masking

_SECRET_VARIABLES = re.compile(
    r"(?:SECRET|PASSWORD|PASSWD|TOKEN|ACCESS_KEY|ACCESS_KEY_ID|CREDENTIALS|SAS_KEY|API_KEY)$", re.IGNORECASE
)
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_TAIL_BYTES = 512 * 1024
_LINES = 1000
_LINE_CHARS = 2000
_COMMITS = 200


def find_secrets(settings: StreamSettings, environ: Mapping[str, str] | None = None) -> set[str]:
    """Find the values that must be in no part: secrets among the settings, and whatever the environment calls one."""
    variables = os.environ if environ is None else environ
    found = {value for name, value in variables.items() if _SECRET_VARIABLES.search(name)}
    for _, section in settings:
        values = [value for _, value in section] if hasattr(section, "model_fields_set") else [section]
        found |= {value.get_secret_value() for value in values if isinstance(value, SecretStr)}
    return {value for value in found if value}


def list_versions() -> dict[str, Any]:
    """List the versions of this, of Python, Java, the system, and of every package that this names."""
    try:
        java = describe_java().splitlines()
    except (DependencyError, OSError) as exc:
        java = [type(exc).__name__]
    return {
        PACKAGE: _version(PACKAGE),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
        "java": java,
        "packages": {name: _version(name) for name in sorted(_list_requirements())},
    }


def _list_requirements() -> set[str]:
    try:
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:
        return set()
    return {match[0] for line in lines if (match := _NAME.match(line))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def list_settings(settings: StreamSettings, masking: Masking) -> dict[str, Any]:
    """List every setting with its value, secrets masked, and where that is from."""
    values = masking.mask_values(_flatten(settings.model_dump(mode="json")))
    return {name: {"value": values.get(name), "from": source} for name, source in find_sources().items()}


def _flatten(values: Mapping[str, Any], prefix: str = "XRAY_") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = prefix + name.upper()
        flat |= _flatten(value, f"{key}__") if isinstance(value, dict) else {key: value}
    return flat


def ask_doctor(settings: StreamSettings, masking: Masking, within_s: float) -> list[Any]:
    """Give what ``xray doctor`` finds."""
    findings = examine(settings, list_checks(), within_s=within_s)
    return [masking.mask_values(finding.to_dict()) for finding in findings]


def ask_status(settings: StreamSettings, masking: Masking) -> Any:
    """Give what ``xray status --json`` does."""
    return masking.mask_values(describe_status(settings))


def read_metrics(settings: StreamSettings, masking: Masking) -> dict[str, Any]:
    """Ask every part for its metrics and its health."""
    return {
        name: _describe_answer(ask_part(address, has_health=name != STREAM), masking)
        for name, address in find_addresses(settings).items()
    }


def _describe_answer(answer: Answer, masking: Masking) -> dict[str, Any]:
    series = {
        name: [{"labels": masking.mask_labels(one.labels), "value": one.value} for one in samples]
        for name, samples in answer.series.items()
    }
    why, health = masking.mask_line(answer.why), masking.mask_texts(answer.health)
    return {"state": answer.state.value, "why": why, "health": health, "series": series}


def read_topics(settings: StreamSettings, masking: Masking) -> Any:
    """Read the topics' configurations."""
    kafka = settings.kafka
    names = [*wanted_topics(kafka), *label_topics(kafka), *receipt_topics(kafka)]
    return masking.mask_values(read_topic_configs(kafka, names))


def read_histories(settings: StreamSettings, masking: Masking) -> dict[str, Any]:
    """Read when each table was changed by what, and how much: no row, and no condition that names one."""
    found: dict[str, Any] = {}
    for name in load_tables():
        place = f"{settings.tables_folder}/{name}"
        try:
            table = open_table(place)
            if table is not None:
                with failing_as(f"the history of {place} cannot be read"):
                    commits = [_describe_commit(commit, masking) for commit in table.history(_COMMITS)]
                found[name] = {"version": table.version(), "commits": commits}
        except JobError as exc:
            found[name] = {"error": masking.mask_line(str(exc))}
    return found


def _describe_commit(commit: Mapping[str, Any], masking: Masking) -> dict[str, Any]:
    metrics = commit.get("operationMetrics") or {}
    numbers = {name: value for name, value in metrics.items() if _is_number(value)}
    at = commit.get("timestamp")
    return {
        "version": commit.get("version"),
        "at": datetime.fromtimestamp(at / 1000, UTC).isoformat() if isinstance(at, int) else None,
        "operation": masking.mask_line(str(commit.get("operation"))),
        "metrics": numbers,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and value.isdecimal())


def read_logs(settings: StreamSettings, masking: Masking) -> Iterator[tuple[str, str]]:
    """Give the last lines of each log by its file's name, everything hidden in them that may be a patient's."""
    paths = [settings.logs_folder / name for name in ("spark.log", "spark-console.log")]
    for path in (*paths, settings.home / "kafka" / "kafka.log"):
        try:
            lines = _read_tail(path)
        except OSError:  # a program that never ran here has none
            continue
        yield path.name, "".join(f"{masking.mask_line(line[:_LINE_CHARS])}\n" for line in lines)


def _read_tail(path: Path) -> list[str]:
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        start = max(0, size - _TAIL_BYTES)
        stream.seek(start)
        lines = stream.read(_TAIL_BYTES).decode("utf-8", errors="replace").splitlines()
    return lines[1 if start else 0 :][-_LINES:]  # the first one may have lost its beginning


def to_text(value: Any) -> str:
    """Write a JSON value for people as well."""
    return json.dumps(value, indent=1, default=str, ensure_ascii=False) + "\n"
