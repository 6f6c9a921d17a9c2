"""A served page whose broker has images and outcomes; one for each module of tests."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from streaming.kafka.topics import create_topics, label_topics, receipt_topics, wanted_topics
from streaming.page.knows.moves import MoveAnswer
from streaming.page.service import PageState, serve_page
from streaming.settings import KafkaSettings, StreamSettings
from tests.pageparts import Published, answer, draw_images, publish
from xray.broker import LocalBroker

UNANSWERED = 3


class NoMoves:
    """A double of what decides on models: there is none here."""

    def promote(self, version: str, *, why: str) -> MoveAnswer:
        return MoveAnswer(False, f"refused: there is no {version}.")

    def roll_back(self, *, why: str) -> MoveAnswer:
        return MoveAnswer(False, "refused: there is nothing to go back to.")


@dataclass(frozen=True)
class Served:
    """A page, its settings, and the images that it shows."""

    state: PageState
    settings: StreamSettings
    images: list[Published]

    @property
    def kafka(self) -> KafkaSettings:
        return self.settings.kafka


@pytest.fixture(scope="module")
def served(
    base_settings: StreamSettings, broker: LocalBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    own = f"page-{uuid.uuid4().hex[:8]}"
    home: Path = tmp_path_factory.mktemp("page-home")
    names = ("images", "predictions", "features", "deadletters", "labels", "labels_deadletters", "receipts")
    kafka = base_settings.kafka.model_copy(update={f"{name}_topic": f"{own}.{name}" for name in names})
    page = base_settings.page.model_copy(update={"port": 0, "allow_operate": True, "stream_url": "http://127.0.0.1:9"})
    settings = base_settings.model_copy(update={"home": home, "kafka": kafka, "page": page})
    create_topics(kafka, wanted_topics(kafka) | label_topics(kafka) | receipt_topics(kafka))
    images = publish(kafka, draw_images(40))
    answer(kafka, images[:-UNANSWERED])
    with serve_page(settings, NoMoves()) as state:
        yield Served(state, settings, images)
