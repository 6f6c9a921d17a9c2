"""``xray settings``: every setting and its value now."""

from typing import Any

from rich.markup import escape

from streaming.settings import find_sources, load_settings, variable_names
from xray.commands.options import Json
from xray.console import print_json
from xray.tabular import print_listing


def settings(json_: Json = False) -> None:
    """List every setting: its environment variable, its value now, where that is from, and what it means."""
    values = _flatten(load_settings().model_dump(mode="json"))
    if json_:
        print_json(values)
        return
    sources = find_sources()
    rows = []
    for name, meaning in variable_names().items():
        value = "" if values.get(name) is None else escape(str(values[name]))
        source = "" if sources[name] == "default" else f"[cyan]from {escape(sources[name])}[/]"
        rows.append((name, value or "[dim]not set[/]", source, f"[dim]{escape(meaning.replace('``', ''))}[/]"))
    print_listing(("variable", "value", "from", "meaning"), rows, whole=1)


def _flatten(values: dict[str, Any], prefix: str = "XRAY_") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = prefix + name.upper()
        flat |= _flatten(value, f"{key}__") if isinstance(value, dict) else {key: value}
    return flat
