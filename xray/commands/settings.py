"""``xray settings``: every setting and its value now."""

from typing import Any

from streaming.settings import load_settings, variable_names
from xray.commands.options import Json
from xray.console import new_table, out, print_json


def settings(json_: Json = False) -> None:
    """List every setting: its environment variable, its value now, and what it means."""
    values = _flatten(load_settings().model_dump(mode="json"))
    if json_:
        print_json(values)
        return
    table = new_table("variable", "value", "meaning")
    for name, meaning in variable_names().items():
        table.add_row(name, str(values.get(name)), meaning)
    out.print(table)


def _flatten(values: dict[str, Any], prefix: str = "XRAY_") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = prefix + name.upper()
        flat |= _flatten(value, f"{key}__") if isinstance(value, dict) else {key: value}
    return flat
