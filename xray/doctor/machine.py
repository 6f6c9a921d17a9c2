"""Java, the extras and the limits of this machine."""

import resource
import subprocess
from collections.abc import Iterator
from typing import get_args

from schemas.errors import DependencyError
from schemas.extras import Extra, check_extra
from sparkdl.spark.java import describe_java
from streaming.run.jars import SPARK_JARS
from streaming.settings import StreamSettings
from xray.doctor.finding import Finding, Verdict

_FEW_FILES = 4096
"""Open files with which there is room: a stream has some 500, and one more for each connection and table file."""
_TOO_FEW_FILES = 1024


def check_java(_: StreamSettings) -> Iterator[Finding]:
    """Find the Java that Spark and the local broker run on."""
    try:
        told = describe_java().splitlines()
    except DependencyError as exc:
        found, _dot, advice = str(exc).partition(". ")
        yield Finding("java", Verdict.FAULT, found, advice or "Install Java 17 or newer.")
    except (OSError, subprocess.SubprocessError) as exc:
        yield Finding("java", Verdict.FAULT, f"java does not start: {exc}", "Install Java anew, or set JAVA_HOME.")
    else:
        yield Finding("java", Verdict.OK, told[0] if told else "there, and says no version")


def check_jars(settings: StreamSettings) -> Iterator[Finding]:
    """Tell whether the connector's jars are there, or are still to be fetched."""
    folder = settings.jars_folder / SPARK_JARS.name
    if any(folder.glob("*.jar")):
        yield Finding("jars", Verdict.OK, f"{folder} has Spark's connector")
    elif folder.is_dir():
        advice = "Remove that folder, then run 'xray prepare'."
        yield Finding("jars", Verdict.FAULT, f"{folder} has no jar in it", advice)
    else:
        advice = "Run 'xray prepare' where Maven Central can be reached; otherwise the first start fetches them."
        yield Finding("jars", Verdict.WARNING, f"{folder} is not there yet", advice)


def check_extras(_: StreamSettings) -> Iterator[Finding]:
    """Tell which extras are installed; one that is not is no fault, since its commands say so."""
    for extra in get_args(Extra):
        try:
            check_extra(extra, f"what the extra {extra} is for")
        except DependencyError as exc:
            found, _colon, line = str(exc).partition(": ")
            yield Finding("extras", Verdict.OK, f"not installed: {found}", f"Only if you use it: {line}")
        else:
            yield Finding("extras", Verdict.OK, f"{extra} is installed")


def check_limits(_: StreamSettings) -> Iterator[Finding]:
    """Look at how many files this user's processes may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _FEW_FILES:
        yield Finding("limits", Verdict.OK, f"a process may have {_count(soft)} files open")
        return
    verdict = Verdict.FAULT if soft < _TOO_FEW_FILES else Verdict.WARNING
    raised = f"ulimit -n {_FEW_FILES}" if hard == resource.RLIM_INFINITY or hard >= _FEW_FILES else "as root"
    advice = f"Raise it: {raised}, LimitNOFILE= in a systemd unit, or ulimits in compose."
    yield Finding("limits", verdict, f"a process may have {_count(soft)} files open, wanted {_FEW_FILES}", advice)


def _count(limit: int) -> str:
    return "any number of" if limit == resource.RLIM_INFINITY else str(limit)
