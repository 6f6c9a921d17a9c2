"""Outcomes for tests of what the page knows: as SCORE's own code writes them, or made by hand where many are wanted."""

from typing import Any

from schemas.modelcard import AbstainBand
from streaming.kafka.places import Place
from streaming.lookup.outcome import Kind, Outcome, ScoredBy

MODEL = ScoredBy("cxr", "v1", "e" * 64, ("normal", "opacities"), "opacities", 0.5, "not tuned", AbstainBand(0.4, 0.6))


def scored(number: int, **changes: Any) -> Outcome:
    """A prediction, one a second."""
    texts = {"event_id": f"{number:032x}", "image_key": f"{number + 10**9:032x}", "sha256": f"{number:064x}"}
    said: dict[str, Any] = {
        **texts,
        "topic": "xray.images",
        "topic_id": "",
        "place": Place(number % 4, number // 4),
        "record": Place(number % 4, number // 4),
        "received_at": float(number),
        "scored_at": number + 0.4,
        "published_at": number + 0.5,
        "source": "/dx-1",
        "image_id": f"1.2.{number}",
        "model": MODEL,
        "label": "normal",
        "probabilities": (0.75, 0.25),
    }
    return Outcome(Kind.PREDICTION, **(said | changes))


def failed(number: int, reason: str = "corrupt_image", **changes: Any) -> Outcome:
    """A dead letter."""
    plain = {"model": None, "label": None, "probabilities": (), "reason": reason, "kind": Kind.DEAD_LETTER}
    made = scored(number, **changes)
    return Outcome(**({name: getattr(made, name) for name in Outcome.__dataclass_fields__} | plain))
