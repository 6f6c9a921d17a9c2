"""The page: everything on it, nothing beside it, and no text that becomes a tag."""

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sparkdl.image.steps import Step
from tests.testimages import dicom, multi_frame_dicom, png
from xray.render import page as page_module
from xray.render.files import render_files
from xray.render.folder import OutFolder
from xray.render.page import write_page
from xray.render.plan import RenderPlan
from xray.render.rendering import NOTE, Limit, Refusal, Rendering

EVIL = "<script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;${made_by}"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags, attributes and texts of a page; every tag that is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def out(tmp_path: Path) -> OutFolder:
    return OutFolder(tmp_path / "out")


def render(out: OutFolder, **payloads: bytes) -> list[Rendering]:
    for name, payload in payloads.items():
        (out.path.parent / name).write_bytes(payload)
    return render_files([out.path.parent / name for name in payloads], RenderPlan((32, 64), "--size"), out)


def read(renderings: list[Rendering], out: OutFolder) -> Page:
    return Page(out.read(write_page(renderings, out)).decode())


def test_each_file_has_its_picture_inside_the_page(out: OutFolder) -> None:
    renderings = render(out, first=png(), second=dicom(), third=multi_frame_dicom())
    page = read(renderings, out)
    found = [
        base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,")) for image in page.named("img")
    ]
    assert found == [out.read(one.network.file) for one in renderings if one.network]
    assert len(found) == 2
    assert [(image["width"], image["height"]) for image in page.named("img")] == [("64", "32")] * 2
    for part in (NOTE, "3 files, 1 refused", "32x64 pixels", "first", "second", "third", "multi_frame", "48x80"):
        assert part in page.text
    for rendering in renderings:
        assert rendering.sha256 in page.text
        assert rendering.image_id in page.text


def test_the_page_needs_nothing_from_elsewhere(out: OutFolder) -> None:
    page = read(render(out, first=png(), second=b""), out)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in out.read("index.html").decode()
    assert not page.named("script")
    [policy] = [tag["content"] or "" for tag in page.named("meta") if "http-equiv" in tag]
    assert "default-src 'none'" in policy


def evil_renderings(rendering: Rendering) -> Iterator[Rendering]:
    """Put hostile text wherever there is a text."""
    refusal = Refusal(EVIL, EVIL, EVIL)
    yield replace(rendering, name=EVIL)
    yield replace(rendering, image_id=EVIL, sha256=EVIL, media_type=EVIL)
    yield replace(rendering, steps=(Step(EVIL, EVIL, {EVIL: EVIL}),))
    yield replace(rendering, refusal=refusal, behind=refusal, beyond=(Limit(EVIL, EVIL, 1, 2),))
    yield replace(rendering, refusal=refusal, network=None)
    yield replace(rendering, plan=RenderPlan((32, 64), EVIL))


@pytest.mark.parametrize("place", range(6))
def test_no_text_becomes_a_tag(place: int, out: OutFolder) -> None:
    [rendering] = render(out, first=png())
    harmless = read([rendering], out)
    page = read([list(evil_renderings(rendering))[place]], out)
    assert EVIL in "".join(page.texts)
    assert {name for name, _ in page.tags} <= {name for name, _ in harmless.tags} | {"ol", "li", "strong", "br", "span"}
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.named("img"))


def test_steps_are_in_order_with_what_decided_them(out: OutFolder) -> None:
    [rendering] = render(out, first=dicom())
    steps = (Step("voi", "window 40 wide 400", {"WindowCenter": "40"}), Step("resize", "48x80 to 32x64"))
    text = read([replace(rendering, steps=steps)], out).text
    assert re.search(r"voi : window 40 wide 400 decided by WindowCenter=40 resize : 48x80 to 32x64", text)


def test_a_page_ends_somewhere_and_says_so(out: OutFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MOST_FILES", 2)
    page = read(render(out, first=png(), second=png(), third=png(), fourth=png()), out)
    assert len(page.named("article")) == 2
    assert "2 more files" in page.text
    assert "more files" not in read(render(out, first=png(), second=png()), out).text
