"""Which records of the topics are read, and what is said of those that are gone."""

import pytest

from streaming.lookup.topics import cut_archived


@pytest.mark.parametrize(
    ("archived", "read"),
    [({}, range(0, 10)), ({0: 4}, range(4, 10)), ({0: 10}, range(10, 10)), ({0: 99}, range(99, 10))],
    ids=["no table", "some", "all", "of another topic"],
)
def test_what_the_table_has_is_not_read_again(archived: dict[int, int], read: range) -> None:
    assert cut_archived({0: range(10)}, archived) == ({0: read}, "")


def test_a_gap_between_table_and_topic_is_told() -> None:
    spans, limits = cut_archived({0: range(50, 60), 1: range(5, 9), 2: range(0, 3)}, {0: 20, 1: 5})
    assert spans == {0: range(50, 60), 1: range(5, 9), 2: range(0, 3)}
    assert "0@20 to 0@49" in limits
    assert "1@" not in limits


def test_without_a_table_all_that_retention_removed_is_a_gap() -> None:
    _, limits = cut_archived({0: range(7, 9)}, {})
    assert "0@0 to 0@6" in limits
