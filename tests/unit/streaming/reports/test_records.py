"""Records of the topics: a timestamp is whatever its producer says where the topic takes the producer's."""

import json
import time
from typing import Any

import pytest

from streaming.reports.records import read_finding_record, read_published_at


class Record:
    """A record with a timestamp of its producer's."""

    def __init__(self, milliseconds: int) -> None:
        self._milliseconds = milliseconds

    def timestamp(self) -> tuple[int, int]:
        return 1, self._milliseconds

    def value(self) -> bytes:
        return json.dumps({"sha256": "a" * 64, "label": "normal"}).encode()


@pytest.mark.parametrize("ahead_ms", [86_400_000, 10**15, 2**62])
def test_a_time_that_lies_ahead_is_the_present(ahead_ms: int) -> None:
    record: Any = Record(int(time.time() * 1000) + ahead_ms)
    assert abs(read_published_at(record).timestamp() - time.time()) < 10
    assert read_finding_record(record) is not None


@pytest.mark.parametrize("milliseconds", [-1, 0, 1_769_868_239_000])
def test_a_time_that_has_been_is_taken(milliseconds: int) -> None:
    record: Any = Record(milliseconds)
    assert read_published_at(record).timestamp() == max(milliseconds, 0) / 1000
