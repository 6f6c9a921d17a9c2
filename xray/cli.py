"""Commands: what they take and what they show. The work is done elsewhere; heavy imports wait for their command."""

import re
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from schemas.errors import JobError, Reason
from streaming.settings import load_settings, variable_names
from xray.console import DISCLAIMER, err, new_progress, new_table, out, print_json, step
from xray.label import label
from xray.models import mirror_aliases, models_app
from xray.retrain import retrain
from xray.tables import tables_app

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
app.add_typer(models_app, name="models")
deadletters_app = typer.Typer(
    help=(
        "List the records that could not be scored, show one, send them again.\n\n"
        "Look: [bold]xray deadletters list --since 2h[/]. Repair what was wrong. Try: [bold]xray deadletters redrive "
        "--reason payload_too_large --dry-run[/]; then the same without --dry-run.\n\n"
        "Nothing that was about a patient is printed. Needs no Spark."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(deadletters_app, name="deadletters")
app.add_typer(tables_app, name="tables")


def _read_moment(text: str) -> datetime:
    """Read an absolute or a relative time of the command line."""
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    if match := re.fullmatch(r"(\d{1,6})([smhd])", text):
        return datetime.now(UTC) - timedelta(seconds=int(match[1]) * seconds[match[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        msg = f"{text!r} is no time; wanted e.g. 2026-01-31T12:00, 2026-01-31T12:00+01:00, 90s, 30m, 2h or 7d"
        raise typer.BadParameter(msg) from exc
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _read_place(text: str) -> tuple[int, int]:
    """Read ``PARTITION@OFFSET``."""
    match = re.fullmatch(r"(\d{1,9})@(\d{1,18})", text)
    if match is None:
        msg = f"{text!r} is no place in a topic; wanted PARTITION@OFFSET, e.g. 0@17"
        raise typer.BadParameter(msg)
    return int(match[1]), int(match[2])


Since = Annotated[
    datetime | None,
    typer.Option(parser=_read_moment, metavar="TIME", help="From this time on: ISO 8601 (UTC unless it says), or 2h."),
]
Until = Annotated[
    datetime | None,
    typer.Option(parser=_read_moment, metavar="TIME", help="Before this time: ISO 8601 (UTC unless it says), or 30m."),
]
Reasons = Annotated[list[Reason] | None, typer.Option("--reason", help="Only this reason; may be given several times.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for a program.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Let Spark and its neighbours speak on the terminal.")]


@app.command()
def demo(
    count: Annotated[int, typer.Option(min=20, max=5000, help="Images to stream, good ones.")] = 300,
    seed: Annotated[int, typer.Option(help="Another seed makes other images.")] = 7,
    keep: Annotated[bool, typer.Option("--keep", help="Go on streaming after the summary, until Ctrl-C.")] = False,
    json_: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show the whole thing on this machine: broker, generated radiographs, training, streaming, the account.

    Everything it makes is below XRAY_HOME/demo; its broker is its own and ends with it.
    """
    from xray.demo import run_demo

    summary = run_demo(load_settings(), count=count, seed=seed, keep=keep, verbose=verbose)
    if json_:
        print_json(summary.to_dict())
    if not summary.passed:
        raise typer.Exit(1)


@app.command()
def prepare(json_: Json = False) -> None:
    """Fetch the jars of Kafka, its Spark connector and Delta, so that nothing is fetched later."""
    from xray.prepare import fetch_jars

    settings = load_settings()
    with step(f"fetching jars into {settings.jars_folder} (about 70 MB, once)"):
        counts = fetch_jars(settings.jars_folder)
    if json_:
        print_json(counts)


@app.command()
def up(json_: Json = False) -> None:
    """Start a Kafka broker on this machine and creates the topics.

    With XRAY_KAFKA__BOOTSTRAP_SERVERS naming a Kafka elsewhere, only the topics are created there.
    """
    from streaming.kafka.topicchecks import check_topics
    from streaming.kafka.topics import create_topics, label_topics, wanted_topics
    from xray.broker import LOCAL_HOSTS, LocalBroker

    settings = load_settings()
    started = False
    if settings.kafka.bootstrap_servers.rpartition(":")[0] in LOCAL_HOSTS:
        with step("starting the broker (the first time fetches its jars, 45 MB)"):
            started = LocalBroker.of(settings).start()
    created = create_topics(settings.kafka, wanted_topics(settings.kafka) | label_topics(settings.kafka))
    answer = {"bootstrap_servers": settings.kafka.bootstrap_servers, "started": started, "created_topics": created}
    if json_:
        print_json(answer)
    else:
        out.print(f"Kafka at [bold]{settings.kafka.bootstrap_servers}[/]: {'started' if started else 'runs'}.")
        out.print(f"Topics: {', '.join(created) + ' created' if created else 'all there'}.")
    check_topics(settings.kafka, may_be_denied=True)


@app.command()
def down(json_: Json = False) -> None:
    """End the broker of this machine, in order. Its messages stay on disk."""
    from xray.broker import LocalBroker

    with step("ending the broker"):
        stopped = LocalBroker.of(load_settings()).stop()
    if json_:
        print_json({"stopped": stopped})
    else:
        out.print("The broker ended." if stopped else "No broker of this machine was running.")


@app.command()
def status(json_: Json = False) -> None:
    """Tell whether the broker answers, what the topics hold and which model is promoted. Exit code 1: no answer."""
    from xray.status import describe_status

    state = describe_status(load_settings())
    if json_:
        print_json(state)
    else:
        table = new_table("topic", "#partitions", "#messages")
        for name, topic in state["topics"].items():
            table.add_row(name, str(topic["partitions"]), str(topic["messages"]))
        answer = "[green]answers[/]" if state["kafka"] else "[red]does not answer[/]; start it with 'xray up'"
        out.print(f"Kafka at {state['bootstrap_servers']} {answer}.")
        out.print(f"State folder: {state['home']}")
        out.print(f"Promoted model: {state['champion'] or 'none; train one with xray train'}")
        if state["topics"]:
            out.print(table)
    if not state["kafka"]:
        raise typer.Exit(1)


@app.command()
def publish(
    paths: Annotated[list[str], typer.Argument(help="Files, folders (searched for PNG, JPEG, DICOM) or globs.")],
    rate: Annotated[float | None, typer.Option(min=0.001, help="Images per second at most.")] = None,
    source: Annotated[str, typer.Option(help="Who publishes (CloudEvents source).")] = "/xray/publish",
    hide_names: Annotated[
        bool, typer.Option("--hide-names", help="Name images by their content: a file's name may be a patient's.")
    ] = False,
    json_: Json = False,
) -> None:
    """Send image files to the images topic and waits until the broker confirms each.

    Exit code 1 when one was not confirmed; each of those is listed. Publishing the same bytes again is harmless: the
    image keeps its id.
    """
    from streaming.devices.publish import find_files, publish_files

    settings = load_settings()
    files = find_files(paths)
    with new_progress() as progress:
        task = progress.add_task("publishing", total=len(files))
        report = publish_files(
            files,
            settings.kafka,
            source=source,
            rate=rate,
            hide_names=hide_names,
            on_progress=lambda done: progress.update(task, completed=done),
        )
    failed = {str(path): why for path, why in report.failed.items()}
    if json_:
        print_json({"delivered": len(report.delivered), "failed": failed, "seconds": round(report.seconds, 3)})
    else:
        out.print(f"{len(report.delivered)} of {len(files)} images confirmed in {report.seconds:.1f} s.")
    for path, why in failed.items():
        err.print(f"not published: {path}: {why}", markup=False)
    if failed:
        raise typer.Exit(1)


@app.command()
def stream(
    available_now: Annotated[bool, typer.Option("--available-now", help="Score what is there, then end.")] = False,
    model: Annotated[
        Path | None, typer.Option(help="Serve this folder and stay with it; by default the promoted model.")
    ] = None,
    no_archive: Annotated[
        bool, typer.Option("--no-archive", help="Write no tables; a later stream without this option does.")
    ] = False,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="Go on behind records that retention removed unread, or from the beginning of a topic made anew.",
        ),
    ] = False,
    from_beginning: Annotated[
        bool,
        typer.Option("--from-beginning", help="Without a checkpoint: score images again that have an outcome already."),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON line when ready, and one at the end.")] = False,
    verbose: Verbose = False,
) -> None:
    """Score images as they come (SCORE), keep results in Delta tables (ARCHIVE), serve metrics; until Ctrl-C.

    Ctrl-C and SIGTERM finish the running batch and commit it; what comes later is read at the next start. A model that
    is promoted meanwhile (xray models promote) serves from the next batch on.
    """
    from prometheus_client import CollectorRegistry

    from streaming.run.service import StreamState, run_stream
    from xray.monitor import Monitor

    settings = load_settings()
    ended, registry = threading.Event(), CollectorRegistry()
    monitor = None if available_now else Monitor(settings, registry, model_folder=model)

    def on_ready(state: StreamState) -> None:
        if monitor is not None:
            monitor.start()
        if json_:
            print_json({"event": "ready", "metrics": state.metrics_url, "model": state.card.version})
        else:
            out.print(f"[green]Streaming[/] {settings.kafka.images_topic} → {settings.kafka.predictions_topic}")
            out.print(f"Model   {state.card.name} {state.card.version} ({', '.join(state.card.labels)})")
            out.print(f"Tables  {'not written (--no-archive)' if no_archive else settings.tables_folder}")
            out.print(f"Metrics {state.metrics_url}")
            out.print(f"Logs    {settings.logs_folder / 'spark.log'}")
            out.print(DISCLAIMER if available_now else f"{DISCLAIMER} Ctrl-C ends it in order.")

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: ended.set())
    if not json_:
        err.print("starting (Spark takes some seconds) ...")
    try:
        run_stream(
            settings,
            model_folder=model,
            available_now=available_now,
            archive=not no_archive,
            accept_loss=accept_loss,
            from_beginning=from_beginning,
            ended=ended,
            on_ready=on_ready,
            registry=registry,
            verbose=verbose,
        )
    finally:
        if monitor is not None:
            monitor.stop()
    if json_:
        print_json({"event": "ended"})
    else:
        out.print("Ended in order: every consumed image has its outcome.")


@app.command()
def watch(
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Begin with the oldest.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many predictions.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="End after so many quiet seconds.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON line per prediction.")] = False,
) -> None:
    """Show predictions as they come."""
    from xray.views import watch_live

    watch_live(load_settings().kafka, from_beginning=from_beginning, count=count, timeout_s=timeout, as_json=json_)


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder with one sub-folder per class, or a manifest (CSV: file,label).")],
    network: Annotated[
        list[str] | None, typer.Option(help="EfficientNetLite0 (default), InceptionV3, …; several with --tune.")
    ] = None,
    weights: Annotated[str, typer.Option(help="imagenet, random, or a Keras file.")] = "imagenet",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or int8 (calibrated on the training images).")] = "fp32",
    classes: Annotated[str | None, typer.Option(help="Only these, e.g. normal,covid.")] = None,
    positive: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="The class that score, sensitivity and alerts are about; needed where no name of a class, such as "
            "normal or 'No Finding', tells it.",
        ),
    ] = None,
    external: Annotated[
        list[Path] | None, typer.Option(help="Another set to measure the model on, laid out as --data; repeatable.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose regularisation, and network of several, by cross-validation.")
    ] = False,
    class_weights: Annotated[
        bool, typer.Option("--class-weights", help="Let each class count as much as any other.")
    ] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Make probabilities mean what they say.")] = False,
    sensitivity: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Choose the threshold that reaches it, e.g. 0.95.")
    ] = None,
    abstain: Annotated[
        float | None, typer.Option(min=0.01, max=0.5, help="Share of images too close to the threshold to decide on.")
    ] = None,
    flag_unlike: Annotated[
        bool, typer.Option("--gate", help="Flag images unlike the training images instead of judging them.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the split and of random weights.")] = 0,
    promote: Annotated[
        bool, typer.Option(help="Let the stream serve the new model, unless it is worse than the one in service.")
    ] = True,
    track: Annotated[bool, typer.Option(help="Tell MLflow of the run.")] = True,
    json_: Json = False,
    verbose: Verbose = False,
) -> None:
    """Fit a model, judge it on a held-out 30 % of the patients, look for shortcuts, write a report.

    One class is the positive one: score, sensitivity and alerts are about it. It is given with [bold]--positive[/] or
    in the manifest's column positive, or it is the one beside classes like normal, healthy, control, No Finding or
    non-covid. Where nothing tells it, nothing is trained. The first line says which one it is.

    Features are kept in XRAY_HOME/cache: a stopped run goes on where it was, and another fit takes seconds.
    """
    from training.model.decision import NOVELTY_QUANTILE
    from training.model.material import Procedure
    from xray.train import promote_trained, train_on
    from xray.views import show_training

    settings = load_settings()
    trained = train_on(
        settings,
        data,
        classes=classes.split(",") if classes else None,
        positive=positive,
        external=external or (),
        procedure=Procedure(
            tune, class_weights, calibrate, sensitivity, abstain, NOVELTY_QUANTILE if flag_unlike else None
        ),
        verbose=verbose,
        network=network or ["EfficientNetLite0"],
        weights=weights,
        precision=precision,
        seed=seed,
    )
    decision = promote_trained(settings, trained) if promote else None
    show_training(trained, decision, as_json=json_)
    if track:
        mirror_aliases(settings, trained.result.card.name, also=[trained.result.card])


app.command()(label)
app.command()(retrain)


@app.command()
def featurize(
    folder: Annotated[Path, typer.Argument(help="Searched with its sub-folders for PNG, JPEG and DICOM files.")],
    out_: Annotated[Path, typer.Option("--out", help="Folder for the Parquet files; new, or of a stopped run.")],
    network: Annotated[str, typer.Option(help="EfficientNetLite0, InceptionV3, ResNet50, …")] = "EfficientNetLite0",
    weights: Annotated[str, typer.Option(help="imagenet, random, or a Keras file.")] = "imagenet",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or int8 (calibrated on the training images).")] = "fp32",
    images_per_batch: Annotated[int, typer.Option(min=1, help="What a stop can cost, in files.")] = 1000,
    json_: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compute feature vectors of a folder of images, however many; Ctrl-C stops, the same command goes on.

    Each file gets one row: path, and features or the reason why there are none. Files that were added since are done
    by the next run.
    """
    from xray.featurize import featurize as featurize_images
    from xray.featurize import show_result

    result = featurize_images(
        load_settings(),
        folder,
        out_,
        images_per_batch=images_per_batch,
        verbose=verbose,
        modelName=network,
        weights=weights,
        precision=precision,
    )
    show_result(result, as_json=json_)


@app.command()
def audit(
    since: Since = None,
    until: Until = None,
    from_: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="PARTITION@OFFSET", help="First offset of a partition; repeatable."),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="PARTITION@OFFSET", help="Offset of a partition to end before; repeatable."),
    ] = None,
    json_: Json = False,
) -> None:
    """Draw up the account: is every consumed image a prediction or a dead letter? Exit code 1 when it is not.

    Exit code 3 when no stream has run from this XRAY_HOME: what was consumed is known from its checkpoint alone.

    Of all images, or of those that the broker received in a time (--since 2h) or that have certain offsets (--from
    0@1200 --to 0@1300). With --from or --to only the partitions that they name are in the account.
    """
    from streaming.account.audit import Scope, audit_stream
    from xray.views import show_account

    settings = load_settings()
    scope = Scope(since, until, dict(map(_read_place, from_ or ())), dict(map(_read_place, to or ())))
    with step("reading topics and tables"):
        account = audit_stream(settings, scope)
    if json_:
        print_json(account.to_dict())
    else:
        show_account(account)
    if not account.balanced:
        raise typer.Exit(1)


@app.command()
def phantom(
    folder: Annotated[Path, typer.Argument(help="Where the images and manifest.csv go.")],
    count: Annotated[int, typer.Option(min=2, help="How many; half of them with opacities.")] = 160,
    seed: Annotated[int, typer.Option(help="Another seed makes other patients.")] = 1,
    marker: Annotated[
        bool, typer.Option("--marker", help="Plant a shortcut: a letter on every image with opacities.")
    ] = False,
    json_: Json = False,
) -> None:
    """Generate radiographs of chest phantoms (PNG, JPEG, DICOM), normal and with bilateral opacities."""
    from xray.phantom import write_folder

    with new_progress() as progress:
        task = progress.add_task("generating radiographs", total=count)
        manifest = write_folder(folder, count, seed=seed, marker=marker, progress=lambda *_: progress.advance(task))
    if json_:
        print_json({"manifest": str(manifest), "count": count})
    else:
        out.print(f"{count} radiographs; train on them with: xray train --data {manifest}")


@deadletters_app.command("list")
def list_deadletters(
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0 only counts.")] = 50,
    json_: Json = False,
) -> None:
    """List dead letters, newest first, and count them by reason.

    Times are those at which they were written to the dead-letter topic.
    """
    from streaming.deadletters.read import Selection, list_dead_letters
    from xray.views import show_dead_letters

    settings = load_settings()
    with step("reading dead letters"):
        listing = list_dead_letters(settings.kafka, Selection(frozenset(reason or ()), since, until), limit=limit)
    if json_:
        print_json(listing.to_dict())
    else:
        show_dead_letters(listing)


@deadletters_app.command("show")
def show_deadletter(
    which: Annotated[
        str, typer.Argument(metavar="DEAD_LETTER", help="PARTITION@OFFSET as 'list' shows it, or an event id.")
    ],
    save: Annotated[Path | None, typer.Option(help="Write the original bytes to this new file.")] = None,
    json_: Json = False,
) -> None:
    """Show one dead letter: what was wrong, where the record was, its size, format and headers.

    The record's bytes, its key and values of headers that could be about a patient are not printed. --save writes the
    bytes as they came; such a file may hold patient data, and only you can read it.
    """
    from streaming.deadletters.read import Place, show_dead_letter
    from xray import views

    settings = load_settings()
    place = which if re.fullmatch("[0-9a-f]{32}", which) else Place(*_read_place(which))
    with step("looking for it"):
        details = show_dead_letter(settings.kafka, place)
    if save is not None:
        _save_payload(details.payload, save)
    if json_:
        print_json({**details.to_dict(), "saved": None if save is None else str(save)})
        return
    views.show_dead_letter(details)
    if save is not None:
        out.print(f"{len(details.payload or b'')} bytes written to {save}.", markup=False)


@deadletters_app.command("redrive")
def redrive_deadletters(
    which: Annotated[
        list[str] | None, typer.Argument(metavar="[PARTITION@OFFSET]", help="As 'list' shows them.")
    ] = None,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    all_: Annotated[bool, typer.Option("--all", help="Every dead letter that the topic holds.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also those that were sent again before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be sent.")] = False,
    json_: Json = False,
) -> None:
    """Send original records to the images topic again, once what was wrong with them is repaired.

    Name them by place, or by --reason, --since and --until, or say --all. Bytes, key and headers are the original ones;
    the header xray_redriven_from says where the record was before. Each is sent again once: a second call leaves it
    out, unless it failed anew. It does not ask; it tells how many it sends and why others are left out. Exit code 1
    when one was not confirmed.
    """
    from streaming.deadletters.read import Place, Selection
    from streaming.deadletters.redrive import plan_redrive, redrive
    from xray.views import show_redrive_plan, show_redrive_report

    filters = bool(reason or since or until)
    if bool(which) + filters + all_ != 1:
        msg = "say which: PARTITION@OFFSET..., or --reason / --since / --until, or --all; one of the three"
        raise typer.BadParameter(msg)
    settings = load_settings()
    kafka = settings.kafka
    selection = Selection(frozenset(reason or ()), since, until, [Place(*_read_place(text)) for text in which or ()])
    with step("reading dead letters, and what was sent again before"):
        plan = plan_redrive(kafka, selection, max_payload_bytes=settings.score.max_payload_bytes, again=again)
    show_redrive_plan(plan, kafka.images_topic, dry_run=dry_run)
    if dry_run:
        if json_:
            print_json({"dry_run": True, **plan.to_dict()})
        return
    with new_progress() as progress:
        task = progress.add_task("re-driving", total=len(plan.chosen))
        report = redrive(kafka, plan, on_progress=lambda done: progress.update(task, completed=done))
    failed = {str(place): why for place, why in report.failed.items()}
    if json_:
        figures = {"redriven": len(report.delivered), "failed": failed, "seconds": round(report.seconds, 3)}
        print_json({"dry_run": False, **plan.to_dict(), **figures})
    else:
        show_redrive_report(report)
    for place, why in failed.items():
        err.print(f"not sent: {place}: {why}", markup=False)
    if failed:
        raise typer.Exit(1)


def _save_payload(payload: bytes | None, path: Path) -> None:
    if payload is None:
        msg = "a tombstone has no bytes to save"
        raise JobError(msg)
    try:
        path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(payload)
    except OSError as exc:
        msg = f"cannot write {path}: {exc.strerror}; --save wants a new file"
        raise JobError(msg) from exc


@app.command()
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
