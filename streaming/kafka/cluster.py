"""The connection to a cluster, and one line where there is none."""

import re
import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from schemas.errors import BrokerError, SettingsError
from streaming.settings import KafkaSettings

TIMEOUT_S = 20

_TRY_S = 2.0

_POLL_S = 0.2

_TLS_ALERT = "SSL alert"
"""What librdkafka says where a broker ends a TLS handshake, for want of a certificate above all."""


def connect_admin(kafka: KafkaSettings, **options: Any) -> AdminClient:
    """Make an admin client that keeps its complaints to itself; callers get typed errors.

    Raises
    ------
    SettingsError
        No client can be made of the settings, such as a certificate that cannot be read.
    """
    try:
        return AdminClient({**kafka.to_librdkafka(), "log_level": 0, **options}, logger=None)
    except KafkaException as exc:
        msg = f"no Kafka client can be made of the settings XRAY_KAFKA__*: {_in_our_names(exc.args[0].str())}"
        raise SettingsError(msg) from exc


def describe_cluster(kafka: KafkaSettings) -> Any:
    """Ask the broker for its metadata.

    Returns
    -------
    confluent_kafka.admin.ClusterMetadata
        Brokers and the topics that the user may see.

    Raises
    ------
    BrokerError
        Nobody answers, the credentials are refused or TLS fails; one line that names the settings to look at.
    SettingsError
        No client can be made of the settings.
    """
    return open_admin(kafka)[1]


def open_admin(kafka: KafkaSettings) -> tuple[AdminClient, Any]:
    """Make an admin client of which it is known that the broker answers it.

    Returns
    -------
    tuple of AdminClient and confluent_kafka.admin.ClusterMetadata
        The client must outlive the futures it gives. See `describe_cluster` for the other.

    Raises
    ------
    BrokerError, SettingsError
        See `describe_cluster`.
    """
    # Why a connection failed is not in the call's own error: librdkafka tells it to this callback, when it is polled.
    reports: list[KafkaError] = []
    admin = connect_admin(kafka, error_cb=reports.append)
    deadline = time.monotonic() + TIMEOUT_S / 2
    while True:
        try:
            return admin, admin.list_topics(timeout=_TRY_S)
        except KafkaException as exc:
            admin.poll(_POLL_S)
            # Trying again would not change a refusal; of several brokers another one has had its time to answer.
            if any(map(_is_refusal, reports)) or time.monotonic() > deadline:
                msg = f"cannot reach Kafka at {kafka.bootstrap_servers}: {_explain(kafka, reports)}"
                raise BrokerError(msg) from exc


def _is_refusal(report: KafkaError) -> bool:
    return report.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL) or _TLS_ALERT in report.str()


def _explain(kafka: KafkaSettings, reports: Sequence[KafkaError]) -> str:
    """Say in one sentence what librdkafka reported, and in another what to look at."""
    said = {report.code(): _in_our_names(report.str()) for report in reversed(reports)}  # the first of each kind
    protocol = f"XRAY_KAFKA__SECURITY_PROTOCOL, which is {kafka.security_protocol}"
    if (text := said.get(KafkaError._AUTHENTICATION)) is not None:
        users = "XRAY_KAFKA__SASL_USERNAME, XRAY_KAFKA__SASL_PASSWORD and XRAY_KAFKA__SASL_MECHANISM"
        return f"it refuses the log-in ({text}). Check {users}."
    if (text := said.get(KafkaError._SSL)) is not None:
        if "certificate verify failed" in text:
            return (
                "its certificate is not trusted. Check XRAY_KAFKA__SSL_CA_LOCATION, and that the certificate was made "
                "for the host in XRAY_KAFKA__BOOTSTRAP_SERVERS."
            )
        return f"TLS fails ({text}). Check {protocol}."
    text = said.get(KafkaError._TRANSPORT, said.get(KafkaError._RESOLVE))
    if text is None:
        return f"it hangs up or does not answer. Check {protocol}, and XRAY_KAFKA__BOOTSTRAP_SERVERS."
    if _TLS_ALERT in text:
        certificate = "XRAY_KAFKA__SSL_CERTIFICATE_LOCATION and XRAY_KAFKA__SSL_KEY_LOCATION"
        return f"it refuses this client's certificate ({text}). Check {certificate}."
    local = kafka.bootstrap_servers.rpartition(":")[0] in ("127.0.0.1", "localhost")
    advice = "Start the local one with 'xray up', or set" if local else "Check the network, that cluster, and"
    return f"{text}. {advice} XRAY_KAFKA__BOOTSTRAP_SERVERS."


def _in_our_names(text: str) -> str:
    """Give librdkafka's words with the names of this project's settings, and without its own state."""
    text = re.sub(r"^\S+/bootstrap: | \(after \d+ms in state .*\)$", "", text)
    return re.sub(r"ssl\.(ca|certificate|key)\.location", lambda m: f"XRAY_KAFKA__SSL_{m[1].upper()}_LOCATION", text)
