"""MLflow is told what the models' aliases name; the registry here is the one that counts."""

from collections.abc import Iterable, Sequence

from schemas.errors import JobError
from schemas.modelcard import ModelCard, read_card
from schemas.registry import CHALLENGER_FILE, CHAMPION_FILE, read_aliases
from streaming.settings import StreamSettings
from xray.console import err, step
from xray.modelmoves import find_report


def mirror_aliases(settings: StreamSettings, name: str, also: Sequence[ModelCard] = ()) -> bool:
    """Let MLflow's aliases name what ours name; where that fails, say so in one line and go on.

    Parameters
    ----------
    settings : StreamSettings
        MLflow's address, and the folders.
    name : str
        Of the model, ``card.name``.
    also : sequence of ModelCard
        Versions to tell of that have no alias.

    Returns
    -------
    bool
        Whether MLflow has it.
    """
    try:
        with step("telling MLflow"):
            mirror_all(settings, name, also)
    except JobError as exc:
        err.print(f"not mirrored to MLflow: {exc}. Later: xray models sync", markup=False, soft_wrap=True)
        return False
    return True


def mirror_all(settings: StreamSettings, name: str, also: Sequence[ModelCard]) -> None:
    """Tell MLflow of the models that have an alias and of some more, then which alias names which."""
    from training.lifecycle.tracking import mirror_alias

    aliases = read_aliases(settings.models_folder)
    cards = {alias: read_card(settings.models_folder / version) for alias, version in aliases.items()}
    track_all(settings, [*also, *cards.values()])
    for alias in (CHAMPION_FILE, CHALLENGER_FILE):
        card = cards.get(alias)
        version = card.version if card is not None and card.name == name else None
        mirror_alias(settings.tracking_uri, name, alias, version)


def track_all(settings: StreamSettings, cards: Iterable[ModelCard]) -> None:
    """Register models and their runs that MLflow does not know yet."""
    from training.lifecycle.tracking import track_run

    for card in cards:
        report, _ = find_report(settings, card.version)
        track_run(
            settings.tracking_uri,
            settings.tracking.experiment,
            card,
            report,
            settings.reports_folder / card.version,
            settings.models_folder / card.version,
        )
