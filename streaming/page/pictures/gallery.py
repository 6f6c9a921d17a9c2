"""Every picture that the page shows, by the image's place in Kafka."""

from pathlib import Path

from streaming.kafka.places import Place
from streaming.page.pictures.picture import Explanation, Neighbour, NoveltyDistance, Picture, ScoredOutcome, Step
from streaming.settings import StreamSettings

MAX_THUMBNAIL_BYTES = 2**30
"""Of all thumbnails that are kept on disk, unless told otherwise."""


class Gallery:
    """Makes pictures of images in the images topic; safe to use by several threads.

    Parameters
    ----------
    settings : StreamSettings
        Broker, topic, limits of decoding, and the folders of models and reports.
    thumbnails : Path, optional
        Folder that keeps thumbnails after the topic's retention; without one they are in memory alone.
    max_thumbnail_bytes : int
        Of all thumbnails there; the oldest go first.
    """

    def __init__(
        self,
        settings: StreamSettings,
        *,
        thumbnails: Path | None = None,
        max_thumbnail_bytes: int = MAX_THUMBNAIL_BYTES,
    ) -> None: ...

    def thumbnail(self, place: Place, *, sha256: str = "") -> Picture: ...

    def full(self, place: Place, *, sha256: str = "") -> Picture: ...

    def steps(self, place: Place, *, sha256: str = "") -> list[Step]: ...

    def explain(self, place: Place, outcome: ScoredOutcome, *, sha256: str = "") -> Explanation: ...

    def neighbours(self, place: Place, k: int = 8, *, model: str = "", sha256: str = "") -> list[Neighbour]: ...

    def training_thumbnail(self, file: str, *, model: str = "") -> Picture: ...

    def novelty(self, place: Place, *, model: str = "", sha256: str = "") -> NoveltyDistance | None: ...

    def close(self) -> None: ...
