"""One page that shows all files: their pictures, steps and facts. It needs nothing beside itself."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from string import Template

from sparkdl.image.steps import Step
from xray.render.folder import PAGE_FILE, OutFolder
from xray.render.rendering import MADE_BY, NOTE, Picture, Rendering
from xray.render.words import (
    name_format,
    name_version,
    tell_count,
    tell_deciders,
    tell_outcome,
    tell_size,
    tell_stretch,
)

MOST_FILES = 500
"""On a page: with their pictures inside it is about 20 MB large then, which a browser still opens at once."""

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="$made_by">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What the network sees</title>
<style>
body { max-width: 66rem; margin: 2rem auto; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; color: #1c1c1e;
  background: #fafaf8; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; }
h2 { font-size: 1.05rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 span, .faint, th { color: #68686e; font-weight: normal; }
p { margin: 0 0 .5rem; }
article { display: flex; flex-wrap: wrap; gap: 1.5rem; padding: 1.5rem 0; border-top: 1px solid #cececa; }
article > div:last-child { flex: 1; min-width: 20rem; }
.box { width: 224px; min-height: 224px; }
.box img { display: block; max-width: 224px; border: 1px solid #cececa; margin: -1px; }
.none { border: 1px solid #cececa; background: #f7eeeb; color: #962a20; padding: .5rem; height: 13rem;
  overflow-wrap: anywhere; }
.refused { color: #962a20; }
table { border-collapse: collapse; margin: 0 0 .75rem; }
th, td { text-align: left; vertical-align: top; padding: .1rem 1rem .1rem 0; overflow-wrap: anywhere; }
table.figures th, table.figures td { text-align: right; }
table.figures th:first-child, table.figures td:first-child { text-align: left; }
ol { margin: 0 0 .75rem; padding-left: 1.25rem; }
code { font-size: .9em; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>What the network sees: $count</h1>
<p>Each picture is stretched to $size pixels (height x width; $size_from): proportions are not kept. Rendering version
$rendering_version, $version.</p>
<p><strong>$note</strong></p>
""")

_ARTICLE = Template("""\
<article id="file-$number">
<div class="box">$picture</div>
<div>
<h2><span>$number</span> $name</h2>
$outcome
<table>$facts</table>
$steps
$figures
</div>
</article>
""")

_END = "</body>\n</html>\n"


def write_page(renderings: Sequence[Rendering], out: OutFolder) -> str:
    """Write the page.

    Parameters
    ----------
    renderings : sequence of Rendering
        At least one. The pictures of the first `MOST_FILES` are read back from ``out``; of the others the page says
        where they are.
    out : OutFolder
        Where the pictures are, and the page goes.

    Returns
    -------
    str
        Its name.
    """
    parts = [_head(renderings)]
    parts += [_article(number, rendering, out) for number, rendering in enumerate(renderings[:MOST_FILES], 1)]
    if len(renderings) > MOST_FILES:
        parts.append(
            f"<p>{len(renderings) - MOST_FILES:,} more files have their pictures and texts beside this page.</p>\n"
        )
    out.write(PAGE_FILE, "".join([*parts, _END]).encode())
    return PAGE_FILE


def _head(renderings: Sequence[Rendering]) -> str:
    plan = renderings[0].plan
    return _fill(
        _PAGE,
        made_by=MADE_BY,
        count=tell_count(renderings),
        size=tell_size(*plan.size),
        size_from=plan.size_from,
        rendering_version=str(plan.rendering_version),
        version=name_version(),
        note=NOTE,
    )


def _fill(template: Template, html: Mapping[str, str] | None = None, **texts: str) -> str:
    """Fill a template: texts are escaped, and what is HTML already is not."""
    return template.substitute({name: escape(text) for name, text in texts.items()}, **(html or {}))


def _article(number: int, rendering: Rendering, out: OutFolder) -> str:
    html = {
        "picture": _picture(rendering, out),
        "outcome": "".join(_outcome(rendering)),
        "facts": "".join(_facts(rendering)),
        "steps": _steps(rendering.steps),
        "figures": _figures(rendering),
    }
    return _fill(_ARTICLE, html, number=str(number), name=rendering.name)


def _picture(rendering: Rendering, out: OutFolder) -> str:
    if rendering.network is None:
        reason = rendering.refusal.reason if rendering.refusal else ""
        return f'<div class="none">{escape(reason)}</div>'
    encoded = base64.b64encode(out.read(rendering.network.file)).decode()
    width, height = rendering.network.width, rendering.network.height
    return f'<img alt="what the network sees" width="{width}" height="{height}" src="data:image/png;base64,{encoded}">'


def _outcome(rendering: Rendering) -> Iterator[str]:
    style = ' class="refused"' if rendering.refusal else ""
    for sentence in tell_outcome(rendering):
        yield f"<p{style}>{escape(sentence)}</p>"


def _facts(rendering: Rendering) -> Iterator[str]:
    stretched = tell_stretch(rendering)
    facts = {
        "format": name_format(rendering.media_type),
        "size": tell_size(rendering.height, rendering.width),
        "stretched": stretched and f"everything is {stretched} than in the file",
        "payload": "" if rendering.payload_bytes is None else f"{rendering.payload_bytes:,} bytes",
        "SHA-256": rendering.sha256,
        "image id": rendering.image_id,
        "full size": rendering.full.file if rendering.full else "",
    }
    for name, fact in facts.items():
        if fact:
            yield f"<tr><th>{name}</th><td>{escape(fact)}</td></tr>"


def _steps(steps: Sequence[Step]) -> str:
    if not steps:
        return ""
    return "<ol>" + "".join(f"<li>{_step(step)}</li>" for step in steps) + "</ol>"


def _step(step: Step) -> str:
    by = f'<br><span class="faint">decided by {escape(tell_deciders(step))}</span>' if step.decided_by else ""
    return f"<strong>{escape(step.name)}</strong>: {escape(step.what)}{by}"


def _figures(rendering: Rendering) -> str:
    pictures = {"network": rendering.network, "full size": rendering.full}
    rows = "".join(_figure_row(name, picture) for name, picture in pictures.items() if picture is not None)
    if not rows:
        return ""
    names = ("", "height x width", "channels", "min", "max", "mean", "black", "white")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f'<table class="figures"><tr>{head}</tr>{rows}</table>'


def _figure_row(name: str, picture: Picture) -> str:
    cells = (
        name,
        tell_size(picture.height, picture.width),
        str(picture.channels),
        str(picture.min),
        str(picture.max),
        f"{picture.mean:.2f}",
        f"{picture.black_share:.1%}",
        f"{picture.white_share:.1%}",
    )
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
