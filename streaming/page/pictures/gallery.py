"""Every picture that the page shows, by the image's place in Kafka."""

import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path

from schemas.errors import ModelLoadError, SettingsError
from schemas.modelcard import read_card
from schemas.registry import CHAMPION_FILE, find_model
from sparkdl.engine.neighbours import TrainingVectors, read_vectors
from sparkdl.image.limits import RENDERING_VERSION, DecodeLimits
from sparkdl.image.viewer import View
from streaming.kafka.places import Place
from streaming.page.pictures import explaining, making
from streaming.page.pictures.explaining import Insight
from streaming.page.pictures.imagereader import ImageReader, ImageRecord
from streaming.page.pictures.picture import (
    Explanation,
    Neighbour,
    NoveltyDistance,
    Picture,
    PictureError,
    PictureGone,
    PictureUnreadable,
    ScoredOutcome,
    Step,
)
from streaming.page.pictures.picturecache import PictureCache, ThumbnailFolder, to_picture
from streaming.page.pictures.worker import Turn, Worker
from streaming.settings import StreamSettings

_log = logging.getLogger(__name__)

MAX_THUMBNAIL_BYTES = 2**30
"""Of all thumbnails that are kept on disk, unless told otherwise."""

_THUMBNAILS_BYTES = 32 * 2**20  # some 8,000 of them
_VIEWS_BYTES = 64 * 2**20  # about ten full views
_INSIGHTS = 256  # of 1,280 features: 5 kB each
_VECTOR_SETS = 2
_REFUSALS = 1000
_STEPS = 64  # of 50 kB each
_USUAL_SIZE = (224, 224)


class Gallery:
    """Makes pictures of images in the images topic; safe to use by several threads.

    Pictures are made in one child process, models are asked in another, each one task at a time: what an image does to
    its decoder, or how long an explanation takes, stops no other request.

    Parameters
    ----------
    settings : StreamSettings
        Broker, topic, limits of decoding, and the folders of models and reports.
    thumbnails : Path, optional
        Folder that keeps the thumbnails that were shown after the topic's retention; without one they are in memory
        alone.
    max_thumbnail_bytes : int
        Of all thumbnails there; the oldest go first.

    Raises
    ------
    SettingsError
        The folder cannot be used.

    Notes
    -----
    Every method blocks for as long as its picture takes. ``sha256`` is what the outcome says of the image's bytes: with
    it nothing is read that was shown before, and another image at the same place is never shown for it.
    """

    def __init__(
        self,
        settings: StreamSettings,
        *,
        thumbnails: Path | None = None,
        max_thumbnail_bytes: int = MAX_THUMBNAIL_BYTES,
    ) -> None:
        self._settings = settings
        self._limits = settings.score.to_limits()
        self._folder = _open_folder(thumbnails, max_thumbnail_bytes) if thumbnails else None
        self._reader = ImageReader(settings.kafka)
        self._thumbnails, self._views = PictureCache(_THUMBNAILS_BYTES), PictureCache(_VIEWS_BYTES)
        self._maker, self._explainer = Worker(), Worker(task_s=60.0)
        self._unreadable: OrderedDict[tuple[str, str], str] = OrderedDict()  # within turns of the maker alone
        self._steps: OrderedDict[tuple[str, tuple[int, int]], list[Step]] = OrderedDict()  # written likewise
        self._insights: OrderedDict[tuple[str, str], Insight] = OrderedDict()
        self._insights_lock = threading.Lock()
        self._read_vectors = lru_cache(_VECTOR_SETS)(self._find_vectors)

    def prepare(self) -> None:
        """Start both processes, so that the first picture need not wait some seconds for them; returns at once."""
        self._maker.prepare(making.get_ready)
        self._explainer.prepare(explaining.get_ready)

    def thumbnail(self, place: Place, *, sha256: str = "") -> Picture:
        """Give a picture of at most 256 pixels and a few kilobytes, as the stream renders the image.

        Parameters
        ----------
        place : Place
            Of the image in its topic.
        sha256 : str
            See the class.

        Raises
        ------
        PictureGone, PictureUnreadable, PictureError
            The message says why, for people.
        """
        if sha256 and (known := self._find_thumbnail(sha256)):
            return known
        with self._maker.take_turn() as turn:
            if sha256 and (known := self._find_thumbnail(sha256)):  # made while this one waited
                return known
            record = self._reader.read(place, sha256=sha256)
            if known := self._find_thumbnail(record.sha256):
                return known
            picture = self._make(turn, making.thumbnail, record)
        self._keep_thumbnail(record, picture)
        return picture

    def full(self, place: Place, *, sha256: str = "") -> Picture:
        """Give a picture of at most 2048 pixels whose window people move; 16 bits where the image has more than 8.

        Parameters
        ----------
        place, sha256
            See `thumbnail`.

        Raises
        ------
        PictureGone, PictureUnreadable, PictureError
            See `thumbnail`.
        """
        if sha256 and (known := self._views.get(sha256)):
            return known
        with self._maker.take_turn() as turn:
            record = self._reader.read(place, sha256=sha256)
            if known := self._views.get(record.sha256):
                return known
            picture = self._make(turn, making.full, record)
        self._views.put(record.sha256, picture)
        return picture

    def steps(self, place: Place, *, sha256: str = "") -> list[Step]:
        """Show what rendering did, one picture a step, for the network that serves.

        Parameters
        ----------
        place, sha256
            See `thumbnail`.

        Raises
        ------
        PictureGone, PictureUnreadable, PictureError
            See `thumbnail`.
        """
        size = self._find_size()
        if sha256 and (known := self._steps.get((sha256, size))):
            return known
        with self._maker.take_turn() as turn:
            record = self._reader.read(place, sha256=sha256)
            seen = turn.run(making.steps, record.payload, self._limits, size, RENDERING_VERSION)
            found = [Step(step.name, _describe(step.what, step.decided_by), to_picture(view)) for step, view in seen]
            self._steps[record.sha256, size] = found
            while len(self._steps) > _STEPS:
                self._steps.popitem(last=False)
        return found

    def explain(self, place: Place, outcome: ScoredOutcome, *, sha256: str = "") -> Explanation:
        """Put the classifier's weights on the network's last map, and the sum of that beside the published logit.

        Parameters
        ----------
        place, sha256
            See `thumbnail`.
        outcome : ScoredOutcome
            The prediction; its model is asked, whichever serves now.

        Returns
        -------
        Explanation
            Without a map where the model has none, or is not on this machine: it says why.

        Raises
        ------
        PictureGone, PictureUnreadable, PictureError
            See `thumbnail`.
        """
        try:
            insight = self._look_into(place, outcome.model, sha256)
        except ModelLoadError as exc:
            return Explanation(why_none=str(exc))
        if insight.map is None:
            return Explanation(precision=insight.precision, why_none=insight.why_none)
        local = insight.map + insight.intercept
        found, published = float(local.mean(dtype="float64")), _logit(outcome.probability)
        return Explanation(
            map=insight.map,
            intercept=insight.intercept,
            logit_from_map=found,
            logit_published=published,
            difference=found - published,
            peak=explaining.find_peak(insight.map),
            strongest=float(abs(local).max()),
            precision=insight.precision,
            picture=to_picture(explaining.paint_map(local.astype("float32"))),
        )

    def neighbours(self, place: Place, k: int = 8, *, model: str = "", sha256: str = "") -> list[Neighbour]:
        """Find the training images that are most like an image to the model, by vectors that training stored.

        Parameters
        ----------
        place, sha256
            See `thumbnail`.
        k : int
            How many at most.
        model : str
            Version of the model; by default the one that serves.

        Returns
        -------
        list of Neighbour
            Nearest first.

        Raises
        ------
        PictureGone, PictureUnreadable, PictureError
            See `thumbnail`; also where the model kept no vectors, or is not on this machine.
        """
        insight = self._ask(place, model, sha256)
        vectors, root = self._read_vectors(insight.version)
        return [
            Neighbour(_relative(vectors.files[place], root), vectors.labels[place], distance)
            for place, distance in vectors.find_nearest(insight.features, k)
        ]

    def training_thumbnail(self, file: str, *, model: str = "") -> Picture:
        """Give a picture of a training image; of one that a model learned from, and of no other file.

        Parameters
        ----------
        file : str
            As `neighbours` names it.
        model : str
            See `neighbours`.

        Raises
        ------
        PictureGone, PictureUnreadable, PictureError
            There is no such training image, or it is not there any more.
        """
        try:
            _, version = self._find_model(model)
        except ModelLoadError as exc:
            raise PictureError(str(exc)) from exc
        vectors, root = self._read_vectors(version)
        path = next((one for one in vectors.files if _relative(one, root) == file), None)
        if path is None:
            msg = f"model {version} learned from no image of this name"
            raise PictureError(msg)
        if known := self._thumbnails.get(path) or self._find_thumbnail(path):
            return known
        if not os.path.isabs(path):
            msg = "this image came by the stream: its vector was kept for training, and no picture of it"
            raise PictureGone(msg)
        with self._maker.take_turn() as turn:
            view = turn.run(making.thumbnail_of_file, Path(path), self._settings.to_file_limits())
        picture = to_picture(view)
        self._thumbnails.put(path, picture)
        return picture

    def novelty(self, place: Place, *, model: str = "", sha256: str = "") -> NoveltyDistance | None:
        """Measure how unlike the training images an image is.

        Parameters
        ----------
        place, model, sha256
            See `neighbours`.

        Returns
        -------
        NoveltyDistance or None
            None of a model that judges every image.

        Raises
        ------
        PictureGone, PictureUnreadable, PictureError
            See `neighbours`.
        """
        insight = self._ask(place, model, sha256)
        if insight.distance is None or insight.limit is None:
            return None
        return NoveltyDistance(insight.distance, insight.limit)

    def close(self) -> None:
        """End both processes and the connection."""
        self._maker.close()
        self._explainer.close()
        self._reader.close()

    # -- making

    def _make(self, turn: Turn, make: Callable[[bytes, DecodeLimits], View], record: ImageRecord) -> Picture:
        """Have a picture made; what was found unreadable is not tried again, for it may have ended the process."""
        key = make.__name__, record.sha256
        if why := self._unreadable.get(key):
            raise PictureUnreadable(why)
        try:
            return to_picture(turn.run(make, record.payload, self._limits))
        except PictureUnreadable as exc:
            self._unreadable[key] = str(exc)
            while len(self._unreadable) > _REFUSALS:
                self._unreadable.popitem(last=False)
            raise

    def _find_thumbnail(self, sha256: str) -> Picture | None:
        if known := self._thumbnails.get(sha256):
            return known
        stored = self._folder.get(sha256) if self._folder else None
        if stored:
            self._thumbnails.put(sha256, stored)
        return stored

    def _keep_thumbnail(self, record: ImageRecord, picture: Picture) -> None:
        self._thumbnails.put(record.sha256, picture)
        if self._folder is None or record.burned_in:
            return
        try:
            self._folder.put(record.sha256, picture)
        except OSError as exc:  # a full disk is no reason to show nothing
            _log.warning("a thumbnail could not be kept: %s", exc.strerror)

    # -- models

    def _ask(self, place: Place, model: str, sha256: str) -> Insight:
        try:
            return self._look_into(place, model, sha256)
        except ModelLoadError as exc:
            raise PictureError(str(exc)) from exc

    def _look_into(self, place: Place, model: str, sha256: str) -> Insight:
        folder, version = self._find_model(model)
        if sha256 and (known := self._known_insight((sha256, version))):
            return known
        with self._explainer.take_turn() as turn:
            record = self._reader.read(place, sha256=sha256)
            key = (record.sha256, version)
            return self._known_insight(key) or self._compute(turn, key, record.payload, folder)

    def _known_insight(self, key: tuple[str, str]) -> Insight | None:
        with self._insights_lock:
            if key in self._insights:
                self._insights.move_to_end(key)
            return self._insights.get(key)

    def _compute(self, turn: Turn, key: tuple[str, str], payload: bytes, folder: Path) -> Insight:
        insight = turn.run(explaining.look_into, payload, folder, self._limits)
        with self._insights_lock:
            self._insights[key] = insight
            while len(self._insights) > _INSIGHTS:
                self._insights.popitem(last=False)
        return insight

    def _find_model(self, version: str) -> tuple[Path, str]:
        """Give folder and name of a version, by default of the one that serves."""
        own = self._settings.model
        if own is not None and version in ("", self._own_version):
            return own, self._own_version
        folder = find_model(self._settings.models_folder, version or CHAMPION_FILE)
        return folder, folder.name

    @cached_property
    def _own_version(self) -> str:
        """Version of the model that the settings name by its folder, which may be called anything."""
        return "" if self._settings.model is None else read_card(self._settings.model).version

    def _find_size(self) -> tuple[int, int]:
        try:
            return explaining.read_taken_size(self._find_model("")[0])
        except (ModelLoadError, OSError):
            return _USUAL_SIZE

    def _find_vectors(self, version: str) -> tuple[TrainingVectors, str]:
        """Read the vectors of a model, and the folder that all of their files lie in."""
        try:
            vectors = read_vectors(self._settings.reports_folder / version)
        except ModelLoadError as exc:
            raise PictureError(str(exc)) from exc
        if vectors is None:
            msg = (
                f"no training vectors lie beside the report of model {version}: it was trained before they were kept, "
            )
            msg += "or on another machine"
            raise PictureError(msg)
        folders = {os.path.dirname(file) for file in vectors.files if os.path.isabs(file)}
        return vectors, os.path.commonpath(folders) if folders else ""


def _open_folder(folder: Path, max_bytes: int) -> ThumbnailFolder:
    try:
        return ThumbnailFolder(folder, max_bytes)
    except OSError as exc:
        msg = (
            f"--thumbnails: cannot use {folder}: {exc.strerror}. Give this user leave to write there, or name another."
        )
        raise SettingsError(msg) from exc


def _relative(file: str, root: str) -> str:
    return os.path.relpath(file, root) if root and os.path.isabs(file) else file


def _describe(what: str, decided_by: dict[str, str]) -> str:
    why = ", ".join(f"{name} {value}" for name, value in decided_by.items())
    return f"{what} ({why})" if why else what


def _logit(probability: float | None) -> float:
    if probability is None:
        return math.nan
    if not 0 < probability < 1:
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability) - math.log1p(-probability)
