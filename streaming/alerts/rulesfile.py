"""Reads a file of rules, and says what is wrong with it by file, rule and field."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from schemas.errors import SettingsError
from streaming.alerts.rules import Rules

_MAX_BYTES = 4 * 1024 * 1024
_TYPES = {
    "string_type": "wanted text; YAML reads it as something else, so put it in quotes",
    "tuple_type": "wanted a list; of texts, where YAML reads them as something else, put them in quotes",
    "model_type": "wanted fields and their values, as NAME: VALUE",
    "dict_type": "wanted names and values, as NAME: VALUE",
}


class _Loader(yaml.SafeLoader):
    """YAML's safe part, without keys that are given twice: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, (key_node, _) in enumerate(node.value):
            if keys[position] in keys[:position]:
                msg = f"the key {keys[position]!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, msg, key_node.start_mark)
        return super().construct_mapping(node, deep)


def read_rules(path: Path) -> Rules:
    """Read and check a file of rules.

    Raises
    ------
    SettingsError
        It cannot be read, or is wrong: a line for each fault, with file, rule and field.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except OSError as exc:
        msg = f"{path} cannot be read: {exc.strerror}"
        raise SettingsError(msg) from exc
    if len(raw) > _MAX_BYTES:
        msg = f"{path} has more than {_MAX_BYTES} bytes, so it is no file of rules"
        raise SettingsError(msg)
    return parse_rules(raw, str(path))


def parse_rules(text: bytes | str, name: str) -> Rules:
    """Check the text of a file of rules; see `read_rules`."""
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark is not None else ""
        msg = f"{name}:{line} not YAML: {getattr(exc, 'problem', None) or type(exc).__name__}"
        raise SettingsError(msg) from exc
    try:
        return Rules.model_validate(value)
    except ValidationError as exc:
        faults = dict.fromkeys(f"{name}: {_describe(error, value)}" for error in exc.errors())
        raise SettingsError("\n".join(faults)) from exc


def _describe(error: Mapping[str, Any], value: Any) -> str:
    place = _place(error["loc"], value)
    why = _TYPES.get(error["type"], str(error["msg"]).removeprefix("Value error, "))
    if error["type"] == "extra_forbidden":
        why = "there is no such field" + _nearest(str(error["loc"][-1]), error["loc"])
    return f"{place}: {why}" if place else why


def _place(location: Sequence[str | int], value: Any) -> str:
    """Name rule and field: ``rule Opacities: prediction.score``."""
    parts = list(location)
    shown = []
    if len(parts) > 1 and parts[0] in ("rules", "tests") and isinstance(parts[1], int):
        kind = str(parts[0]).removesuffix("s")
        one = value[parts[0]][parts[1]]
        name = one.get("name") if isinstance(one, dict) else None
        shown = [f"{kind} {name}" if isinstance(name, str) else f"{kind} number {parts[1] + 1}"]
        parts = parts[2:]
    return ": ".join([*shown, *([".".join(map(str, parts))] if parts else [])])


def _nearest(name: str, location: Sequence[str | int]) -> str:
    known = sorted(_fields_below(Rules, [part for part in location[:-1] if isinstance(part, str)]))
    nearest = get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; there are {', '.join(known)}" if known else ""


def _fields_below(model: Any, parts: Sequence[str]) -> set[str]:
    """Name the fields of the part of a file that a place leads to."""
    schema = model.model_json_schema()
    definitions, node = schema.get("$defs", {}), schema
    for part in parts:
        node = _resolve(node.get("properties", {}).get(part, {}), definitions)
    return set(node.get("properties", {}))


def _resolve(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    for one in (node, node.get("items", {}), *node.get("anyOf", ())):
        if "$ref" in one:
            found: Mapping[str, Any] = definitions[one["$ref"].rpartition("/")[2]]
            return found
    return node
