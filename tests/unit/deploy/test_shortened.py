"""Rules with shorter times are still those rules."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from streaming.settings import ArchiveSettings
from tests.integration.deploy.shortened import LONGEST_AGE_S, shorten_rules
from tests.paths import ROOT

FILES = [ROOT / "deploy" / "prometheus" / name for name in ("alerts.yml", "slo.yml")]

rules_files = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))


@rules_files
def test_only_times_and_bounds_of_age_differ(file: Path) -> None:
    def bare(text: str) -> str:
        return re.sub(r"\[\w+\]|offset \w+|> (bool )?[\d.e]+", "", text)

    before = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    after = shorten_rules(file, spool_bytes=2)["groups"]
    assert [len(group["rules"]) for group in before] == [len(group["rules"]) for group in after]
    for old, new in zip(before, after, strict=True):
        for one, other in zip(old["rules"], new["rules"], strict=True):
            assert bare(one["expr"]) == bare(other["expr"])
            assert one.get("labels") == other.get("labels")


@rules_files
def test_no_age_is_left_that_a_run_of_minutes_never_reaches(file: Path) -> None:
    expressions = [rule["expr"] for group in shorten_rules(file, spool_bytes=2)["groups"] for rule in group["rules"]]
    ages = [
        int(bound)
        for expression in expressions
        if "time() -" in expression or "_oldest_" in expression
        for bound in re.findall(r"> (?:bool )?(\d{2,})\b", expression)
    ]
    assert ages
    assert set(ages) - {ArchiveSettings().max_records_per_batch} == {LONGEST_AGE_S}, "a full write is no age"


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)
@rules_files
def test_promtool_accepts_them(file: Path, tmp_path: Path) -> None:
    path = tmp_path / file.name
    path.write_text(yaml.safe_dump(shorten_rules(file, spool_bytes=2_000_000)), encoding="utf-8")
    answer = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
