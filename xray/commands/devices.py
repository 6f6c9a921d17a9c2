"""``xray devices``: imagined devices that send generated studies to the gateway."""

import random
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from schemas.extras import check_extra
from streaming.ending import end_on_signals
from streaming.settings import load_settings
from xray.commands.options import Json
from xray.console import out, print_json, step
from xray.simulator.answers import REJECTED

_STRANGERS = {REJECTED.name, "401", "403"}
"""Answers to devices that the gateway's file does not name."""


def devices(
    count: Annotated[int, typer.Option(min=1, max=999, help="How many devices.")] = 50,
    rate: Annotated[float, typer.Option(min=0.001, help="Images a second of each device, on average.")] = 0.2,
    duration: Annotated[float | None, typer.Option(min=0.1, help="No new images after so many seconds.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="No new images after so many of all devices.")] = None,
    broken: Annotated[float, typer.Option(min=0, max=1, help="Share of objects that are broken on purpose.")] = 0.0,
    host: Annotated[str | None, typer.Option(help="Where the gateway is; by default where it listens.")] = None,
    dicom_port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Of its DICOM door.")] = None,
    http_port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Of its HTTP door.")] = None,
    called_aet: Annotated[str | None, typer.Option(help="Its AE title.")] = None,
    token: Annotated[str | None, typer.Option(help="Bearer token of the devices that send by HTTP.")] = None,
    http_share: Annotated[float, typer.Option(min=0, max=1, help="Share of devices that send by HTTP.")] = 0.2,
    give_up: Annotated[float, typer.Option(min=1, help="Seconds after which an image is sent no more.")] = 300.0,
    seed: Annotated[int | None, typer.Option(min=0, help="The same one: the same devices, patients, faults.")] = None,
    account: Annotated[Path | None, typer.Option(metavar="FILE", help="Gets a JSON line for each try.")] = None,
    json_: Json = False,
) -> None:
    """Send generated studies as many modalities would, by DICOM and HTTP; until Ctrl-C, unless told otherwise.

    Each device has its own AE title (SIM-001 and so on), maker, transfer syntaxes and manners. What the gateway cannot
    take now is sent again; at an end by --duration or --images the devices send what they have. Nobody's name is real:
    each begins with ZZMARKER.

    Exit code 1 when an object that was not broken on purpose was refused for good, or given up.
    """
    check_extra("gateway", "sending by DICOM", modules=("pynetdicom",))
    from xray.simulator.account import Account
    from xray.simulator.fleet import Plan, run_devices
    from xray.simulator.pictures import Pictures
    from xray.simulator.posting import HttpTarget
    from xray.simulator.screen import show_devices
    from xray.simulator.storing import DicomTarget

    gateway = load_settings().gateway
    own_host = host or _reachable(gateway.host)
    dicom: DicomTarget | None = None
    http: HttpTarget | None = None
    if http_share < 1:
        port = _port(dicom_port, gateway.dicom_port, "--dicom-port")
        dicom = DicomTarget(own_host, port, called_aet or gateway.aet)
    if http_share > 0:
        http = HttpTarget(own_host, _port(http_port, gateway.http_port, "--http-port"), token)
    if seed is None:
        seed = random.SystemRandom().randrange(100_000)
    plan = Plan(count, rate, seed, broken, images, duration, give_up, dicom, http, http_share)
    stop = threading.Event()
    end_on_signals(stop)
    with Account(account) as book:
        with step("drawing radiographs"):
            pictures = Pictures(seed)
        with show_devices(book) as redraw:
            run_devices(plan, book, pictures, stop, redraw)
        figures = book.figures()
    _report({"seed": seed, **figures}, as_json=json_)
    if figures["failed"]:
        raise typer.Exit(1)


def _port(given: int | None, own: int | Literal["off"], option: str) -> int:
    """Give the port of a door; the settings need not name one that can be called."""
    if given is not None:
        return given
    if own in {"off", 0}:
        msg = f"the settings have the port {own}; wanted the one that the gateway has"
        raise typer.BadParameter(msg, param_hint=option)
    return int(own)


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host  # noqa: S104  it is where the gateway listens


def _report(figures: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(figures)
        return
    refused = sum(figures["refused"].values())
    out.print(
        f"{figures['sent']} images in {figures['seconds']:.0f} s: {figures['accepted']} accepted, {refused} refused, "
        f"{figures['given_up']} given up, {figures['unfinished']} not sent; {figures['retried']} retries.",
        soft_wrap=True,
    )
    for answer, times in figures["refused"].items():
        out.print(f"  {times:>6} refused: {answer}", markup=False)
    if _STRANGERS & set(figures["refused"]):
        out.print(
            "The gateway does not know these devices. Their titles are SIM-001 and so on: name them in its file "
            "(XRAY_GATEWAY__DEVICES) and give --token, or start one without a file.",
            soft_wrap=True,
        )
    for damage, answers in figures["broken"].items():
        told = ", ".join(f"{answer} ({times})" for answer, times in answers.items())
        out.print(f"  broken on purpose, {damage}: {told}", markup=False, soft_wrap=True)
    out.print(f"Seed {figures['seed']}; {figures['failed']} good images were refused for good, or given up.")
