"""One file's story in words: for its text, for the table and for the page."""

import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from schemas.errors import Reason
from schemas.extras import PACKAGE
from sparkdl.image.limits import DICOM, JPEG, PNG
from sparkdl.image.steps import Step
from xray.render.rendering import MADE_BY, NOTE, SETTINGS, UNREADABLE, Limit, Refusal, Rendering

_WIDTH = 100
_GRAY_STEPS = frozenset({"voi", "range", "invert"})
_FORMATS = {PNG: "PNG", JPEG: "JPEG", DICOM: "DICOM"}
_NOT_STRETCHED = "             in the proportions of the file"
_UNDER_STEP = " " * 14
_SAME_SHAPE = 0.005
"""Half a percent: what rounding to whole pixels does to a picture of the network's size."""


def tell_rendering(rendering: Rendering) -> str:
    """Tell everything that is known of one file, in lines for people.

    Parameters
    ----------
    rendering : Rendering
        Of the file.

    Returns
    -------
    str
        Ends with a line break. No text of a DICOM file is in it.
    """
    blocks = [
        [f"What the network sees of {rendering.name}"],
        [f"{MADE_BY}, {name_version()}", *_wrap(f"{NOTE} {_tell_privacy(rendering)}")],
        list(_tell_facts(rendering)),
        ["What becomes of it", *_indent(tell_outcome(rendering))],
        ["What was done to the pixels, and what in the file decided it", *_tell_steps(rendering.steps)],
        ["Pictures", *_tell_pictures(rendering)],
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _tell_privacy(rendering: Rendering) -> str:
    told = "No text from inside the file is here."
    return told if rendering.plan.hide_names else f"{told} Its name is."


def name_version() -> str:
    """Name this program with its version."""
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        return f"{PACKAGE} (not installed)"


def tell_count(renderings: Sequence[Rendering]) -> str:
    """Tell how many files there are, and how many were refused."""
    refused = sum(rendering.refusal is not None for rendering in renderings)
    return f"{len(renderings):,} file{'' if len(renderings) == 1 else 's'}, {refused:,} refused"


def name_format(media_type: str | None) -> str:
    """Name a format in one word."""
    return _FORMATS.get(media_type or "", "unknown")


def tell_size(height: int | None, width: int | None) -> str:
    """Give a size as height x width; empty where it is not known."""
    return "" if height is None else f"{height}x{width}"


def tell_grays(steps: Sequence[Step]) -> str:
    """Tell in a few words what decided the grays; each step's text tells the rest."""
    return "; ".join(step.what.partition(";")[0] for step in steps if step.name in _GRAY_STEPS) or "as stored"


def tell_outcome(rendering: Rendering) -> list[str]:
    """Tell what the stream does with a file, in whole sentences, one or more."""
    refusal = rendering.refusal
    if refusal is None:
        return ["The stream takes the file."]
    told = [_tell_refusal(refusal), *map(_tell_limit, rendering.beyond)]
    if not rendering.beyond and refusal.reason in SETTINGS:
        told.append(f"{SETTINGS[refusal.reason]} decides that.")
    if rendering.behind is not None:
        told.append(f"With larger limits the stream would refuse it all the same, as {_name(rendering.behind)}.")
    elif rendering.network is not None:
        told.append("The pictures show what the network would see if the stream took it.")
    elif rendering.full is not None:
        told.append("The picture shows the file at its full size, where it still has more than one gray or colour.")
    return told


def _tell_refusal(refusal: Refusal) -> str:
    if refusal.reason == UNREADABLE:
        return f"Nothing is known, for the file could not be read here: {refusal.error_message}."
    if refusal.reason == Reason.RECORD_TOO_LARGE:
        return (
            "The stream never sees the file: Kafka's client or broker refuses so large a message, and the publisher "
            f"gets the error. If the message is compressed on its way, it becomes a dead letter, {_name(refusal)}."
        )
    return f"The stream refuses the file, which becomes a dead letter, {_name(refusal)}."


def _name(refusal: Refusal) -> str:
    return f"{refusal.reason} ({refusal.error_class.rpartition('.')[2]}): {refusal.error_message}"


def _tell_limit(limit: Limit) -> str:
    unit = "pixels" if limit.reason == Reason.TOO_MANY_PIXELS else "bytes"
    return f"{limit.setting} is {limit.most:,} {unit}, and this file has {limit.found:,} ({limit.reason})."


def tell_stretch(rendering: Rendering) -> str:
    """Tell how the network's picture is stretched, e.g. ``"22% wider"``; empty where it is not, or there is none."""
    picture, height, width = rendering.network, rendering.height, rendering.width
    if picture is None or not height or not width:
        return ""
    wider = (picture.width / width) / (picture.height / height)
    if abs(wider - 1) <= _SAME_SHAPE:
        return ""
    percent, direction = (wider - 1, "wider") if wider > 1 else (1 / wider - 1, "taller")
    return f"{percent:.0%} {direction}"


def _tell_facts(rendering: Rendering) -> Iterator[str]:
    plan = rendering.plan
    size = tell_size(rendering.height, rendering.width)
    facts = {
        "image id": rendering.image_id,
        "media type": rendering.media_type or "none of image/png, image/jpeg, application/dicom",
        "size": f"{size} (height x width)" if size else "not known",
        "payload": "not known" if rendering.payload_bytes is None else f"{rendering.payload_bytes:,} bytes",
        "SHA-256": rendering.sha256 or "not known",
        "network's size": f"{tell_size(*plan.size)} (height x width; {plan.size_from})",
        "rendering version": str(plan.rendering_version),
    }
    yield from (f"{name:<19}{fact}" for name, fact in facts.items())


def _tell_steps(steps: Sequence[Step]) -> Iterator[str]:
    if not steps:
        yield "  none are known"
    for number, step in enumerate(steps, 1):
        yield from _wrap(step.what, first=f"  {number}. {step.name:<9}", later=_UNDER_STEP)
        if step.decided_by:
            yield from _wrap(f"decided by {tell_deciders(step)}", first=_UNDER_STEP, later=_UNDER_STEP)


def tell_deciders(step: Step) -> str:
    """Tell what in the file decided a step; empty where nothing did."""
    return ", ".join(f"{keyword}={value}" for keyword, value in step.decided_by.items())


def _tell_pictures(rendering: Rendering) -> Iterator[str]:
    pictures = {"network": rendering.network, "full size": rendering.full}
    if not any(pictures.values()):
        yield "  none"
        return
    yield f"  {'':<11}{'height x width':>14}  channels  min  max    mean   black   white   (0 is black, 255 is white)"
    for name, picture in pictures.items():
        if picture is not None:
            yield (
                f"  {name:<11}{tell_size(picture.height, picture.width):>14}{picture.channels:>10}{picture.min:>5}"
                f"{picture.max:>5}{picture.mean:>8.2f}{picture.black_share:>8.1%}{picture.white_share:>8.1%}"
            )
    yield ""
    if rendering.network is not None:
        stretched = tell_stretch(rendering)
        yield f"  network    {rendering.network.file}"
        yield f"             stretched: everything is {stretched} than in the file" if stretched else _NOT_STRETCHED
    if rendering.full is not None:
        yield f"  full size  {rendering.full.file}"
        yield "             before it is resized"


def _indent(sentences: Sequence[str]) -> Iterator[str]:
    for sentence in sentences:
        yield from _wrap(sentence, first="  ", later="  ")


def _wrap(text: str, first: str = "", later: str = "") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )
