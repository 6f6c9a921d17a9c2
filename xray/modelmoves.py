"""Promoting a model and going back: one way for ``xray models promote``, ``xray models rollback`` and the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.errors import ModelLoadError
from schemas.modelcard import ModelCard, read_card
from schemas.registry import CHAMPION_FILE, Rollback, find_model, promote, read_aliases, rollback
from sparkdl.image.limits import RENDERING_VERSIONS, describe_other_rendering
from streaming.page.knows.moves import MoveAnswer
from streaming.settings import StreamSettings
from training.lifecycle.promotion import MARGIN, PromotionDecision, decide, read_report

_SERVED = "A running stream serves it from its next batch on."


@dataclass(frozen=True)
class Promotion:
    """What became of a promotion that was asked for.

    Parameters
    ----------
    card : ModelCard
        Of the version.
    before : str or None
        The champion until then.
    decision : PromotionDecision
        What the comparison says.
    promoted : bool
        Whether it is the champion now.
    report : mapping or None
        On the version.
    remark : str
        What is wrong with a report that cannot be read; empty where nothing is.
    """

    card: ModelCard
    before: str | None
    decision: PromotionDecision
    promoted: bool
    report: Mapping[str, Any] | None
    remark: str

    @property
    def forced(self) -> bool:
        """Whether it was promoted although the comparison spoke against it."""
        return self.promoted and not self.decision.allowed

    @property
    def said(self) -> str:
        """What was done, in one or two sentences."""
        name = f"{self.card.name} {self.card.version}"
        if not self.promoted:
            return f"refused: {self.decision.why}."
        if self.before == self.card.version:
            return f"{name} is the champion already."
        return f"Promoted {name}{' by force' if self.forced else ''}. {_SERVED}"

    @property
    def warning(self) -> str:
        """What speaks against the model's figures; empty where nothing does."""
        return warn_of(self.report)


def promote_model(
    settings: StreamSettings,
    version: str,
    *,
    force: bool = False,
    margin: float = MARGIN,
    why: str = "",
    command: str = "xray models promote",
) -> Promotion:
    """Let the stream serve a version, where the report on it does not show that it is worse than the champion.

    Parameters
    ----------
    settings : StreamSettings
        Folders of models and of reports.
    version : str
        Its name, or an alias.
    force : bool
        Also where it is worse.
    margin : float
        How much worse its figure may be.
    why, command : str
        For the history.

    Raises
    ------
    ModelLoadError, ChampionChangedError
        See `schemas.registry.promote`.
    """
    card = read_card(find_model(settings.models_folder, version))
    champion = read_aliases(settings.models_folder).get(CHAMPION_FILE)
    report, remark = find_report(settings, card.version)
    decision = decide(card, report, champion, margin=margin)
    found = Promotion(card, champion, decision, decision.permits(force=force), report, remark)
    if found.promoted and champion != card.version:
        reason = "; ".join(filter(None, (why, decision.why)))
        folder = settings.models_folder
        promote(folder, card.version, expected=champion, why=reason, forced=found.forced, command=command)
    return found


def roll_back_model(settings: StreamSettings, *, why: str = "", command: str = "xray models rollback") -> Rollback:
    """Serve the champion before the last promotion again.

    Raises
    ------
    ModelLoadError
        See `schemas.registry.rollback`.
    """
    return rollback(settings.models_folder, why=why, command=command, find_fault=_find_fault)


def describe_rollback(done: Rollback) -> str:
    """Say what a rollback did."""
    return f"Back from {done.before} to {done.card.name} {done.card.version}. {_SERVED}"


def find_report(settings: StreamSettings, version: str) -> tuple[dict[str, Any] | None, str]:
    """Give the report on a model, and what is wrong with one that cannot be read."""
    try:
        return read_report(settings.reports_folder / version), ""
    except ModelLoadError as exc:
        return None, str(exc)


def warn_of(report: Mapping[str, Any] | None) -> str:
    """Say what speaks against a model's figures; empty where nothing does."""
    if report is None:
        return ""
    verdict = report["verdict"]
    if verdict["verdict"] == "confounded":
        return "its figures are confounded: no evidence that a disease is detected"
    if verdict["verdict"] == "unknown":
        return "; ".join(("shortcuts were not looked for", *verdict["reasons"]))
    return ""


def _find_fault(card: ModelCard) -> str:
    """Say why the stream does not serve a model; empty where it does."""
    return "" if card.rendering_version in RENDERING_VERSIONS else describe_other_rendering(card.rendering_version)


class PageMoves:
    """The same for the page, which insists on nothing; `streaming.page.knows.moves.ModelMoves`.

    MLflow is not told: 'xray models sync' does that.

    Parameters
    ----------
    settings : StreamSettings
        Folders of models and of reports.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings

    def promote(self, version: str, *, why: str) -> MoveAnswer:
        """Let the stream serve a version; the answer has what the comparison says."""
        done = promote_model(self._settings, version, why=why, command="xray page")
        if not done.promoted:
            return MoveAnswer(False, done.said)
        compared = f"{done.decision.why[0].upper()}{done.decision.why[1:]}."
        warning = f"Warning: {done.warning}." if done.warning else ""
        return MoveAnswer(True, " ".join(filter(None, (done.said, compared, warning))))

    def roll_back(self, *, why: str) -> MoveAnswer:
        """Serve the champion before the last promotion again; the answer has which ones were skipped."""
        done = roll_back_model(self._settings, why=why, command="xray page")
        skipped = "".join(f" Skipped {version}: {reason}." for version, reason in done.skipped)
        return MoveAnswer(True, f"{describe_rollback(done)}{skipped}")
