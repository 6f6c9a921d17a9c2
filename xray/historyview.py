"""Shows what became of an image: its outcomes one under the other, what followed, and where it was looked."""

from collections.abc import Iterator, Sequence

from schemas.envelope import DISCLAIMER
from streaming.gateway.receipts.receipt import Receipt
from streaming.lookup.history import Alarmed, Confirmed, History, Looked, Reach, write_time
from streaming.lookup.outcome import NO_PLACE, Outcome
from streaming.lookup.query import AskedBy
from streaming.reports.ledger import Reported
from xray.console import make_printable, out

_REACHED = {Reach.ALL: "", Reach.PART: "in part: ", Reach.FAILED: "NOT: ", Reach.LEFT_OUT: "not: "}
_OTHER_BYTES = (
    "A file that was published de-identified has other bytes there, and another SHA-256: ask by the image's id, which "
    "'xray publish' and the gateway's receipt gave."
)


def show_history(history: History) -> None:
    """Print what became of the images that were asked for."""
    for line in describe_history(history):
        out.print(make_printable(line), markup=False, soft_wrap=True)


def describe_history(history: History) -> Iterator[str]:
    """Give the lines, each of one fact."""
    yield f"Asked for {history.query.describe()}."
    if not history.is_found:
        yield "Nothing is known of it here."
        if history.query.by is AskedBy.FILE:
            yield _OTHER_BYTES
    shown = set()
    for key, outcomes in history.by_image():
        shown.add(key)
        yield from _describe_image(key, outcomes, [one for one in history.receipts if one.event_id == key])
    for receipt in history.receipts:
        if receipt.event_id not in shown:
            yield from _describe_unanswered(receipt)
    for image in history.images:
        again = f", sent again: it had failed at {image.redriven_from}" if image.redriven_from else ""
        yield f"In the images topic at {image.place}, received {write_time(image.received_at)}{again}"
    yield from map(_describe_confirmed, history.confirmed)
    yield from map(_describe_report, history.reports)
    yield from map(_describe_alarm, history.alarms)
    for row in history.rows:
        yield f"Row of table {row.table}: {row.event_id}" + ("" if row.day is None else f", date {row.day}")
    yield "Where it was looked:"
    yield from map(_describe_looked, history.looked)
    if not history.is_whole:
        yield "Not all of it could be looked through: what is not found may be there."
    yield DISCLAIMER


def _describe_image(key: str, outcomes: Sequence[Outcome], receipts: Sequence[Receipt]) -> Iterator[str]:
    first = outcomes[0]
    name = f"{first.image_id} of {first.source}" if first.image_id and first.source else "plain bytes without a name"
    yield f"Image {key}: {name}, SHA-256 {first.sha256}"
    for receipt in receipts:
        yield f"  receipt: {receipt.state.value} at {receipt.at}{_list_flags(receipt.flags)}"
    for i, outcome in enumerate(outcomes):
        yield from (f"  {line}" for line in _describe_outcome(outcome, is_again=i > 0))
    if not outcomes[-1].is_prediction:
        yield "  It has no prediction: its last outcome is a dead letter. 'xray deadletters redrive' sends it again."


def _describe_outcome(outcome: Outcome, *, is_again: bool) -> Iterator[str]:
    again = ""
    if outcome.redriven_from:
        again = f", sent again: it had failed at {outcome.redriven_from}"
    elif is_again:
        again = ", one more outcome of the image: it was sent again, or another model scored it"
    yield f"received {write_time(outcome.received_at)} at {outcome.topic}-{outcome.place}{again}"
    record = "" if outcome.record == NO_PLACE else f", record {outcome.record}"
    model = outcome.model
    if model is None:
        yield f"  dead letter {outcome.event_id}{record}: {outcome.reason}: {outcome.error or 'no message'}"
        return
    threshold = "the most probable class" if model.threshold is None else f"threshold {model.threshold:g}"
    said = f"{outcome.shown_label}, score {outcome.score:.3f} for {model.positive_label} ({threshold})"
    yield f"  prediction {outcome.event_id}{record}: {said}{_list_flags(outcome.flags)}"
    yield f"  by model {model.name} {model.version}, SHA-256 {model.sha256}, at {write_time(outcome.scored_at)}"


def _describe_unanswered(receipt: Receipt) -> Iterator[str]:
    yield f"Image {receipt.event_id}: {receipt.image_id} of {receipt.source}, SHA-256 {receipt.sha256}"
    place = f", {receipt.place}" if receipt.place else ", in the gateway's spool"
    reason = f", {receipt.reason}" if receipt.reason else ""
    yield f"  receipt: {receipt.state.value} at {receipt.at}{place}{reason}{_list_flags(receipt.flags)}"
    if receipt.outcome_event_id:
        yield f"  its outcome {receipt.outcome_event_id} is not among what was looked through"


def _describe_confirmed(one: Confirmed) -> str:
    who = f" by {one.who}" if one.who else ""
    return f"Confirmed {write_time(one.confirmed_at.timestamp())}{who}: {one.label} ({one.known_by})"


def _describe_report(one: Reported) -> str:
    what = "Report" if one.label is None else f"Report amended to {one.label}"
    code = f" ({one.code})" if one.code else ""
    return f"{what} of {one.event_id} to {one.target}: {one.state}{code}, {write_time(one.noted_at.timestamp())}"


def _describe_alarm(one: Alarmed) -> str:
    sent = ", ".join(f"{to.sink} {to.status.value}" for to in one.deliveries) or "no delivery"
    alarm = one.entry.alarm
    return f"Alarm {alarm.id} of rule {alarm.rule}, {write_time(alarm.starts_at.timestamp())}: {sent}"


def _describe_looked(one: Looked) -> str:
    limits = f"; {one.limits}" if one.limits else ""
    if one.reach in (Reach.FAILED, Reach.LEFT_OUT):
        return f"  {_REACHED[one.reach]}{one.where}{limits}"
    return f"  {_REACHED[one.reach]}{one.where}: {one.found} found{limits}"


def _list_flags(flags: Sequence[str]) -> str:
    return f", flags {', '.join(flags)}" if flags else ""
