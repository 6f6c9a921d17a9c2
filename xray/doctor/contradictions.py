"""Settings that are each right by themselves, and contradict one another."""

import ipaddress
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from streaming.settings import StreamSettings
from xray.doctor.finding import Finding, Verdict
from xray.doctor.ports import list_ports


def check_settings(settings: StreamSettings) -> Iterator[Finding]:
    """Find settings that contradict one another."""
    found = [
        *_check_ports(settings),
        *_check_topics(settings),
        *_check_kafka(settings),
        *_check_sizes(settings),
        *_check_times(settings),
        *_check_gateway(settings),
        *_check_others(settings),
    ]
    yield from found or [Finding("settings", Verdict.OK, "none contradicts another")]


def _fault(found: str, advice: str) -> Finding:
    return Finding("settings", Verdict.FAULT, found, advice)


def _warning(found: str, advice: str) -> Finding:
    return Finding("settings", Verdict.WARNING, found, advice)


def _check_ports(settings: StreamSettings) -> Iterator[Finding]:
    by_port = defaultdict(list)
    for name, port in list_ports(settings).items():
        by_port[port].append(name)
    for port, names in by_port.items():
        if len(names) > 1:
            yield _fault(f"{' and '.join(names)} are all {port}", "Give each a port of its own.")


def _check_topics(settings: StreamSettings) -> Iterator[Finding]:
    by_topic = defaultdict(list)
    for name, value in settings.kafka:
        if name.endswith("_topic"):
            by_topic[value].append(f"XRAY_KAFKA__{name.upper()}")
    for topic, names in by_topic.items():
        if len(names) > 1:
            yield _fault(f"{' and '.join(names)} are all {topic}", "Give each a topic of its own.")


def _check_kafka(settings: StreamSettings) -> Iterator[Finding]:
    kafka = settings.kafka
    protocol = f"XRAY_KAFKA__SECURITY_PROTOCOL is {kafka.security_protocol}"
    if not kafka.security_protocol.startswith("SASL") and (kafka.sasl_username or kafka.sasl_password):
        yield _warning(f"{protocol}, so user and password are not used", "Use SASL_SSL, or remove XRAY_KAFKA__SASL_*.")
    if not kafka.security_protocol.endswith("SSL") and (kafka.ssl_ca_location or kafka.ssl_certificate_location):
        yield _warning(f"{protocol}, so the certificates are not used", "Use SSL or SASL_SSL, or remove them.")
    if kafka.security_protocol == "SASL_PLAINTEXT":
        yield _warning(f"{protocol}: the password goes over the network as it is", "Use SASL_SSL.")


def _check_sizes(settings: StreamSettings) -> Iterator[Finding]:
    score, gateway, kafka = settings.score, settings.gateway, settings.kafka
    if score.max_payload_bytes > kafka.max_message_bytes:
        found = (
            f"XRAY_SCORE__MAX_PAYLOAD_BYTES is {score.max_payload_bytes}, XRAY_KAFKA__MAX_MESSAGE_BYTES "
            f"{kafka.max_message_bytes}: Kafka takes no image of that size"
        )
        yield _warning(found, "Raise the second, or lower the first.")
    if gateway.max_object_bytes > score.max_payload_bytes:
        found = (
            f"XRAY_GATEWAY__MAX_OBJECT_BYTES is {gateway.max_object_bytes}, XRAY_SCORE__MAX_PAYLOAD_BYTES "
            f"{score.max_payload_bytes}: what is between them is taken from devices and becomes a dead letter"
        )
        yield _warning(found, "Lower the first, or raise the second.")


def _check_times(settings: StreamSettings) -> Iterator[Finding]:
    retry, audit, archive = settings.retry, settings.audit, settings.archive
    if retry.first_wait_s > retry.max_wait_s:
        found = f"XRAY_RETRY__FIRST_WAIT_S is {retry.first_wait_s:g}, XRAY_RETRY__MAX_WAIT_S {retry.max_wait_s:g}"
        yield _fault(found, "Lower the first below the second.")
    if audit.interval_s > audit.window_s:
        found = f"XRAY_AUDIT__INTERVAL_S is {audit.interval_s:g}, XRAY_AUDIT__WINDOW_S {audit.window_s:g}"
        yield _warning(f"{found}: images between two accounts are in none", "Raise the second to the first or above.")
    if archive.trigger_s >= archive.deadline_s:
        found = f"XRAY_ARCHIVE__TRIGGER_S is {archive.trigger_s:g}, XRAY_ARCHIVE__DEADLINE_S {archive.deadline_s:g}"
        yield _fault(f"{found}: an archive that waits is ended as one that hangs", "Lower the first.")
    if settings.score.canary_s == 0 and settings.score.trigger_s == 0:
        found = "XRAY_SCORE__CANARY_S is 0: nothing tells that a stream without images still works"
        yield _warning(found, "Leave it at its default, 20.")


def _check_gateway(settings: StreamSettings) -> Iterator[Finding]:
    gateway = settings.gateway
    if gateway.dicom_port == "off" and gateway.http_port == "off":
        found = "XRAY_GATEWAY__DICOM_PORT and XRAY_GATEWAY__HTTP_PORT are both off"
        yield _warning(f"{found}: no device could send", "Open one, or start no gateway.")
    if not (_is_this_machine(gateway.host) or gateway.devices or gateway.anyone):
        found = f"XRAY_GATEWAY__HOST is {gateway.host}, and no device may send: the gateway does not start"
        yield _fault(found, "Name the devices in XRAY_GATEWAY__DEVICES, or set XRAY_GATEWAY__ANYONE=true.")
    if gateway.crosswalk is not None and not gateway.deidentify:
        found = "XRAY_GATEWAY__CROSSWALK is set and XRAY_GATEWAY__DEIDENTIFY false: there are no pseudonyms to keep"
        yield _warning(found, "Remove the first, or set the second to true.")
    if gateway.spool is not None and gateway.spool == gateway.keep_originals:
        found = "XRAY_GATEWAY__SPOOL and XRAY_GATEWAY__KEEP_ORIGINALS are one folder"
        yield _fault(found, "Give each a folder of its own.")


def _check_others(settings: StreamSettings) -> Iterator[Finding]:
    if settings.spark.master.startswith("spark://") and settings.spark.secret is None:
        yield _fault("XRAY_SPARK__MASTER is a spark:// cluster without XRAY_SPARK__SECRET", "Set the cluster's secret.")
    if settings.model is not None:
        found = f"XRAY_MODEL is {settings.model}: promoting another model changes nothing"
        yield _warning(found, "Remove it, unless that is meant.")
    if settings.page.tls_client_ca is not None and settings.page.tls_certificate is None:
        found = "XRAY_PAGE__TLS_CLIENT_CA is set without XRAY_PAGE__TLS_CERTIFICATE and XRAY_PAGE__TLS_KEY"
        yield _fault(found, "Set both, or remove the first.")
    folder = settings.archive.folder
    if folder is not None and "://" not in folder and not Path(folder).is_absolute():
        found = f"XRAY_ARCHIVE__FOLDER is {folder}, which is elsewhere for each folder that a command is started in"
        yield _warning(found, "Give it from the root on.")
    if not settings.home.is_absolute():
        found = f"XRAY_HOME is {settings.home}, which is elsewhere for each folder that a command is started in"
        yield _warning(found, "Give it from the root on.")


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
