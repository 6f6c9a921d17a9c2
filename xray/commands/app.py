"""All commands under one name. Each is in a module of its own, and heavy imports wait for their command."""

from pathlib import Path
from typing import Annotated

import typer

from streaming.settings import choose_env_file
from xray.commands.alerts import alerts_app
from xray.commands.archive import archive
from xray.commands.audit import audit
from xray.commands.broker import down, up
from xray.commands.deadletters import deadletters_app
from xray.commands.demo import demo
from xray.commands.devices import devices
from xray.commands.doctor import doctor
from xray.commands.featurize import featurize
from xray.commands.find import find
from xray.commands.gateway import gateway
from xray.commands.label import label
from xray.commands.models import models_app
from xray.commands.page import page
from xray.commands.phantom import phantom
from xray.commands.prepare import prepare
from xray.commands.publish import publish
from xray.commands.render import render
from xray.commands.results import results_app
from xray.commands.retrain import retrain
from xray.commands.settings import settings
from xray.commands.status import status
from xray.commands.stream import stream
from xray.commands.support import support
from xray.commands.tables import tables_app
from xray.commands.train import train
from xray.commands.version import show_version
from xray.commands.watch import watch

app = typer.Typer(
    help=(
        "Classifies chest X-rays while they stream in: Kafka, Spark, a CNN featurizer, Delta.\n\n"
        "See it work: [bold]xray demo[/]. By hand: xray up, xray train, xray stream, and in a second terminal "
        "xray publish and xray watch.\n\nResearch use only. Not a medical device."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _read_common_options(
    env: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings as KEY=VALUE lines; by default xray.env in XRAY_HOME.")
    ] = None,
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=show_version, help="Versions of this, Python, Spark, Java."),
    ] = False,
) -> None:
    choose_env_file(env)


app.add_typer(models_app, name="models")
app.add_typer(deadletters_app, name="deadletters")
app.add_typer(tables_app, name="tables")
app.add_typer(alerts_app, name="alerts")
app.add_typer(results_app, name="results")
for command in (
    demo,
    prepare,
    up,
    down,
    status,
    doctor,
    support,
    render,
    publish,
    stream,
    archive,
    gateway,
    watch,
    page,
    train,
    label,
    retrain,
    featurize,
    audit,
    find,
    phantom,
    devices,
    settings,
):
    app.command()(command)
