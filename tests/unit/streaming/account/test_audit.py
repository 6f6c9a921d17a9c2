"""What counts as twice in a table."""

from datetime import date, timedelta

import pyarrow as pa
import pytest

from streaming.account.audit import count_duplicates

_DAY, _SPAN_DAYS = date(2026, 1, 31), 35


@pytest.mark.parametrize(
    ("days", "duplicates"),
    [
        pytest.param([0], 0, id="once"),
        pytest.param([0, 0], 1, id="twice on a day"),
        pytest.param([0, 35], 1, id="twice within the span"),
        pytest.param([0, 36], 0, id="sent again after the span"),
        pytest.param([72, 0, 36], 0, id="sent again twice, in any order"),
        pytest.param([0, 0, 1, 90], 2, id="three times, and once by right"),
        pytest.param([None, None], 1, id="twice without a date"),
        pytest.param([None, 0], 0, id="with a date and without: nobody can tell"),
        pytest.param([None, None, 0, 20], 2, id="all of it"),
    ],
)
def test_a_row_is_a_duplicate_within_the_span(days: list[int | None], duplicates: int) -> None:
    dates = [None if day is None else _DAY + timedelta(days=day) for day in days]
    others = [_DAY, _DAY]  # of other events, on the same day
    rows = pa.table(
        {
            "event_id": ["one"] * len(days) + ["two", "three"],
            "date": pa.array([*dates, *others], pa.date32()),
        }
    )
    assert count_duplicates(rows, _SPAN_DAYS) == duplicates
