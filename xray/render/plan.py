"""What decides how a file is shown: the stream's limits, and the model that would see it."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from schemas.envelope import MAX_MESSAGE_BYTES
from schemas.errors import ModelLoadError
from schemas.modelcard import ModelCard, read_card
from schemas.modelstages import check_stages
from schemas.registry import CHAMPION_FILE, champion_folder, find_model, read_aliases
from sparkdl.image.limits import MAX_FILE_BYTES, MAX_PIXELS, RENDERING_VERSION, RENDERING_VERSIONS, DecodeLimits
from sparkdl.network.base import MANIFEST_FILE, NETWORK_FOLDER, read_input_size
from streaming.settings import StreamSettings

USUAL_SIZE = (224, 224)
"""What most networks take, the default one among them: (height, width) in pixels."""


@dataclass(frozen=True)
class RenderPlan:
    """What decides how a file is shown.

    Parameters
    ----------
    size : tuple of int
        (height, width) in pixels that the network takes.
    size_from : str
        Who says so, in a few words.
    rendering_version : int
        Version of the rules of rendering.
    limits : DecodeLimits
        What the stream takes.
    max_message_bytes : int
        What Kafka takes.
    hide_names : bool
        Name files by their content alone: a file's name may be a patient's.
    """

    size: tuple[int, int] = USUAL_SIZE
    size_from: str = "default"
    rendering_version: int = RENDERING_VERSION
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    max_message_bytes: int = MAX_MESSAGE_BYTES
    hide_names: bool = False

    @property
    def showing(self) -> DecodeLimits:
        """What is shown all the same: never less than what the stream takes."""
        most_bytes = max(self.limits.max_payload_bytes, MAX_FILE_BYTES)
        most_pixels = max(self.limits.max_pixels, MAX_PIXELS)
        return replace(
            self.limits, max_payload_bytes=most_bytes, max_pixels=most_pixels, modalities=None, for_processing=True
        )


def make_plan(
    settings: StreamSettings, *, size: tuple[int, int] | None = None, model: str | None = None, hide_names: bool = False
) -> RenderPlan:
    """Make the plan that the stream would follow, had it these settings and this model.

    Parameters
    ----------
    settings : StreamSettings
        Limits; and the model, where neither of the next two is given and one is named or promoted.
    size : tuple of int, optional
        (height, width) in pixels, whatever model there is.
    model : str, optional
        Folder of a saved model, its version, or an alias.
    hide_names : bool
        See `RenderPlan`.

    Raises
    ------
    ModelLoadError
        There is no such model, it was changed after training, or the stream would not serve it.
    """
    plan = RenderPlan(
        limits=settings.score.to_limits(),
        max_message_bytes=settings.kafka.max_message_bytes,
        hide_names=hide_names,
    )
    if size is not None:
        return replace(plan, size=size, size_from="--size")
    folder = _find_folder(settings, model)
    if folder is None:
        return plan
    card = _read_served_card(folder)
    return replace(
        plan,
        size=_read_size(folder),
        size_from=f"model {card.name} {card.version}",
        rendering_version=card.rendering_version,
    )


def _find_folder(settings: StreamSettings, model: str | None) -> Path | None:
    """Find the model that is asked for, else the one that the stream would serve; None where there is none yet."""
    if model is not None:
        folder = Path(model).expanduser()
        return folder if folder.is_dir() else find_model(settings.models_folder, model)
    if settings.model is not None:
        return settings.model
    served = CHAMPION_FILE in read_aliases(settings.models_folder)
    return champion_folder(settings.models_folder) if served else None


def _read_served_card(folder: Path) -> ModelCard:
    card = read_card(folder)
    if card.rendering_version not in RENDERING_VERSIONS:
        msg = (
            f"the stream does not serve model {card.version}: it was trained on images of rendering version "
            f"{card.rendering_version}, and this installation renders with version {RENDERING_VERSION}. "
            "With '--size HxW' images are shown without it."
        )
        raise ModelLoadError(msg)
    return card


def _read_size(folder: Path) -> tuple[int, int]:
    """Read what images the first stage of a saved pipeline takes; its weights are left alone."""
    check_stages(folder)
    stages = sorted((folder / "stages").glob("*"))
    try:
        manifest = (stages[0] / NETWORK_FOLDER / MANIFEST_FILE).read_bytes()
    except (IndexError, OSError) as exc:
        msg = f"the model at {folder} has no network in its first stage, wanted a DeepImageFeaturizer"
        raise ModelLoadError(msg) from exc
    return read_input_size(manifest)
