"""``xray gateway``: images from devices, by DICOM and HTTP."""

import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from schemas.envelope import DISCLAIMER
from streaming.ending import end_on_signals
from streaming.settings import load_settings
from xray.console import out, print_json, say_ended

_HIGHEST_PORT = 65_535


def _read_port(text: str) -> int | str:
    if text == "off" or (text.isdecimal() and int(text) <= _HIGHEST_PORT):
        return text if text == "off" else int(text)
    msg = f"{text!r} is no port; wanted 0 to {_HIGHEST_PORT}, or off"
    raise typer.BadParameter(msg)


def gateway(
    dicom_port: Annotated[
        str | None,
        typer.Option(parser=_read_port, metavar="PORT", help="DICOM; 0 takes a free one, off closes it. [11112]"),
    ] = None,
    aet: Annotated[str | None, typer.Option(help="Application entity title of the gateway. [XRAY]")] = None,
    http_port: Annotated[
        str | None,
        typer.Option(parser=_read_port, metavar="PORT", help="HTTP; 0 takes a free one, off closes it. [8042]"),
    ] = None,
    spool: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where images wait on disk while Kafka is away.")
    ] = None,
    crosswalk: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep ids beside their pseudonyms, encrypted.")
    ] = None,
    keep_originals: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep whole objects as they came; they name patients.")
    ] = None,
    storage_commitment: Annotated[
        bool, typer.Option("--storage-commitment", help="Offer Storage Commitment; wants --keep-originals.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON line when ready, and one at the end.")] = False,
) -> None:
    """Take images from devices and answer each once Kafka has it; until Ctrl-C.

    A modality stores to it by DICOM (C-STORE). Programs send by DICOMweb (STOW-RS, POST /studies) or plain HTTP
    (POST /images: PNG, JPEG, DICOM). Images are de-identified on the way. Who may send: XRAY_GATEWAY__DEVICES; without
    it this machine alone. All else about it: 'xray settings' and docs/devices.md.

    Try it: storescu -aet DX1 -aec XRAY 127.0.0.1 11112 image.dcm, or curl --data-binary @image.png
    -H 'Content-Type: image/png' http://127.0.0.1:8042/images.
    """
    from streaming.gateway.service import GatewayState, run_gateway

    given = {
        "dicom_port": dicom_port,
        "aet": aet,
        "http_port": http_port,
        "spool": spool,
        "crosswalk": crosswalk,
        "keep_originals": keep_originals,
        "storage_commitment": storage_commitment or None,
    }
    settings = load_settings(gateway={name: value for name, value in given.items() if value is not None})
    ended = threading.Event()
    end_on_signals(ended)

    def on_ready(state: GatewayState) -> None:
        if json_:
            print_json({"event": "ready", **describe(state)})
            return
        if state.dicom_port is not None:
            out.print(f"[green]DICOM[/]   {settings.gateway.aet} at {settings.gateway.host}:{state.dicom_port}")
        if state.http_port is not None:
            scheme = "https" if settings.gateway.tls_certificate else "http"
            out.print(f"[green]HTTP[/]    {scheme}://{settings.gateway.host}:{state.http_port}")
        out.print(f"Metrics {state.metrics_url}")
        out.print(f"{DISCLAIMER} Ctrl-C ends it in order.")

    run_gateway(settings, ended=ended, on_ready=on_ready)
    say_ended(as_json=json_)


def describe(state: Any) -> dict[str, Any]:
    """Give the keys of the line that says it is ready."""
    return {"dicom_port": state.dicom_port, "http_port": state.http_port, "metrics": state.metrics_url}
