"""``xray find``: what became of an image."""

from typing import Annotated

import typer

from streaming.settings import load_settings
from xray.commands.options import Json, Since, Until
from xray.console import print_json, step


def find(
    which: Annotated[
        str,
        typer.Argument(
            metavar="ID|SHA256|FILE",
            help=(
                "A file, or the SHA-256 of its bytes, or an id: the publisher's of the image, the image's event id of "
                "its receipt, or the event id of a prediction or dead letter."
            ),
        ),
    ],
    since: Since = None,
    until: Until = None,
    images: Annotated[
        bool, typer.Option("--images", help="Read the images topic too, all of it: what waits there unscored.")
    ] = False,
    json_: Json = False,
) -> None:
    """Say what became of an image: its outcomes, what people and programs did about them, and where that was read.

    Exit code 1 where nothing is known of it. It looks into the tables first, then into the topics from where the
    tables end, then into the receipts, findings, reports and alarms of this XRAY_HOME; no program has to run. What
    could not be looked through is said. --since and --until are about when Kafka took the image: with them only those
    days of the tables are read.
    """
    from streaming.lookup.query import read_query
    from streaming.lookup.search import find_image
    from xray.historyview import show_history

    settings = load_settings()
    query = read_query(which)
    with step("looking into tables, topics and ledgers"):
        history = find_image(settings, query, since=since, until=until, with_images=images)
    if json_:
        print_json(history.to_dict())
    else:
        show_history(history)
    if not history.is_found:
        raise typer.Exit(1)
