"""A source is believed if it knows what is known; nothing known is never said of nothing asked."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tests.paths import ROOT
from tools import advisories
from tools.advisories import (
    SOURCES,
    Advisory,
    Answer,
    ListedException,
    Source,
    SourceError,
    ask_npm,
    ask_pip_audit,
    join_answers,
    read_exceptions,
    read_npm,
    read_pip_audit,
    report,
    split_versions,
)
from tools.components import Component

TODAY = date(2026, 12, 1)
PILLOW = Component("pypi", "pillow", "9.0.0", "train", True)
RICH = Component("pypi", "rich", "15.0.0", "train", True)
JAR = Component("maven", "kafka-clients", "4.4.0", "kafka-4.4.0", True, "org.apache.kafka")
CONTROL = Component("pypi", "urllib3", "1.26.0", "control", False)
KNOWN = Advisory("urllib3", "1.26.0", ("PYSEC-2021-108",), "1.26.5")
FOUND = Advisory("pillow", "9.0.0", ("PYSEC-2022-9", "CVE-2022-22817"), "9.0.1")


def source(found: Sequence[Advisory] = (), control: Answer | None = None, name: str = "some audit") -> Source:
    """Stands for a registry's answers, which no unit test has."""

    def ask(components: Sequence[Component]) -> Answer:
        if list(components) == [CONTROL]:
            return control or Answer((KNOWN,))
        return Answer(tuple(found), ("rich",))

    return Source(name, "pypi", CONTROL, ask)


def refuses(components: Sequence[Component]) -> Answer:
    msg = "405 Method Not Allowed"
    raise SourceError(msg)


def test_what_is_found_is_said_with_where_it_is_gone() -> None:
    lines, is_open = report([PILLOW, RICH], [source([FOUND])], [], TODAY)
    assert is_open
    assert lines == [
        "pypi: some audit knows 1 vulnerabilities of 1 packages",
        "pypi: some audit has never heard of rich",
        "VULNERABLE pillow 9.0.0: PYSEC-2022-9, CVE-2022-22817; gone in 9.0.1",
    ]


@pytest.mark.parametrize(
    ("control", "said"),
    [(Answer((), ("urllib3",)), "does not know it"), (Answer(()), "knows none of them")],
    ids=["packages alone", "no advisories"],
)
def test_a_source_that_does_not_know_what_is_known_is_not_believed(control: Answer, said: str) -> None:
    lines, is_open = report([PILLOW], [source(control=control)], [], TODAY)
    assert lines == [
        f"pypi: could not ask some audit: urllib3 1.26.0 has known vulnerabilities, and some audit {said}",
        "pypi: could ask nobody about 1 packages, so whether they have vulnerabilities is not known",
    ]
    assert not is_open


def test_without_a_network_it_says_that_it_could_not_ask_and_fails_nothing() -> None:
    lines, is_open = report([PILLOW, JAR], [replace(source(), ask=refuses)], [], TODAY)
    assert "pypi: could not ask some audit: 405 Method Not Allowed" in lines
    assert not any(" 0 vulnerabilities" in line for line in lines)
    assert not is_open


def test_the_second_source_is_asked_where_the_first_cannot_be_and_not_otherwise() -> None:
    second = source([FOUND], name="second")
    lines, is_open = report([PILLOW], [replace(source(), ask=refuses), second], [], TODAY)
    assert is_open
    assert any(line.startswith("pypi: second knows 1 ") for line in lines)
    lines, is_open = report([PILLOW], [source(), second], [], TODAY)
    assert not is_open
    assert not any("second" in line for line in lines)


def test_jars_are_said_not_to_be_asked_about() -> None:
    lines, _ = report([JAR], SOURCES[:0], [], TODAY)
    assert lines == ["maven: no registry has advisories on these 1; give a scanner what make sbom writes"]


@pytest.mark.parametrize(
    ("change", "is_covered"),
    [
        ({}, True),
        ({"advisory": "CVE-2022-22817"}, True),
        ({"advisory": "CVE-2022-1"}, False),
        ({"package": "rich"}, False),
        ({"until": TODAY}, False),
    ],
    ids=["its name", "another name of it", "another", "another package", "over"],
)
def test_an_exception_is_of_one_vulnerability_of_one_package_and_ends(
    change: dict[str, object], is_covered: bool
) -> None:
    plain = {"advisory": "PYSEC-2022-9", "package": "pillow", "until": date(2026, 12, 2), "reason": "Never reached."}
    listed = ListedException(**{**plain, **change})  # type: ignore[arg-type]
    lines, is_open = report([PILLOW], [source([FOUND])], [listed], TODAY)
    assert is_open is not is_covered
    assert ("pillow: PYSEC-2022-9 is excepted until 2026-12-02: Never reached." in lines) is (is_covered and not change)
    assert any(line.startswith("VULNERABLE") for line in lines) is not is_covered


@pytest.mark.parametrize(
    "text",
    [
        '[[exception]]\nid = "GHSA-1"\npackage = "pillow"\nuntil = 2027-01-01\n',
        '[[exception]]\nid = "GHSA-1"\npackage = "pillow"\nuntil = 2027-01-01\nreason = ""\n',
        '[[exception]]\nid = "GHSA-1"\npackage = "pillow"\nuntil = "soon"\nreason = "No."\n',
    ],
    ids=["no reason", "empty reason", "no date"],
)
def test_an_exception_has_a_reason_and_an_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "advisories.toml").write_text(text)
    with pytest.raises(ValueError, match=r"advisories\.toml: .* wanted id, package, until \(a date\) and reason"):
        read_exceptions(tmp_path / "advisories.toml")


def test_the_checkouts_exceptions_and_their_example_are_read(tmp_path: Path) -> None:
    read_exceptions()
    lines = (ROOT / "locks/advisories.toml").read_text(encoding="utf-8").splitlines()
    example = tmp_path / "advisories.toml"
    example.write_text("\n".join(line.removeprefix("# ") for line in lines[2:]))
    (one,) = read_exceptions(example)
    assert (one.package, one.until) == ("pillow", date(2027, 3, 1))


def test_what_pip_audit_writes_is_read() -> None:
    hole = {"id": "PYSEC-2022-9", "fix_versions": ["9.0.1", "9.1"], "aliases": ["CVE-2022-22817"]}
    said = {
        "dependencies": [
            {"name": "pillow", "version": "9.0.0", "vulns": [hole]},
            {"name": "numpy", "version": "2.4.6", "vulns": []},
            {"name": "rich", "skip_reason": "Dependency not found on PyPI and could not be audited: rich (15.0.0)"},
        ],
        "fixes": [],
    }
    assert read_pip_audit(said) == Answer((replace(FOUND, fixed_in="9.0.1, 9.1"),), ("rich",))


def test_what_npm_writes_is_read() -> None:
    hole = {
        "source": 1,
        "name": "lodash",
        "title": "Prototype Pollution",
        "url": "https://x.example/GHSA-fvqr",
        "range": "<4.17.5",
    }
    said = {"vulnerabilities": {"lodash": {"via": [hole]}, "kafkajs": {"via": ["lodash"]}}}
    found = read_npm(said, {"lodash": "4.17.4", "kafkajs": "2.2.4"})
    assert found == Answer((Advisory("lodash", "4.17.4", ("GHSA-fvqr", "Prototype Pollution"), "not <4.17.5"),))
    with pytest.raises(SourceError, match="405 Method Not Allowed"):
        read_npm({"message": "405 Method Not Allowed", "error": {"summary": "", "detail": ""}}, {})


def test_no_list_has_a_package_twice() -> None:
    newer = replace(PILLOW, version="9.1")
    assert split_versions([PILLOW, RICH, newer]) == [[PILLOW, RICH], [newer]]
    assert join_answers([Answer((FOUND,)), Answer((KNOWN,), ("rich",))]) == Answer((FOUND, KNOWN), ("rich",))


def test_a_tool_that_fails_is_a_source_that_could_not_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=r"exit code 3: no route to host$"):
        advisories._run(
            [sys.executable, "-c", "import sys; sys.stderr.write('x\\nno route to host'); sys.exit(3)"], tmp_path
        )
    monkeypatch.setattr(advisories, "_ASK_TIMEOUT_S", 0.2)
    with pytest.raises(SourceError, match=r"no answer within 0\.2 s"):
        advisories._run([sys.executable, "-c", "import time; time.sleep(30)"], tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="npm is not installed"):
        ask_npm([PILLOW])


def test_pip_audit_takes_what_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip-audit, of whom nothing is asked: so it needs no network."""
    assert ask_pip_audit("pypi", []) == Answer((), ())
    monkeypatch.setattr(advisories, "_run_pip_audit", lambda _, asked: advisories._run(["false"], Path()))
    with pytest.raises(SourceError, match="it said nothing"):
        ask_pip_audit("pypi", [RICH])
