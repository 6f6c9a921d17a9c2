"""Which micro-batches count as one image's, and what becomes of their figures."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import oneimage
from benchmarks.oneimage import Batch, Batches, OneImage, Part, measure_one_image


def tell(batches: Batches, images: tuple[int, int], canaries: tuple[int, int] = (0, 0), **parts: int) -> None:
    """Tell of a micro-batch by how many records of each topic were read before it and after it."""
    ends = [
        json.dumps({"images": {"0": image // 2, "1": image - image // 2}, "canary": {"0": canary}})
        for image, canary in zip(images, canaries, strict=True)
    ]
    records = images[1] - images[0] + canaries[1] - canaries[0]
    source = SimpleNamespace(startOffset=ends[0] if any((images[0], canaries[0])) else None, endOffset=ends[1])
    progress = SimpleNamespace(sources=[source], numInputRows=records, durationMs=parts)
    batches.onQueryProgress(SimpleNamespace(progress=progress))


@pytest.mark.parametrize(
    ("images", "canaries", "found"),
    [
        ((0, 1), (0, 0), [(1, 1, True)]),
        ((7, 8), (4, 4), [(1, 1, True)]),
        ((7, 8), (4, 6), [(1, 3, False)]),
        ((7, 9), (4, 4), [(2, 2, False)]),
        ((7, 7), (4, 6), []),
        ((7, 7), (4, 5), []),
        ((7, 7), (4, 4), []),
    ],
)
def test_only_a_micro_batch_of_one_image_and_nothing_else_is_one_images(
    images: tuple[int, int], canaries: tuple[int, int], found: list[tuple[int, int, bool]]
) -> None:
    batches = Batches("images")
    tell(batches, images, canaries)
    taken = batches.take(images[1] - images[0])
    assert [(batch.images, batch.records, batch.is_of_one_image) for batch in taken] == found


def test_what_warmed_up_does_not_count() -> None:
    batches, loads = Batches("images"), []

    def load(images: int) -> list[float]:
        published = sum(loads)
        for place in range(published, published + images):
            tell(batches, (place, place + 1), triggerExecution=1000 if not loads else 90 + place)
        loads.append(images)
        return [0.5 if len(loads) == 1 else 0.1] * images

    found = measure_one_image(load, batches, 3, 2)
    assert loads == [2, 3]
    assert (found.images, found.batches) == (3, 3)
    assert found.parts_ms["triggerExecution"].median == 93
    assert found.latency_seconds == {"p50": 0.1, "p95": 0.1}


def test_a_part_is_that_of_the_micro_batches_with_one_image_and_none_where_spark_names_none() -> None:
    alone = [Batch(1, 1, {"triggerExecution": ms, "addBatch": ms - 10}) for ms in range(100, 201)]
    together = [Batch(1, 3, {"triggerExecution": 9000}), Batch(2, 2, {"triggerExecution": 9000})]
    found = OneImage.of([0.1, 0.2, 0.3], [*alone, *together])
    assert (found.images, found.batches) == (3, 101)
    assert found.parts_ms["triggerExecution"] == Part(150, 195)
    assert found.parts_ms["addBatch"] == Part(140, 185)
    assert found.parts_ms["walCommit"] == Part(0, 0)


@pytest.mark.parametrize("batches", [[], [Batch(2, 2, {})], [Batch(1, 3, {}), Batch(1, 2, {})]])
def test_without_a_micro_batch_of_one_image_there_is_no_figure(batches: list[Batch]) -> None:
    with pytest.raises(RuntimeError, match="had one image alone"):
        OneImage.of([0.1], batches)


def test_images_that_the_query_never_tells_of_are_not_waited_for_without_end(monkeypatch: Any) -> None:
    monkeypatch.setattr(oneimage, "_PROGRESS_TIMEOUT_S", 0.01)
    batches = Batches("images")
    tell(batches, (0, 1))
    with pytest.raises(RuntimeError, match="told of 1 images, wanted 2"):
        batches.take(2)
