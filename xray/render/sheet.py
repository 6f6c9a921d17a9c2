"""Contact sheets: what the network sees of many files, on one picture."""

import io
import math
import re
import unicodedata
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from xray.render.folder import OutFolder, sheet_name
from xray.render.rendering import MADE_BY, NOTE, Refusal, Rendering
from xray.render.words import name_format, tell_count, tell_size, tell_stretch

COLUMNS, ROWS = 5, 8
_LEAST_COLUMNS = 3
"""So that the lines at the top have room."""

_BOX = 224
"""Side of a picture's box in pixels: what most networks take is shown pixel for pixel."""

_GAP, _MARGIN, _PADDING = 24, 32, 9
_CAPTION = 62
_HEADER = 116
_LINE = 19
_TITLE_SIZE, _TEXT_SIZE, _SMALL_SIZE = 24, 15, 13

_DIGEST_CHARS = 8

_PAPER, _INK, _FAINT, _FRAME = (250, 250, 248), (28, 28, 30), (104, 104, 110), (206, 206, 202)
_REFUSED_PAPER, _REFUSED_INK = (247, 238, 235), (150, 42, 32)


def write_sheets(renderings: Sequence[Rendering], out: OutFolder) -> list[str]:
    """Draw contact sheets, as many as it takes, and write them.

    Parameters
    ----------
    renderings : sequence of Rendering
        At least one. Their pictures are read back from ``out``, one at a time.
    out : OutFolder
        Where the pictures are, and the sheets go; those of an earlier run are removed.

    Returns
    -------
    list of str
        Names of the sheets: up to 40 files are on one.
    """
    out.remove_sheets()
    each, plan = COLUMNS * ROWS, renderings[0].plan
    count = math.ceil(len(renderings) / each)
    lines = (
        f"Each picture is stretched to {tell_size(*plan.size)} pixels (height x width; {plan.size_from}): "
        "proportions are not kept.",
        NOTE,
    )
    names = []
    for number in range(1, count + 1):
        first = (number - 1) * each
        shown = renderings[first : first + each]
        sheet = _Sheet(len(shown))
        page = f" - sheet {number} of {count}" if count > 1 else ""
        sheet.draw_header(f"What the network sees: {tell_count(renderings)}{page}", lines)
        for place, rendering in enumerate(shown):
            picture = out.read(rendering.network.file) if rendering.network else None
            sheet.draw_file(place, first + place + 1, rendering, picture)
        names.append(sheet_name(number))
        out.write(names[-1], sheet.to_png())
    return names


class _Sheet:
    """One sheet on its way: a picture, and the place of each thing on it."""

    def __init__(self, n_files: int) -> None:
        self._columns = max(_LEAST_COLUMNS, min(COLUMNS, n_files))
        rows = math.ceil(n_files / self._columns)
        width = 2 * _MARGIN + self._columns * (_BOX + _GAP) - _GAP
        height = _HEADER + rows * (_BOX + _CAPTION + _GAP) + _MARGIN
        self._image = Image.new("RGB", (width, height), _PAPER)
        self._draw = ImageDraw.Draw(self._image)
        self._fonts = {size: ImageFont.load_default(size) for size in (_TITLE_SIZE, _TEXT_SIZE, _SMALL_SIZE)}

    def to_png(self) -> bytes:
        mark = PngInfo()
        mark.add_text("Software", MADE_BY)
        buffer = io.BytesIO()
        self._image.save(buffer, "PNG", pnginfo=mark)
        return buffer.getvalue()

    def draw_header(self, title: str, lines: Sequence[str]) -> None:
        self._write(title, _MARGIN, 24, _TITLE_SIZE, _INK)
        for i, line in enumerate(lines):
            self._write(line, _MARGIN, 60 + i * _LINE, _TEXT_SIZE, _FAINT)

    def draw_file(self, place: int, number: int, rendering: Rendering, picture: bytes | None) -> None:
        """Draw a file's picture, why it is refused, and below it what it is called."""
        left = _MARGIN + place % self._columns * (_BOX + _GAP)
        top = _HEADER + place // self._columns * (_BOX + _CAPTION + _GAP)
        if picture is not None:
            self._draw_picture(picture, left, top)
        if rendering.refusal is not None:
            self._draw_refusal(rendering.refusal, left, top, has_picture=picture is not None)
        self._draw_caption(number, rendering, left, top + _BOX + 6)

    def _draw_picture(self, png: bytes, left: int, top: int) -> None:
        with Image.open(io.BytesIO(png)) as picture:
            scale = min(_BOX / picture.width, _BOX / picture.height)
            width, height = (max(1, round(side * scale)) for side in picture.size)
            # Of a small picture each pixel stays one; a large one is made smaller.
            how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
            shown = picture.convert("RGB").resize((width, height), how)
        x, y = left + (_BOX - width) // 2, top + (_BOX - height) // 2
        self._image.paste(shown, (x, y))
        self._draw.rectangle((x - 1, y - 1, x + width, y + height), outline=_FRAME)  # a white picture has an edge too

    def _draw_refusal(self, refusal: Refusal, left: int, top: int, *, has_picture: bool) -> None:
        """Fill the box with the reason; where there is a picture all the same, only a strip of it."""
        bottom = top + _BOX
        y = bottom - _LINE - 2 * _PADDING if has_picture else top
        self._draw.rectangle((left - 1, y - 1, left + _BOX, bottom), _REFUSED_PAPER, _FRAME)
        y += _PADDING
        for line in self._wrap(refusal.reason, _TEXT_SIZE):
            self._write(line, left + _PADDING, y, _TEXT_SIZE, _REFUSED_INK)
            y += _LINE
        if has_picture:
            return
        lines = self._wrap(refusal.error_message, _SMALL_SIZE)
        room = (bottom - 2 * _PADDING - y) // _LINE
        for line in lines if len(lines) <= room else [*lines[: room - 1], "..."]:
            self._write(line, left + _PADDING, y + _PADDING, _SMALL_SIZE, _INK)
            y += _LINE

    def _draw_caption(self, number: int, rendering: Rendering, left: int, top: int) -> None:
        label = f"{number}  "
        indent = round(self._fonts[_TEXT_SIZE].getlength(label))
        self._write(label, left, top, _TEXT_SIZE, _FAINT)
        self._write(self._shorten(rendering.name, _BOX - indent), left + indent, top, _TEXT_SIZE, _INK)
        size, digest = tell_size(rendering.height, rendering.width), rendering.sha256[:_DIGEST_CHARS]
        facts = "  ".join(filter(None, (name_format(rendering.media_type), size, digest)))
        stretched = tell_stretch(rendering)
        for i, line in enumerate((facts, stretched and f"{stretched} than in the file"), 1):
            self._write(line, left + indent, top + i * _LINE, _SMALL_SIZE, _FAINT)

    def _wrap(self, text: str, size: int) -> list[str]:
        """Break a text into lines of a box, also behind an underscore: reasons are long words."""
        lines = [""]
        for word in re.findall(r"[^_ ]*[_ ]?", _make_drawable(text)):
            if self._fonts[size].getlength(lines[-1] + word.rstrip()) > _BOX - 2 * _PADDING:
                lines.append("")
            lines[-1] += word
        return lines

    def _shorten(self, text: str, room: float) -> str:
        """Leave out the middle of a name that is too long: files of one device often differ at the end alone."""
        text, font = _make_drawable(text), self._fonts[_TEXT_SIZE]
        shown, kept = text, len(text)
        while font.getlength(shown) > room:
            kept -= 1
            shown = f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
        return shown

    def _write(self, text: str, left: float, top: float, size: int, color: tuple[int, int, int]) -> None:
        self._draw.text((left, top), text, color, self._fonts[size])


def _make_drawable(text: str) -> str:
    """Keep what Pillow's own font has, ASCII: an accent is dropped, every other letter is a question mark."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain.encode("ascii", "replace").decode()
