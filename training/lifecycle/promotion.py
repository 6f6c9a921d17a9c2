"""Whether a new model may take the place of the model in service: one rule, for all who promote.

Nothing is computed here: the figures are those of the report that training wrote (``Evaluation.to_dict``).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ModelLoadError
from schemas.modelcard import BINARY, ModelCard
from sparkdl.image.limits import RENDERING_VERSION

MARGIN = 0.01
"""How much worse a figure may be before a model is refused, where nobody says otherwise."""

REPORT_FILE = "report.json"
"""In a model's folder of reports."""

_WANTED = ("verdict", "provenance", "data", "metrics", "internal", "others", "probes", "in_service", "in_service_name")


@dataclass(frozen=True)
class Figures:
    """One figure of the model in service and of the new one, on the same held-out images.

    Parameters
    ----------
    name : str
        ``"auroc"`` or ``"sensitivity"``; ``"accuracy"`` of more than two classes.
    served_name : str
        The model in service; the first time it is named, with a remark on how many of these images it was trained on.
    served, new : float
        The two models' figures.
    difference : float
        New less served.
    low, high : float or None
        Of the difference's 95 % interval; None where there is none.
    p_like : float or None
        Small where the sign is sure; see `training.figures.compare.Comparison`.
    note : str
        Why the interval is not to be relied on, e.g. for too few patients; empty where it is.
    n_images, n_patients : int
        Held out, and compared on.
    """

    name: str
    served_name: str
    served: float
    new: float
    difference: float
    low: float | None
    high: float | None
    p_like: float | None
    note: str
    n_images: int
    n_patients: int

    @property
    def surely_worse(self) -> bool:
        """Whether the interval, where it is to be relied on, lies wholly below 0."""
        return self.high is not None and self.high < 0 and not self.note

    def describe(self) -> str:
        """Give both figures, the difference and its interval, as a part of a sentence."""
        name = "AUROC" if self.name == "auroc" else self.name
        known = self.low is not None and self.high is not None
        interval = f"95 % interval {self.low:+.3f} to {self.high:+.3f}" if known else "no interval"
        remark = f" ({self.note})" if known and self.note else ""
        return (
            f"{name} {self.new:.3f}, that of {self.served_name} {self.served:.3f}, difference {self.difference:+.3f}, "
            f"{interval}{remark}"
        )


@dataclass(frozen=True)
class PromotionDecision:
    """Whether a model may be promoted, and why.

    Parameters
    ----------
    allowed : bool
        False: it is worse than the model in service.
    why : str
        One sentence without a full stop.
    figures : Figures or None
        What was decided by first, AUROC or accuracy; None where there is no comparison with the present champion.
    final : bool
        Whether it may not be promoted by force either.
    """

    allowed: bool
    why: str
    figures: Figures | None = None
    final: bool = False

    @property
    def compared(self) -> bool:
        """Whether the two models were asked about the same images."""
        return self.figures is not None

    def permits(self, *, force: bool) -> bool:
        """Tell whether it is promoted, where one may insist."""
        return self.allowed or (force and not self.final)


def decide(
    card: ModelCard, report: Mapping[str, Any] | None, champion: str | None, *, margin: float = MARGIN
) -> PromotionDecision:
    """Decide whether a model may take the champion's place.

    It may not, by force either, where it is for images of another rendering version than this release's: the next one
    would not serve it. It may not where its AUROC (accuracy, of more than two classes) is more than the margin below
    the champion's, or where the difference's interval lies wholly below 0. Of two classes it may not either where its
    sensitivity, at the thresholds that the two decide with, is below the champion's by both: by more than the margin,
    and surely. An interval with a remark, e.g. of too few patients, makes nothing sure. Where the two were not
    compared, it may: a first model has nothing to be compared with, and an older one was compared with another
    champion.

    Parameters
    ----------
    card : ModelCard
        Of the model to promote.
    report : mapping, optional
        What training found out about it, as ``Evaluation.to_dict`` gives it.
    champion : str, optional
        Version of the model in service.
    margin : float
        How much worse the figure may be.

    Returns
    -------
    PromotionDecision
        With figures where the two were compared.
    """
    if card.rendering_version != RENDERING_VERSION and card.version != champion:
        why = (
            f"it is for images of rendering version {card.rendering_version}, and models of version "
            f"{RENDERING_VERSION} alone are promoted: train one with 'xray train --data FOLDER'; 'xray models "
            "rollback' goes back to an earlier champion of any version that is served"
        )
        return PromotionDecision(False, why, final=True)
    if champion is None:
        return PromotionDecision(True, "there is no model in service to compare it with")
    why_not = _why_not_compared(card, report, champion)
    two = len(card.labels) == BINARY
    figures = (
        None
        if why_not or report is None
        else _read_figures(report, "auroc" if two else "accuracy", report["in_service_name"])
    )
    if figures is None or report is None:
        reason = why_not or "the figure could not be computed"
        return PromotionDecision(True, f"not compared with the model in service, {champion}: {reason}")
    sensitivity = _read_figures(report, "sensitivity", champion) if two else None
    fault = _find_fault(figures, sensitivity, margin)
    said = "; ".join(one.describe() for one in (figures, sensitivity) if one is not None)
    on = f"on the same {figures.n_images} held-out images of {figures.n_patients} patients"
    judged = fault or "not shown to be worse than the model in service"
    return PromotionDecision(not fault, f"{judged}: {said}; {on}", figures)


def _find_fault(figures: Figures, sensitivity: Figures | None, margin: float) -> str:
    """Say in what a model is worse than the one in service; empty where it is not shown to be."""
    if figures.difference < -margin:
        return f"worse than the model in service by more than {margin:g}"
    if figures.surely_worse:
        return "surely worse than the model in service"
    if sensitivity is not None and sensitivity.surely_worse and sensitivity.difference < -margin:
        return f"surely less sensitive than the model in service, by more than {margin:g}"
    return ""


def read_report(folder: Path) -> dict[str, Any] | None:
    """Read what training found out about a model.

    Parameters
    ----------
    folder : Path
        Of the model's reports.

    Returns
    -------
    dict or None
        None where there is no report.

    Raises
    ------
    ModelLoadError
        There is one, and it cannot be read or lacks a part.
    """
    path = folder / REPORT_FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        msg = f"cannot read the report {path}: {type(exc).__name__}: {exc}"
        raise ModelLoadError(msg) from exc
    lacking = [name for name in _WANTED if not isinstance(found, dict) or name not in found]
    if lacking:
        msg = f"cannot read the report {path}: it lacks {', '.join(lacking)}"
        raise ModelLoadError(msg)
    return found


def _why_not_compared(card: ModelCard, report: Mapping[str, Any] | None, champion: str) -> str:
    if report is None:
        return "there is no report on the new one"
    if report["provenance"]["sha256"] != card.sha256:
        return "the report is about other files than this model's"
    if not report["in_service"]:
        return "the report has no comparison"
    # The name may go on with a remark: "20260131T120000Z (trained on 12 of these 48 images)".
    compared_with = str(report["in_service_name"]).partition(" ")[0]
    return "" if compared_with == champion else f"the report compares it with {compared_with}"


def _read_figures(report: Mapping[str, Any], name: str, served_name: str) -> Figures | None:
    # Reports of the release before have no "in_service_on": there all held-out images were compared on.
    found, on = report["in_service"].get(name), report.get("in_service_on") or report["internal"]
    if found is None or found["difference"]["value"] is None:
        return None
    difference = found["difference"]
    return Figures(
        name=name,
        served_name=served_name,
        served=found["first"],
        new=found["second"],
        difference=difference["value"],
        low=difference["low"],
        high=difference["high"],
        p_like=found["p_like"],
        note=difference.get("note", ""),
        n_images=on["n_images"],
        n_patients=on["n_patients"],
    )
