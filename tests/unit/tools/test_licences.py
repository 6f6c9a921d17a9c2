"""docs/licences.md is of the locks and of what is installed, and everything in it is allowed."""

from dataclasses import replace
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from tests.paths import ROOT
from tools.components import Component
from tools.licences import (
    OUT,
    UnknownLicenceError,
    find_licence,
    is_allowed,
    list_licensed,
    read_declared,
    read_policy,
    render_list,
)

POLICY = read_policy()
FORMER = OUT.read_text(encoding="utf-8")
LICENSED = list_licensed(POLICY, FORMER)


def test_the_list_is_that_of_the_locks_and_of_what_is_installed() -> None:
    assert render_list(LICENSED) == FORMER, "python -m tools.licences makes it anew"


@pytest.mark.parametrize("change", ["gone", "new", "other version"])
def test_a_list_of_other_locks_is_not_the_list(change: str) -> None:
    others = {
        "gone": LICENSED[1:],
        "new": [*LICENSED, replace(LICENSED[0], name="another")],
        "other version": [replace(LICENSED[0], version="0"), *LICENSED[1:]],
    }
    assert render_list(others[change]) != FORMER


def test_everything_is_allowed() -> None:
    assert [f"{one.name} {one.version}: {one.licences[0]}" for one in LICENSED if not POLICY.allows(one)] == []


def test_the_policy_has_no_line_of_what_is_gone() -> None:
    assert (POLICY.reviewed.keys() | POLICY.exceptions.keys()) <= {one.name for one in LICENSED}
    assert all(len(reason) > 20 for reason in POLICY.exceptions.values())


def test_scripts_have_their_licences_beside_them() -> None:
    phrases = {"0BSD": "Permission to use, copy, modify, and/or distribute", "MIT": "The MIT License"}
    scripts = {one.files[0][0].partition("-")[0]: one for one in LICENSED if one.used_in == "page"}
    for stem, script in scripts.items():
        text = (ROOT / "streaming/page/assets/vendor" / f"{stem}-LICENSE.txt").read_text(encoding="utf-8")
        assert phrases[script.licences[0]] in text


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only OR MIT AND Zlib", False),
        ("Apache-2.0 WITH LLVM-exception", False),
    ],
)
def test_all_that_is_joined_by_and_must_be_allowed(expression: str, wanted: bool) -> None:
    assert is_allowed(expression, frozenset({"MIT", "Apache-2.0"})) is wanted


def test_brackets_are_not_guessed_at() -> None:
    with pytest.raises(ValueError, match="brackets are not read"):
        is_allowed("MIT AND (Zlib OR GPL-2.0-only)", frozenset({"MIT", "Zlib"}))


def test_what_only_builds_may_be_less_free_than_what_is_shipped() -> None:
    one = Component("pypi", "one", "1", "dev", False, licences=("CNRI-Python",))
    assert POLICY.allows(one)
    assert not POLICY.allows(replace(one, is_shipped=True))
    assert replace(POLICY, exceptions={"one": "read by a person"}).allows(replace(one, is_shipped=True))


class Installed(Distribution):
    """A package as pip lays it down; a fake, for real ones say only what they say."""

    def __init__(self, folder: Path, headers: str, text: str) -> None:
        self._folder = folder
        self._headers = headers
        (folder / "one-1.dist-info").mkdir()
        (folder / "one-1.dist-info" / "LICENSE").write_text(text)

    def read_text(self, filename: str) -> str | None:
        return {"METADATA": self._headers, "RECORD": "one-1.dist-info/LICENSE,,\n"}.get(filename)

    def locate_file(self, path: object) -> Path:
        return self._folder / str(path)


_TWO = "Redistributions in binary form must ...\n THIS SOFTWARE IS PROVIDED as is"
_THREE = f"The name of the author may not be used to endorse or promote\n  products. {_TWO}"


@pytest.mark.parametrize(
    ("headers", "text", "wanted"),
    [
        ("License-Expression: mit or apache-2.0\nLicense: other", "", "MIT OR Apache-2.0"),
        ("License: MIT OR Apache-2.0\nClassifier: License :: OSI Approved :: MIT License", "", "MIT OR Apache-2.0"),
        ("License: Apache License 2.0", "", "Apache-2.0"),
        ("License: see file\nClassifier: License :: OSI Approved\n"
         "Classifier: License :: OSI Approved :: ISC License (ISCL)", "", "ISC"),
        ("License: BSD\nClassifier: License :: OSI Approved :: BSD License", _THREE, "BSD-3-Clause"),
        ("License: BSD", _TWO, "BSD-2-Clause"),
        ("License: UNKNOWN", 'Licensed under the Apache License,\n Version 2.0 (the "License")', "Apache-2.0"),
    ],
    ids=["expression", "field", "spelling", "classifier", "three clauses", "two clauses", "notice"],
)  # fmt: skip
def test_the_most_exact_word_counts(tmp_path: Path, headers: str, text: str, wanted: str) -> None:
    assert read_declared(Installed(tmp_path, headers, text), POLICY.spellings) == wanted


@pytest.mark.parametrize(
    "headers",
    ["", "License: Dual\nClassifier: License :: OSI Approved :: ISC License (ISCL)\nClassifier: License :: MIT"],
    ids=["nothing", "two"],
)  # fmt: skip
def test_what_is_not_said_is_not_guessed(tmp_path: Path, headers: str) -> None:
    with pytest.raises(UnknownLicenceError, match="brings no text that is known"):
        read_declared(Installed(tmp_path, headers, "All rights reserved."), POLICY.spellings)


def test_what_is_not_installed_keeps_its_licence_and_what_is_new_wants_a_person() -> None:
    one = Component("pypi", "not-installed-anywhere", "1", "dev", False)
    assert find_licence(one, POLICY, {"not-installed-anywhere": "MIT"}) == "MIT"
    assert find_licence(one, replace(POLICY, reviewed={"not-installed-anywhere": "ISC"}), {}) == "ISC"
    with pytest.raises(UnknownLicenceError, match=r"not installed here; .* under \[reviewed\] of locks/licences\.toml"):
        find_licence(one, POLICY, {})


def test_a_jars_licences_are_choices() -> None:
    jar = Component("maven", "one", "1", "kafka", True, "org.example", ("The MIT License", "Apache-2.0", "MIT"))
    assert find_licence(jar, POLICY, {}) == "MIT OR Apache-2.0"
