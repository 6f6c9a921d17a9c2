"""Which images have an outcome, and which have none."""

from streaming.kafka.places import Place
from streaming.page.knows.answered import Answered

NOW = 1000.0


def test_an_image_that_others_have_passed_gets_no_answer_and_a_new_one_waits() -> None:
    answered = Answered()
    answered.begin({0: 0})
    for offset in (0, 1, 3, 4):
        answered.note(Place(0, offset), NOW - 100 + offset)
    answered.note(Place(0, 6), NOW - 1)
    answered.advance({0: range(0, 9)})
    found = answered.find_unanswered(10, NOW)
    assert [(one.place.offset, one.is_passed_over) for one in found.newest] == [
        (2, True),
        (8, False),
        (7, False),
        (5, False),  # its micro-batch may be under way still
    ]
    assert (found.passed_over, found.waiting, found.looked_at) == (1, 3, 9)
    assert answered.find_unanswered(10, NOW + 120).passed_over == 2


def test_images_whose_outcomes_were_not_read_are_not_counted() -> None:
    answered = Answered()
    answered.begin({0: 5})
    answered.advance({0: range(0, 8)})
    assert [one.place.offset for one in answered.find_unanswered(10, NOW).newest] == [7, 6, 5]


def test_what_retention_has_removed_is_forgotten() -> None:
    answered = Answered()
    answered.begin({0: 0})
    answered.advance({0: range(0, 4)})
    answered.advance({0: range(3, 4)})
    assert answered.find_unanswered(10, NOW).waiting == 1


def test_a_long_queue_is_counted_within_the_window_and_named_within_the_limit() -> None:
    answered = Answered(window=100)
    answered.begin({0: 0, 1: 0})
    answered.advance({0: range(0, 10_000), 1: range(0, 10_000)})
    found = answered.find_unanswered(7, NOW)
    assert (len(found.newest), found.waiting, found.looked_at) == (7, 100, 100)


def test_partitions_that_are_added_are_looked_at() -> None:
    answered = Answered()
    answered.begin({0: 0})
    answered.advance({0: range(0, 0), 1: range(0, 2)})
    assert answered.find_unanswered(10, NOW).waiting == 2
    answered.note(Place(1, 0), NOW)
    assert answered.find_unanswered(10, NOW).waiting == 1


def test_the_longest_queue_of_notes_keeps_its_place() -> None:
    answered = Answered()
    answered.begin({0: 0})
    for offset in range(0, 10_000, 2):  # hours in which nobody asks
        answered.note(Place(0, offset), float(offset))
    answered.advance({0: range(0, 10_000)})
    assert answered.find_unanswered(0, 10_100.0).passed_over == 4_999


def test_outcomes_that_come_before_the_ends_are_asked_for_hide_no_image() -> None:
    answered = Answered()
    answered.begin({0: 2})
    answered.advance({0: range(0, 4)})
    answered.note(Place(0, 1), NOW)  # before what is looked at
    answered.note(Place(0, 2), NOW)
    answered.note(Place(0, 4), NOW)  # behind the end that is known
    assert [one.place.offset for one in answered.find_unanswered(10, NOW).newest] == [3]
    answered.note(Place(0, 3), NOW)
    assert answered.find_unanswered(10, NOW).newest == ()
