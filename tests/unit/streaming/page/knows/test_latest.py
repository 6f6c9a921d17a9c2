"""The memory of the newest outcomes: bounds, honesty, filters."""

import tracemalloc

import pytest

from streaming.lookup.outcome import Kind
from streaming.page.knows.latest import Filter, Latest
from tests.unit.streaming.page.knows.outcomes import failed, scored


def test_what_came_since_a_number_and_what_was_skipped() -> None:
    latest = Latest(most=10)
    latest.add(scored(n) for n in range(1, 26))
    batch = latest.since(0)
    assert [one.number for one in batch.outcomes] == list(range(16, 26))
    assert (batch.skipped, batch.last) == (15, 25)
    batch = latest.since(20, limit=3)
    assert [one.number for one in batch.outcomes] == [23, 24, 25]
    assert batch.skipped == 2
    assert latest.since(25) == type(batch)((), 0, 25)


def test_a_number_of_another_run_of_the_page_counts_as_none() -> None:
    latest = Latest()
    latest.add([scored(1)])
    assert [one.number for one in latest.since(900).outcomes] == [1]


def test_a_repeated_event_keeps_its_number() -> None:
    latest = Latest()
    latest.add([scored(1), scored(2), scored(1)])
    assert [one.event_id for one in latest.since(0).outcomes] == [scored(1).event_id, scored(2).event_id]


def test_an_event_that_was_let_go_is_not_found() -> None:
    latest = Latest(most=2)
    latest.add(scored(n) for n in range(3))
    assert latest.find(scored(0).event_id) is None
    found = latest.find(scored(2).event_id)
    assert found is not None
    assert found.number == 3


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        (Filter(), [6, 5, 4, 3, 2, 1]),
        (Filter(kind=Kind.DEAD_LETTER), [4]),
        (Filter(label="opacities"), [2]),
        (Filter(label="undecided"), [3]),
        (Filter(flag="uncertain"), [3]),
        (Filter(source="/ct"), [5]),
        (Filter(reason="corrupt_image"), [4]),
        (Filter(model="v2"), []),
        (Filter(text="ABC"), [6]),
        (Filter(text=f"{2:032x}"), [2]),
        (Filter(label="normal", source="/dx-1"), [6, 1]),
    ],
)
def test_filters(query: Filter, numbers: list[int]) -> None:
    latest = Latest()
    latest.add(
        [
            scored(1),
            scored(2, label="opacities"),
            scored(3, label="opacities", flags=("uncertain",)),
            failed(4),
            scored(5, source="/ct"),
            scored(6, image_id="1.2.abc"),
        ]
    )
    assert [one.number for one in latest.search(query)] == numbers


def test_pages_of_a_search_follow_each_other() -> None:
    latest = Latest()
    latest.add(scored(n) for n in range(10))
    first = latest.search(Filter(), limit=4)
    second = latest.search(Filter(), limit=4, before=first[-1].number)
    assert [one.number for one in (*first, *second)] == [10, 9, 8, 7, 6, 5, 4, 3]


def test_choices_are_counted_as_people_are_shown_them() -> None:
    latest = Latest()
    latest.add([scored(1), scored(2, flags=("uncertain",)), failed(3)])
    found = latest.count_choices()
    assert found.labels == {"normal": 1, "undecided": 1}
    assert (found.flags, found.reasons, found.models) == ({"uncertain": 1}, {"corrupt_image": 1}, {"v1": 2})
    assert found.sources == {"/dx-1": 3}


def test_percentiles_of_the_latency_are_of_the_span_asked_about() -> None:
    latest = Latest()
    latest.add(scored(n, received_at=0.0, published_at=float(n)) for n in range(1, 101))
    assert latest.measure_latency(0).p50 == 50.0
    found = latest.measure_latency(1.0)
    assert (found.count, found.p50, found.p95, found.p99, found.longest) == (100, 50.0, 95.0, 99.0, 100.0)
    assert latest.measure_latency(91.0).count == 10
    assert latest.measure_latency(101.0).p50 is None


@pytest.mark.parametrize(("most", "events"), [(1_000, 6_000), pytest.param(20_000, 100_000, marks=pytest.mark.slow)])
def test_many_events_leave_memory_flat(most: int, events: int) -> None:
    latest = Latest(most)
    tracemalloc.start()
    latest.add(scored(n) for n in range(most))
    full, _ = tracemalloc.get_traced_memory()
    latest.add(scored(n) for n in range(most, events))
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(latest) == most
    assert peak < 1.1 * full + 200_000  # a table that grows is there twice for a moment
    assert after <= latest.size_bytes < most * 1600  # what is counted is an upper bound


def test_texts_of_a_hostile_device_are_bounded_in_bytes() -> None:
    latest = Latest(most_bytes=10_000_000)
    latest.add(scored(n, image_id="x" * 8192) for n in range(5_000))
    assert latest.size_bytes <= 10_000_000
    assert 1_000 < len(latest) < 1_100
    assert latest.since(0, limit=10_000).skipped == 5_000 - len(latest)


def test_a_device_that_has_another_name_in_each_image_takes_no_more() -> None:
    latest = Latest(most_bytes=1_000_000)
    latest.add(scored(n, source=f"{n:08192d}") for n in range(1000))
    assert sum(len(one.source or "") for one in latest.search(Filter(), 1000)) < 1_000_000
