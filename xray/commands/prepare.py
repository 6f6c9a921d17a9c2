"""``xray prepare``: fetch the jars ahead of time."""

from streaming.settings import load_settings
from xray.commands.options import Json
from xray.console import print_json, step


def prepare(json_: Json = False) -> None:
    """Fetch the jars of Kafka and of its Spark connector, and make Java's classes ready: later starts are quick."""
    from xray.prepare import fetch_jars, share_classes

    settings = load_settings()
    with step(f"fetching jars into {settings.jars_folder} (about 55 MB, once)"):
        counts = fetch_jars(settings.jars_folder)
    with step("making Java's classes ready (half a minute, once)"):
        share_classes(settings)
    if json_:
        print_json(counts)
