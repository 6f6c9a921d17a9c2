"""All checks together: deadlines, failures, and what is left out without Kafka."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from streaming.settings import StreamSettings
from tests.paths import ROOT
from xray.doctor.examination import examine, list_checks
from xray.doctor.finding import Finding, Verdict


def well(name: str) -> list[Finding]:
    return [Finding(name, Verdict.OK, "well")]


def test_findings_come_in_the_order_of_the_checks(tmp_path: Path) -> None:
    def late(_: StreamSettings) -> Iterator[Finding]:
        time.sleep(0.05)
        yield from well("late")

    found = examine(StreamSettings(home=tmp_path), {"late": late, "soon": lambda _: well("soon")})
    assert [one.check for one in found] == ["late", "soon"]


def test_a_check_that_hangs_is_a_fault_and_keeps_nobody(tmp_path: Path) -> None:
    released = threading.Event()

    def hang(_: StreamSettings) -> Iterator[Finding]:
        yield Finding("hangs", Verdict.OK, "begun")
        released.wait(60)

    began = time.monotonic()
    checks = {"hangs": hang, "also": hang, "well": lambda _: well("well")}
    found = examine(StreamSettings(home=tmp_path), checks, within_s=0.2)
    assert time.monotonic() - began < 5, "all checks have the same time, not one after the other"
    released.set()
    assert [(one.check, one.verdict) for one in found] == [
        ("hangs", Verdict.FAULT),
        ("also", Verdict.FAULT),
        ("well", Verdict.OK),
    ]
    assert "not checked within 0.2 s" in found[0].found


def test_a_check_that_fails_is_a_fault_without_its_words(tmp_path: Path) -> None:
    def fail(_: StreamSettings) -> NoReturn:
        msg = "DOE^JANE"
        raise ValueError(msg)

    [failed, other] = examine(StreamSettings(home=tmp_path), {"fails": fail, "well": lambda _: well("well")})
    assert (failed.check, failed.verdict, failed.found) == ("fails", Verdict.FAULT, "not checked: ValueError")
    assert other.verdict is Verdict.OK


def test_without_kafka_what_asks_it_too_is_left_out(tmp_path: Path) -> None:
    def away(check: str) -> list[Finding]:
        return [Finding(check, Verdict.FAULT, "no answer")]

    names = ("kafka", "topics", "rights", "clocks", "tables")
    found = examine(StreamSettings(home=tmp_path), {name: lambda _, name=name: away(name) for name in names})  # type: ignore[misc]
    assert [one.check for one in found] == ["kafka", "tables"]


def test_every_check_that_is_documented_is_made() -> None:
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    [section] = [part for part in page.split("\n## ") if part.startswith("What is wrong here")]
    said = [
        name.strip("` ")
        for line in section.splitlines()
        if line.startswith("| `")
        for name in line.split("|")[1].split(",")
    ]
    assert said == list(list_checks())
