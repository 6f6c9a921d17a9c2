"""Files to pictures and facts, one at a time."""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from schemas.errors import DatasetError, Reason
from sparkdl.image.decode import DecodedImage, sniff_media_type
from streaming.devices.publish import find_files, name_image
from xray.console import make_printable
from xray.render.folder import OutFolder, is_output
from xray.render.plan import RenderPlan
from xray.render.rendering import (
    MADE_BY,
    SETTINGS,
    Picture,
    Refusal,
    Rendering,
    decode,
    find_limits,
    measure,
    refuse_size,
    refuse_unreadable,
)
from xray.render.words import tell_rendering

_PNG_EFFORT = 4
"""zlib's, 0 to 9. Of a radiograph of 9 million pixels 6 makes a file 2 % smaller, in twice the time."""


def choose_files(paths: Sequence[str]) -> list[Path]:
    """Expand files, folders and globs, as for publishing; what earlier runs wrote counts only where it is named.

    Parameters
    ----------
    paths : sequence of str
        See `find_files`. Outputs may lie in or below a folder of images.

    Raises
    ------
    DatasetError
        An argument matches nothing, or nothing is left.
    """
    named = {Path(text).expanduser() for text in paths}
    files = [path for path in find_files(paths) if path in named or not is_output(path)]
    if not files:
        msg = f"{', '.join(paths)}: there are only outputs of 'xray render', expected image files"
        raise DatasetError(msg)
    return files


def render_files(
    files: Sequence[Path], plan: RenderPlan, out: OutFolder, on_progress: Callable[[int], None] = lambda done: None
) -> list[Rendering]:
    """Render files; a file that is refused is told, and the others go on.

    Parameters
    ----------
    files : sequence of Path
        What to show.
    plan : RenderPlan
        What decides how.
    out : OutFolder
        Gets two pictures, a text and a JSON document for each file; of a refused one the latter two.
    on_progress : callable
        Called with the number of files that are done.

    Returns
    -------
    list of Rendering
        One for each file, in the same order. One image's pixels are in memory at a time.

    Raises
    ------
    JobError
        An output cannot be written.
    """
    renderings = []
    for done, path in enumerate(files, 1):
        renderings.append(render_file(path, plan, out))
        on_progress(done)
    return renderings


def render_file(path: Path, plan: RenderPlan, out: OutFolder) -> Rendering:
    """Render one file, and write its outputs; see `render_files`."""
    try:
        content = _read(path, plan)
    except OSError as exc:
        rendering = replace(_name(path, "unreadable", path, plan, out), refusal=refuse_unreadable(exc))
    else:
        rendering = _name(path, content.sha256, (path.name, content.sha256), plan, out)
        rendering = _show(replace(rendering, payload_bytes=content.size_bytes, sha256=content.sha256), content, out)
    facts = json.dumps(rendering.to_dict(), indent=2) + "\n"
    out.write(f"{rendering.base}.json", facts.encode())
    out.write(f"{rendering.base}.txt", tell_rendering(rendering).encode())
    return rendering


@dataclass(frozen=True, slots=True)
class _Content:
    """A file's bytes; those of one that is too large to be shown are not kept."""

    payload: bytes | None
    size_bytes: int
    sha256: str


def _read(path: Path, plan: RenderPlan) -> _Content:
    size_bytes = path.stat().st_size
    if size_bytes > plan.showing.max_payload_bytes:
        with path.open("rb") as stream:
            return _Content(None, size_bytes, hashlib.file_digest(stream, "sha256").hexdigest())
    payload = path.read_bytes()
    return _Content(payload, len(payload), hashlib.sha256(payload).hexdigest())


def _name(path: Path, digest: str, owner: object, plan: RenderPlan, out: OutFolder) -> Rendering:
    image_id = name_image(path, digest, hide_names=plan.hide_names)
    shown = image_id if plan.hide_names else path.name
    return Rendering(make_printable(shown), make_printable(image_id), out.take_base(image_id, owner), plan)


def _show(rendering: Rendering, content: _Content, out: OutFolder) -> Rendering:
    """Decode by the stream's limits, and where these refuse it by those of what is shown; write the pictures."""
    plan, payload = rendering.plan, content.payload
    too_large = refuse_size(content.size_bytes, plan)
    if payload is None:
        return replace(rendering, refusal=too_large, beyond=find_limits(content.size_bytes, 0, plan))
    taken = decode(payload, plan.size, plan.limits, plan.rendering_version)
    shown = decode(payload, plan.size, plan.showing, plan.rendering_version) if _is_up_to_settings(taken) else taken
    whole = decode(payload, None, plan.showing, plan.rendering_version) if _may_have_picture(shown) else shown
    refusal = too_large or (taken if isinstance(taken, Refusal) else None)
    known = next((decoded for decoded in (shown, whole) if isinstance(decoded, DecodedImage)), None)
    pixels = known.original_height * known.original_width if known else 0
    return replace(
        rendering,
        media_type=sniff_media_type(payload),
        height=known.original_height if known else None,
        width=known.original_width if known else None,
        refusal=refusal,
        beyond=find_limits(content.size_bytes, pixels, plan),
        behind=shown if isinstance(shown, Refusal) and refusal and shown.reason != refusal.reason else None,
        steps=known.steps if known else (),
        network=_write_picture(shown, f"{rendering.base}-network.png", out),
        full=_write_picture(whole, f"{rendering.base}-full.png", out),
    )


def _is_up_to_settings(decoded: DecodedImage | Refusal) -> bool:
    return isinstance(decoded, Refusal) and decoded.reason in SETTINGS


def _may_have_picture(shown: DecodedImage | Refusal) -> bool:
    """Tell whether there may be one at full size: what is one gray in the network's size may be none at its own."""
    return isinstance(shown, DecodedImage) or shown.reason == Reason.BLANK_RENDERING


def _write_picture(decoded: DecodedImage | Refusal, name: str, out: OutFolder) -> Picture | None:
    if isinstance(decoded, Refusal):
        return None
    pixels, figures = measure(decoded)
    mark = PngInfo()
    mark.add_text("Software", MADE_BY)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=mark, compress_level=_PNG_EFFORT)
    out.write(name, buffer.getvalue())
    return Picture(name, **figures)
