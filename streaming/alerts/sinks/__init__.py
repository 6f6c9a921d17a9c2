"""Where alarms go: Alertmanager, webhooks, mail and a file, each with its own time-outs and retries."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from schemas.errors import SettingsError
from streaming.alerts.alarm import Sink
from streaming.alerts.sinks.alertmanager import AlertmanagerSettings, AlertmanagerSink
from streaming.alerts.sinks.file import FileSettings, FileSink
from streaming.alerts.sinks.smtp import SmtpSettings, SmtpSink
from streaming.alerts.sinks.webhook import WebhookSettings, WebhookSink

SinkSettings = Annotated[
    AlertmanagerSettings | WebhookSettings | SmtpSettings | FileSettings, Field(discriminator="type")
]
SinkName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,63}$")]

_SINKS: TypeAdapter[dict[str, SinkSettings]] = TypeAdapter(dict[SinkName, SinkSettings])


def open_sinks(config: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> dict[str, Sink]:
    """Make the sinks that the rules name; nothing is sent, and nobody is asked for an address.

    Parameters
    ----------
    config : mapping
        The part ``sinks`` of the rules: a name for each, and its settings.
    environment : mapping of str to str
        Where secrets with ``env`` are.

    Returns
    -------
    dict
        By name.

    Raises
    ------
    SettingsError
        Names the first place that is wrong, ``sinks.pager.url``, and never quotes what is there.
    """
    try:
        found = _SINKS.validate_python(config, context=environment)
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        msg = f"{_place(first['loc'])}: {first['msg'].removeprefix('Value error, ')}"
        raise SettingsError(msg) from None  # pydantic's own error quotes what it found
    return {name: _open_sink(name, settings) for name, settings in found.items()}


def describe_sinks() -> dict[str, Any]:
    """Give the JSON Schema of the part ``sinks`` of the rules."""
    return _SINKS.json_schema()


def _open_sink(name: str, settings: SinkSettings) -> Sink:
    match settings:
        case AlertmanagerSettings():
            return AlertmanagerSink(name, settings)
        case WebhookSettings():
            return WebhookSink(name, settings)
        case SmtpSettings():
            return SmtpSink(name, settings)
        case FileSettings():
            return FileSink(name, settings)


def _place(parts: tuple[int | str, ...]) -> str:
    """Write a place as the YAML has it: pydantic adds the kind of sink behind its name, and ``[key]`` behind a key."""
    name, rest = parts[:1], parts[2:]
    return ".".join(str(part) for part in ("sinks", *name, *rest))
