"""``xray up`` and ``xray down``: a broker on this machine, and the topics."""

from streaming.settings import load_settings
from xray.commands.options import Json
from xray.console import out, print_json, step


def up(json_: Json = False) -> None:
    """Start a Kafka broker on this machine, and create the topics.

    With XRAY_KAFKA__BOOTSTRAP_SERVERS naming a Kafka elsewhere, only the topics are created there.
    """
    from streaming.kafka.topicchecks import check_topics
    from streaming.kafka.topics import create_topics, label_topics, receipt_topics, wanted_topics
    from xray.broker import LOCAL_HOSTS, LocalBroker

    settings = load_settings()
    started = False
    local = settings.kafka.bootstrap_servers.rpartition(":")[0] in LOCAL_HOSTS
    if local:
        broker = LocalBroker.of(settings)
        if broker.pid() is None:
            first = "" if broker.has_jars else " (its jars are fetched first, 45 MB)"
            with step(f"starting the broker{first}"):
                started = broker.start()
    kafka = settings.kafka
    created = create_topics(kafka, wanted_topics(kafka) | label_topics(kafka) | receipt_topics(kafka))
    answer = {"bootstrap_servers": settings.kafka.bootstrap_servers, "started": started, "created_topics": created}
    if json_:
        print_json(answer)
    else:
        out.print(
            f"Kafka at [bold]{settings.kafka.bootstrap_servers}[/]: {_describe_start(started=started, local=local)}."
        )
        out.print(f"Topics: {', '.join(created) + ' created' if created else 'all there'}.", soft_wrap=True)
    check_topics(settings.kafka, may_be_denied=True)


def _describe_start(*, started: bool, local: bool) -> str:
    if not local:
        return "answers"
    return "started" if started else "was running already"


def down(json_: Json = False) -> None:
    """End the broker of this machine, in order, and a demo that was kept. Its messages stay on disk."""
    from xray.broker import LocalBroker
    from xray.demolock import end_demo

    settings = load_settings()
    # First: a demo's stream ends in order only while its broker is there. Its folder may be named as XRAY_HOME itself.
    demos = [end_demo(home) for home in (settings.home / "demo", settings.home)]
    with step("ending the broker"):
        stopped = LocalBroker.of(settings).stop()
    if json_:
        print_json({"stopped": stopped, **({"demo_stopped": True} if any(demos) else {})})
        return
    if any(demos):
        out.print("The demo ended, and its broker.")
    if stopped or not any(demos):
        out.print("The broker ended." if stopped else "No broker of this machine was running.")
