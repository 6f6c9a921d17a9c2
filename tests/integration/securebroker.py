"""A real broker as a hospital would run it: TLS, users, mutual TLS, and nothing allowed that no rule allows.

The authority, certificates and passwords are made anew for each run, in a folder of the test's own.
"""

import subprocess
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import trustme
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from schemas.errors import BrokerError
from streaming.kafka.reader import open_reader, read_spans
from streaming.settings import KafkaSettings
from xray.broker import LocalBroker

SUPER_USER = "super"
_BROKER = "broker"
_CLUSTER_ID = "xraySecureStreamBroker"
_READY_TIMEOUT_S = 30
_SASL = "org.apache.kafka.common.security"

_PROPERTIES = """
listeners=SASL_SSL://127.0.0.1:{port},SSL://127.0.0.1:{tls_port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=SASL_SSL://127.0.0.1:{port},SSL://127.0.0.1:{tls_port}
listener.security.protocol.map=SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:SSL
inter.broker.listener.name=SSL
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={truststore}
# A certificate's CN is the user; the rest of its name is the authority's business.
ssl.principal.mapping.rules=RULE:^CN=([^,]+),.*$/$1/,DEFAULT
listener.name.ssl.ssl.client.auth=required
listener.name.controller.ssl.client.auth=required
listener.name.sasl_ssl.ssl.client.auth=none
listener.name.sasl_ssl.sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={sasl}.scram.ScramLoginModule required;
listener.name.sasl_ssl.plain.sasl.jaas.config={sasl}.plain.PlainLoginModule required {plain_users};
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:{broker};User:{super_user}
"""


@dataclass(frozen=True)
class SecureBroker(LocalBroker):
    """One KRaft node with a SASL_SSL listener, a mutual-TLS listener and an authorizer.

    Parameters
    ----------
    tls_port : int
        Of the listener for mutual TLS.
    passwords : dict of str to str
        By user. Each may log in by SCRAM-SHA-512 and by PLAIN; `SUPER_USER` must be among them.
    """

    tls_port: int = 0
    passwords: dict[str, str] = field(default_factory=dict)

    @cached_property
    def authority(self) -> trustme.CA:
        """Who signs the certificates."""
        return trustme.CA()

    @cached_property
    def ca_file(self) -> Path:
        """PEM file of the authority."""
        path = self.folder / "ca.pem"
        self.authority.cert_pem.write_to_path(path)
        return path

    def certify(self, user: str, authority: trustme.CA | None = None) -> tuple[Path, Path]:
        """Make a user's certificate and PKCS#8 key, and return their PEM files."""
        issued = (authority or self.authority).issue_cert("127.0.0.1", common_name=user)
        certificate, key = self.folder / f"{user}.crt", self.folder / f"{user}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        loaded = load_pem_private_key(issued.private_key_pem.bytes(), password=None)
        key.write_bytes(loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key

    def by_password(self, user: str, mechanism: str = "SCRAM-SHA-512", **changes: Any) -> KafkaSettings:
        """Settings of a user who logs in with a password."""
        values = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": mechanism,
            "sasl_username": user,
            "sasl_password": self.passwords.get(user),
            "ssl_ca_location": self.ca_file,
        }
        return KafkaSettings(**values | changes)

    def by_certificate(self, user: str) -> KafkaSettings:
        """Settings of a user who shows a certificate."""
        certificate, key = self.certify(user)
        return KafkaSettings(
            bootstrap_servers=f"127.0.0.1:{self.tls_port}",
            security_protocol="SSL",
            ssl_ca_location=self.ca_file,
            ssl_certificate_location=certificate,
            ssl_key_location=key,
        )

    def allow(self, user: str, kind: str, name: str, operations: list[str], *, prefix: bool = False) -> None:
        """Let a user do some operations on a topic or group, or on all whose names begin so."""
        admin = AdminClient(self.by_password(SUPER_USER).to_librdkafka())
        pattern = ResourcePatternType.PREFIXED if prefix else ResourcePatternType.LITERAL
        bindings = [
            AclBinding(
                ResourceType[kind.upper()], name, pattern, f"User:{user}", "*", _operation(operation),
                AclPermissionType.ALLOW,
            )
            for operation in operations
        ]  # fmt: skip
        for future in admin.create_acls(bindings, request_timeout=20).values():
            future.result()

    def await_rights(self, count: int) -> None:
        """Wait until the broker heeds so many rules: they reach it by its metadata log."""
        admin = AdminClient(self.by_password(SUPER_USER).to_librdkafka())
        every = AclBindingFilter(
            ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
        )
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while len(found := admin.describe_acls(every, request_timeout=20).result()) < count:
            assert time.monotonic() < deadline, found

    def await_leaders(self, topic: str) -> None:
        """Wait until each partition of a new topic can be read."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        with open_reader(self.by_password(SUPER_USER)) as reader:
            while True:
                try:
                    read_spans(reader, topic)
                    return
                except BrokerError:
                    if time.monotonic() > deadline:
                        raise

    def answers(self, timeout_s: float = 1.0) -> bool:
        """Whether the super user gets an answer within the given seconds."""
        options = self.by_password(SUPER_USER).to_librdkafka() | {"log_level": 0}
        try:
            return bool(AdminClient(options).list_topics(timeout=timeout_s).brokers)
        except KafkaException:
            return False

    def _write_configuration(self) -> None:
        super()._write_configuration()
        certificate, key = self.certify(_BROKER)
        keystore = self.folder / "broker.pem"
        keystore.write_bytes(key.read_bytes() + certificate.read_bytes())
        users = " ".join(f'user_{name}="{password}"' for name, password in self.passwords.items())
        own = _PROPERTIES.format(
            port=self.port, tls_port=self.tls_port, controller=self.port + 1, keystore=keystore,
            truststore=self.ca_file, sasl=_SASL, plain_users=users, broker=_BROKER, super_user=SUPER_USER,
        )  # fmt: skip
        with self._properties.open("a", encoding="utf-8") as properties:
            properties.write(own)  # of two lines with one name Java takes the last

    def _format_storage(self) -> None:
        command = [*self._java("256m"), "kafka.tools.StorageTool", "format"]
        users = [f"SCRAM-SHA-512=[name={name},password={password}]" for name, password in self.passwords.items()]
        command += ["--cluster-id", _CLUSTER_ID, "--config", str(self._properties)]
        command += [word for user in users for word in ("--add-scram", user)]
        subprocess.run(command, capture_output=True, check=True)


def _operation(name: str) -> AclOperation:
    """Kafka's own name of an operation, such as DescribeConfigs, as the client's constant."""
    return AclOperation["".join(f"_{c}" if c.isupper() else c.upper() for c in name).strip("_")]
