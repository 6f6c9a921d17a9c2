"""``xray prepare``: fetch the jars ahead of time."""

from streaming.settings import load_settings
from xray.commands.options import Json
from xray.console import print_json, step


def prepare(json_: Json = False) -> None:
    """Fetch the jars of Kafka, its Spark connector and Delta, so that nothing is fetched later."""
    from xray.prepare import fetch_jars

    settings = load_settings()
    with step(f"fetching jars into {settings.jars_folder} (about 55 MB, once)"):
        counts = fetch_jars(settings.jars_folder)
    if json_:
        print_json(counts)
