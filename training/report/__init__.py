"""The training report: one HTML page that stands alone, the same in Markdown and in JSON.

``words`` has what both say, ``charts`` and ``thumbnails`` make pictures, ``page`` and ``markdown`` put all in order.
Nothing is computed here that could change a figure.
"""

import json
from pathlib import Path

from training.evidence.evaluation import Evaluation
from training.report.markdown import render_markdown
from training.report.page import render_page

PAGE_NAME, MARKDOWN_NAME, JSON_NAME = "report.html", "report.md", "report.json"

__all__ = ["JSON_NAME", "MARKDOWN_NAME", "PAGE_NAME", "render_markdown", "render_page", "write_report"]


def write_report(evaluation: Evaluation, folder: Path, *, with_thumbnails: bool = True) -> Path:
    """Write ``report.html``, ``report.md`` and ``report.json``; those that are there are replaced.

    Parameters
    ----------
    evaluation : Evaluation
        What to say.
    folder : Path
        An existing folder.
    with_thumbnails : bool
        Whether the page shows the worst mistakes as pictures. A page with X-rays in it may not be passed on freely.

    Returns
    -------
    Path
        Of the HTML page.

    Raises
    ------
    DependencyError
        Jinja is missing: it comes with the ``train`` extra.

    Notes
    -----
    Page and Markdown show file names, never patients' ids or folders; the JSON is all of `Evaluation.to_dict`.
    """
    # A file's name that is not UTF-8 holds lone surrogates, which no page can: they become question marks.
    page = folder / PAGE_NAME
    page.write_text(render_page(evaluation, with_thumbnails=with_thumbnails), encoding="utf-8", errors="replace")
    (folder / MARKDOWN_NAME).write_text(render_markdown(evaluation), encoding="utf-8", errors="replace")
    stored = json.dumps(evaluation.to_dict(), indent=2, allow_nan=False)
    (folder / JSON_NAME).write_text(stored + "\n", encoding="utf-8")
    return page
