"""The trained models as the page shows them: cards, what training found out, aliases and their history.

Everything is read from the folders of models and of reports; a model's files are hashed once, and again where its card
is another one.
"""

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ModelLoadError
from schemas.modelcard import BINARY, CARD_FILE, ModelCard, read_card
from schemas.registry import CHALLENGER_FILE, CHAMPION_FILE, Move, read_aliases, read_history
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

_REPORT_FILE, _PAGE_FILE = "report.json", "report.html"
"""As training names them in a model's folder of reports."""


@dataclass(frozen=True)
class Figure:
    """One figure of training's report, of the held-out images.

    Parameters
    ----------
    name : str
        As the report has it, e.g. ``"auroc"``.
    value : float or None
        None where it could not be computed.
    low, high : float or None
        Of the 95 % interval.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ModelEntry:
    """One trained model.

    Parameters
    ----------
    version : str
        Its name in the folder.
    card : ModelCard or None
        None of a damaged model.
    damage : str
        What is wrong with it; empty where nothing is.
    aliases : tuple of str
        ``"champion"`` or ``"challenger"``.
    verdict : str
        Training's, e.g. ``"confounded"``; empty without a report.
    reasons : tuple of str
        Of the verdict.
    figures : tuple of Figure
        Empty without a report.
    n_images, n_patients : int or None
        Held out.
    compared_with : str
        Version of the model in service that training compared it with; empty where it did not.
    has_report : bool
        Whether there is a page to show; see `ModelsView.find_report_page`.
    """

    version: str
    card: ModelCard | None
    damage: str = ""
    aliases: tuple[str, ...] = ()
    verdict: str = ""
    reasons: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    n_images: int | None = None
    n_patients: int | None = None
    compared_with: str = ""
    has_report: bool = False

    @property
    def headline(self) -> Figure | None:
        """The one figure to know a model by: AUROC of two classes, accuracy of more."""
        two = self.card is not None and len(self.card.labels) == BINARY
        return next((one for one in self.figures if one.name == ("auroc" if two else "accuracy")), None)


class ModelsView:
    """Reads models and reports; safe between threads.

    Parameters
    ----------
    settings : StreamSettings
        Folders of models and of reports.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self._models = settings.models_folder
        self._reports = settings.reports_folder
        self._cards: dict[str, tuple[tuple[int, int], ModelCard | None, str]] = {}
        self._lock = threading.Lock()

    def list_models(self) -> list[ModelEntry]:
        """List all models, the newest first; damaged ones behind them."""
        aliases = read_aliases(self._models)
        versions = [path.name for path in self._models.glob("[!.]*") if path.is_dir()]
        entries = [self._describe(version, aliases) for version in sorted(versions)]
        return sorted(entries, key=lambda one: one.card.created_at if one.card else "", reverse=True)

    def knows(self, version: str) -> bool:
        """Whether a model of this version is in the folder, damaged or not."""
        return any(path.name == version for path in self._models.glob("[!.]*") if path.is_dir())

    def find_champion(self) -> ModelEntry | None:
        """Find the model that is served; None where none was promoted."""
        return self._find_alias(CHAMPION_FILE)

    def find_challenger(self) -> ModelEntry | None:
        """Find the model that may be the next one; None where there is none."""
        return self._find_alias(CHALLENGER_FILE)

    def list_history(self, limit: int = 50) -> list[Move]:
        """List the moves of the aliases, newest first; none where they cannot be read."""
        try:
            return list(reversed(read_history(self._models)))[:limit]
        except ModelLoadError as exc:
            log.warning("%s", exc)
            return []

    def find_report_page(self, version: str) -> Path | None:
        """Find the HTML page that training wrote about a model; None where there is none."""
        # A version is a name, never a way out of the folder.
        if not version or version.startswith(".") or Path(version).name != version:
            return None
        path = self._reports / version / _PAGE_FILE
        try:
            return path if path.is_file() else None
        except OSError:  # longer than a name can be
            return None

    def _find_alias(self, alias: str) -> ModelEntry | None:
        aliases = read_aliases(self._models)
        return self._describe(aliases[alias], aliases) if alias in aliases else None

    def _describe(self, version: str, aliases: Mapping[str, str]) -> ModelEntry:
        card, damage = self._read_card(version)
        own = tuple(alias for alias, named in aliases.items() if named == version)
        has_page = self.find_report_page(version) is not None
        report = self._read_report(version)
        try:
            internal, verdict = report["internal"], report["verdict"]
            figures = tuple(
                Figure(name, one["value"], one["low"], one["high"]) for name, one in internal["figures"].items()
            )
            return ModelEntry(
                version,
                card,
                damage,
                own,
                str(verdict["verdict"]),
                tuple(map(str, verdict["reasons"])),
                figures,
                int(internal["n_images"]),
                int(internal["n_patients"]),
                str(report["in_service_name"]),
                has_page,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return ModelEntry(version, card, damage, own, has_report=has_page)

    def _read_card(self, version: str) -> tuple[ModelCard | None, str]:
        folder = self._models / version
        try:
            state = (folder / CARD_FILE).stat()
        except OSError:
            return None, f"there is no card {CARD_FILE}"
        mark = (state.st_mtime_ns, state.st_ino)
        with self._lock:
            known = self._cards.get(version)
            if known is not None and known[0] == mark:
                return known[1], known[2]
        try:
            found: tuple[ModelCard | None, str] = read_card(folder), ""
        except ModelLoadError as exc:
            found = None, str(exc)
        with self._lock:
            self._cards[version] = (mark, *found)
        return found

    def _read_report(self, version: str) -> Any:
        path = self._reports / version / _REPORT_FILE
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as exc:
            log.warning("the report %s cannot be read: %s", path, type(exc).__name__)
            return {}
