"""Each cause of a refusal, and what a device makes of it."""

import pytest

from streaming.gateway.refusals import MAX_COMMENT, Cause, Refusal


def test_every_cause_has_a_status_of_its_own() -> None:
    statuses = [cause.value.status for cause in Cause]
    assert len(set(statuses)) == len(statuses)
    assert all(status != 0 for status in statuses)


@pytest.mark.parametrize("cause", Cause, ids=lambda cause: cause.label)
def test_a_comment_fits_its_element_and_says_something(cause: Cause) -> None:
    comment = cause.value.comment
    assert 10 < len(comment) <= MAX_COMMENT
    assert comment.isascii()
    assert "\\" not in comment  # in VR LO it would be two values


@pytest.mark.parametrize("cause", Cause, ids=lambda cause: cause.label)
def test_only_what_can_change_is_out_of_resources(cause: Cause) -> None:
    """A7xx makes a device send the object again; 5xx and 429 an HTTP client."""
    assert (cause.value.status >> 8 == 0xA7) == cause.value.is_transient
    assert (cause.value.http in (429, 503)) == cause.value.is_transient


def test_statuses_are_the_standards() -> None:
    """PS3.4 B.2.3 and PS3.7 C.4: what a Storage SCP may answer."""
    named = {
        Cause.BROKER_AWAY: 0xA700,
        Cause.WRONG_CLASS: 0xA900,
        Cause.NOT_ALLOWED: 0x0124,
        Cause.SOP_CLASS: 0x0122,
        Cause.FAILED: 0x0110,
    }
    assert {cause: cause.value.status for cause in named} == named
    others = [cause.value.status for cause in Cause if cause not in named]
    assert all(status >> 8 == 0xA7 or status >> 12 == 0xC for status in others)


def test_a_refusal_without_details_says_the_causes_own_words() -> None:
    assert Refusal(Cause.BUSY).detail == Cause.BUSY.value.comment
    assert str(Refusal(Cause.TOO_LARGE, "9 bytes, at most 8")) == "too_large: 9 bytes, at most 8"
