"""Curves and bars as inline SVG: text stays text, and colours are the page's, in light, dark and print.

Every text that is not ours goes through ``html.escape``; the answers are safe to put into a page as they are.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from training.figures.bootstrap import Estimate
from training.figures.calibration import Calibration
from training.figures.curves import Curve

_WIDTH, _HEIGHT = 400, 372
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 388, 14, 314
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_LABEL_Y = 364
_STRIP_PX = 34  # of the reliability diagram, for the number of images in each bin
_MARK_PX, _CAP_PX = 5, 4

_CHANCE = 0.5  # bars grow from it
_BAR_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_INDENT = 1.5  # per cent, so that no line is cut off at the ends


def _x(value: float) -> float:
    return round(_LEFT + value * (_RIGHT - _LEFT), 1)


def _y(value: float, bottom: int = _BOTTOM) -> float:
    return round(bottom - value * (bottom - _TOP), 1)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def _frame(x_label: str, y_label: str, bottom: int = _BOTTOM) -> list[str]:
    parts = []
    for tick in _TICKS:
        parts += [
            _line("grid", _x(tick), _TOP, _x(tick), bottom),
            _line("grid", _LEFT, _y(tick, bottom), _RIGHT, _y(tick, bottom)),
        ]
        parts += [
            _text(_x(tick), _BOTTOM + 20, f"{tick:g}"),
            _text(_LEFT - 8, _y(tick, bottom) + 4, f"{tick:g}", anchor="end"),
        ]
    middle = (_TOP + bottom) / 2
    parts.append(_text((_LEFT + _RIGHT) / 2, _LABEL_Y - 8, x_label, "axis"))
    turned = f'transform="translate(14 {middle}) rotate(-90)" text-anchor="middle"'
    parts.append(f'<text class="axis" {turned}>{escape(y_label)}</text>')
    return parts


def _picture(name: str, said: str, parts: Iterable[str]) -> str:
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    opening = f'<svg class="chart" {size} role="img" aria-label="{escape(said)}" data-chart="{name}">'
    return f"{opening}<title>{escape(said)}</title>{''.join(parts)}</svg>"


def _cross(x: Estimate, y: Estimate) -> list[str]:
    """Mark a point, with its intervals where there are any."""
    parts = []
    if math.isfinite(x.low + x.high):
        parts.append(_line("whisker", _x(x.low), _y(y.value), _x(x.high), _y(y.value)))
    if math.isfinite(y.low + y.high):
        parts.append(_line("whisker", _x(x.value), _y(y.low), _x(x.value), _y(y.high)))
    return [*parts, f'<circle class="mark" cx="{_x(x.value)}" cy="{_y(y.value)}" r="{_MARK_PX}"/>']


def _is_point(*values: float) -> bool:
    return all(0 <= value <= 1 for value in values)  # false for what is not a number


def draw_roc(curve: Curve, auroc: Estimate, sensitivity: Estimate, specificity: Estimate) -> str:
    """Draw sensitivity over 1 - specificity, and the point at which the model decides.

    Parameters
    ----------
    curve : Curve
        As `training.figures.curves.trace_roc` gives it.
    auroc, sensitivity, specificity : Estimate
        Of the same images.

    Returns
    -------
    str
        An ``svg`` element; empty where the curve is.
    """
    if not curve.x.size:
        return ""
    said = f"ROC curve, area {auroc.value:.3f}"
    parts = _frame("1 \N{MINUS SIGN} specificity", "Sensitivity")
    parts.append(_line("chance", _x(0), _y(0), _x(1), _y(1)))
    parts.append(_path(curve.x, curve.y))
    if _is_point(sensitivity.value, specificity.value):
        false_positives = Estimate(1 - specificity.value, 1 - specificity.high, 1 - specificity.low)
        parts += _cross(false_positives, sensitivity)
        said += f"; the model decides at sensitivity {sensitivity.value:.3f}, specificity {specificity.value:.3f}"
    parts.append(_text(_RIGHT - 10, _BOTTOM - 14, f"AUROC {auroc.value:.3f}", "figure", "end"))
    return _picture("roc", said, parts)


def draw_precision_recall(curve: Curve, auprc: Estimate, share: float, decided: tuple[float, float]) -> str:
    """Draw precision over sensitivity in steps, the share of positive images, and the point of decision.

    Parameters
    ----------
    curve : Curve
        As `training.figures.curves.trace_precision_recall` gives it.
    auprc : Estimate
        Of the same images.
    share : float
        Of images with the finding: what guessing reaches.
    decided : tuple of float
        Sensitivity and precision of the model's decisions.

    Returns
    -------
    str
        An ``svg`` element; empty where the curve is.
    """
    if not curve.x.size:
        return ""
    said = f"Precision-recall curve, area {auprc.value:.3f}; {share:.3f} of the images are positive"
    parts = _frame("Sensitivity (recall)", "Precision (PPV in this set)")
    parts.append(_line("chance", _x(0), _y(share), _x(1), _y(share)))
    # Precision belongs to the recall it leads to: down first, then to the right.
    parts.append(_path(np.repeat(curve.x, 2)[:-1], np.repeat(curve.y, 2)[1:]))
    if _is_point(*decided):
        parts.append(f'<circle class="mark" cx="{_x(decided[0])}" cy="{_y(decided[1])}" r="{_MARK_PX}"/>')
    parts.append(_text(_LEFT + 10, _BOTTOM - 14, f"AUPRC {auprc.value:.3f}", "figure", "start"))
    return _picture("precision-recall", said, parts)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    points = " ".join(f"{_x(float(one))},{_y(float(two))}" for one, two in zip(x, y, strict=True))
    return f'<polyline class="curve" points="{points}"/>'


def draw_reliability(calibration: Calibration) -> str:
    """Draw how often the finding was there over the probability given, and below it the number of images.

    Parameters
    ----------
    calibration : Calibration
        Of two classes.

    Returns
    -------
    str
        An ``svg`` element; empty without a table.
    """
    table = calibration.table
    if not table:
        return ""
    bottom = _BOTTOM - _STRIP_PX - 6
    said = "Reliability diagram: " + "; ".join(
        f"given {row.mean_probability:.2f}, observed {row.observed.value:.2f} of {row.n_images}" for row in table
    )
    parts = _frame("Probability given", "Share with the finding", bottom)
    parts.append(_line("chance", _x(0), _y(0, bottom), _x(1), _y(1, bottom)))
    largest = max(row.n_images for row in table)
    for row in table:
        height = max(1.0, round(_STRIP_PX * row.n_images / largest, 1))
        left, right = _x(row.low) + 1, _x(row.high) - 1
        parts.append(
            f'<rect class="count" x="{left}" y="{_BOTTOM - height}" width="{round(right - left, 1)}" height="{height}">'
            f"<title>{row.n_images} images</title></rect>"
        )
        x = _x(row.mean_probability)
        parts.append(_line("whisker", x, _y(row.observed.low, bottom), x, _y(row.observed.high, bottom)))
    points = " ".join(f"{_x(row.mean_probability)},{_y(row.observed.value, bottom)}" for row in table)
    parts.append(f'<polyline class="curve thin" points="{points}"/>')
    for row in table:
        x, y = _x(row.mean_probability), _y(row.observed.value, bottom)
        parts.append(f'<circle class="mark" cx="{x}" cy="{y}" r="{_CAP_PX}"/>')
    return _picture("reliability", said, parts)


def axis_start(estimates: Sequence[Estimate]) -> float:
    """Choose where the axis of `draw_bar` begins: at chance, or at the tenth below the lowest of all."""
    lows = [value for item in estimates for value in (item.value, item.low) if math.isfinite(value)]
    return max(0.0, math.floor(min([_CHANCE, *lows]) * 10) / 10)


def _at(value: float, start: float) -> float:
    return round(_INDENT + (value - start) / (1 - start) * (100 - 2 * _INDENT), 2)


def draw_bar(estimate: Estimate, *, start: float, kind: str, beside: float = math.nan) -> str:
    """Draw an AUROC as a bar from chance, with its interval; as wide as its place.

    Parameters
    ----------
    estimate : Estimate
        What to draw; what is not a number gives the axis alone.
    start : float
        Of the axis, see `axis_start`; it ends at 1.
    kind : str
        CSS class of the bar: ``"model"``, ``"probe"`` or ``"shortcut"``.
    beside : float
        What to compare with, drawn as a line through the row.

    Returns
    -------
    str
        An ``svg`` element, to stand beside the number it shows.
    """
    chance = _at(_CHANCE, start)
    parts = []
    if math.isfinite(estimate.value):
        left, right = sorted((chance, _at(estimate.value, start)))
        parts.append(f'<rect class="bar {kind}" x="{left}%" y="4" width="{round(right - left, 2)}%" height="14"/>')
    parts.append(f'<line class="chance" x1="{chance}%" y1="0" x2="{chance}%" y2="22"/>')
    if math.isfinite(beside):
        at = _at(max(beside, start), start)
        parts.append(f'<line class="beside" x1="{at}%" y1="-2" x2="{at}%" y2="24"/>')
    if math.isfinite(estimate.low + estimate.high):
        low, high = _at(estimate.low, start), _at(estimate.high, start)
        parts.append(f'<line class="whisker" x1="{low}%" y1="11" x2="{high}%" y2="11"/>')
        parts += [f'<line class="whisker" x1="{end}%" y1="7" x2="{end}%" y2="15"/>' for end in (low, high)]
    return f'<svg class="bars" width="100%" height="22" aria-hidden="true">{"".join(parts)}</svg>'


def draw_bar_axis(start: float) -> str:
    """Draw the axis below bars."""
    parts = [
        f'<text x="{_at(tick, start)}%" y="12" text-anchor="{"end" if tick == 1 else "middle"}">{tick:g}</text>'
        for tick in _BAR_TICKS
        if tick >= start
    ]
    return f'<svg class="bars axis" width="100%" height="15" aria-hidden="true">{"".join(parts)}</svg>'
