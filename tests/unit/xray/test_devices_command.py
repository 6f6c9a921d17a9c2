"""What `xray devices` says at its end."""

from typing import Any

import pytest

from xray.commands.devices import _report

HINT = "does not know these devices"


def figures(**refused: int) -> dict[str, Any]:
    counts = dict.fromkeys(("sent", "accepted", "given_up", "unfinished", "retried", "failed", "seed"), 0)
    answers = {name.replace("_", " "): times for name, times in refused.items()}
    return {**counts, "seconds": 1.0, "refused": answers, "broken": {}}


@pytest.mark.parametrize("refused", [{"association_rejected": 3}, {"401": 2}, {"403": 1, "C000": 1}])
def test_devices_that_nobody_has_named_are_told_where_to_be_named(
    refused: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    _report(figures(**refused), as_json=False)
    shown = capsys.readouterr().out
    assert HINT in shown
    assert "XRAY_GATEWAY__DEVICES" in shown


@pytest.mark.parametrize("refused", [{}, {"C000": 1}, {"A700": 5, "413": 1}])
def test_other_answers_get_no_such_advice(refused: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    _report(figures(**refused), as_json=False)
    assert HINT not in capsys.readouterr().out
