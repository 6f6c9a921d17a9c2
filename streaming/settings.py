"""Settings of the stream, each checked before anything starts.

Environment variables begin with ``XRAY_``; a section and its field are joined by two underscores:
``XRAY_KAFKA__BOOTSTRAP_SERVERS=broker:9092``. The file ``xray.env`` in XRAY_HOME, or another one (`choose_env_file`),
may hold them as ``KEY=VALUE`` lines; the environment wins over it. Only a command's entry point reads either
(`load_settings`); everything else receives the section it needs.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from dotenv.parser import parse_stream
from platformdirs import user_data_path
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.envelope import MAX_MESSAGE_BYTES
from schemas.errors import SettingsError
from sparkdl.image.limits import MAX_FILE_BYTES, MAX_PAYLOAD_BYTES, MAX_PIXELS, DecodeLimits

ENV_FILE_NAME = "xray.env"
"""In XRAY_HOME: settings that would otherwise be exported in each terminal."""

PREFIX = "XRAY_"
_FORMER = {"XRAY_SCORE__MAX_BATCH_BYTES": "memory does not depend on how many bytes a micro-batch has"}
"""Settings that were taken away, and why nothing takes their place."""
_HIGHEST_PORT = 65535
Port = Annotated[int, Field(ge=0, le=_HIGHEST_PORT)]
_TITLE = re.compile(r"[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?")


def _check_title(text: str) -> str:
    if not _TITLE.fullmatch(text):
        msg = "an AE title has 1 to 16 printable characters of ASCII, no backslash, and no space at either end"
        raise ValueError(msg)
    return text


AeTitle = Annotated[str, AfterValidator(_check_title)]
"""DICOM PS3.5 6.2: VR AE."""
_MASTER = re.compile(r"local(\[(\d+|\*)(\s*,\s*\d+)?\])?|local-cluster\[[^\]]+\]|spark://.+|k8s://.+|yarn")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


class KafkaSettings(_Section):
    """How every client, Spark included, reaches Kafka."""

    bootstrap_servers: str = "127.0.0.1:19092"
    """Comma-separated host:port list. The default is the broker that `xray up` starts."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """As Kafka names it."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """Wanted with the SASL protocols."""
    sasl_username: str | None = None
    """Wanted with the SASL protocols."""
    sasl_password: SecretStr | None = None
    """Wanted with the SASL protocols; never printed."""
    ssl_ca_location: Path | None = None
    """PEM file of the authority that signed the broker's certificate; the system's when absent."""
    ssl_certificate_location: Path | None = None
    """PEM file with the client's certificate, for mutual TLS."""
    ssl_key_location: Path | None = None
    """PEM file with the client's private key, PKCS#8 and without a pass phrase, for mutual TLS."""
    images_topic: str = "xray.images"
    """Where devices publish."""
    predictions_topic: str = "xray.predictions"
    """Where results appear."""
    features_topic: str = "xray.features"
    """Feature vectors, for retraining."""
    deadletters_topic: str = "xray.deadletters"
    """Records that cannot be scored, with their original bytes."""
    labels_topic: str = "xray.labels"
    """Confirmed findings, from whoever reports on images; `xray label --follow` reads them."""
    labels_deadletters_topic: str = "xray.labels.deadletters"
    """Events about findings that could not be recorded, as they came."""
    receipts_topic: str = "xray.receipts"
    """What became of each image, for the device that sent it; the gateway writes it."""
    canary_topic: str = "xray.canary"
    """The stream's own test image goes in here, so that no count of real images includes it."""
    canary_results_topic: str = "xray.canary.results"
    """And comes out here."""
    partitions: int = Field(default=4, ge=1, le=1000)
    """Partitions of a topic that `xray up` or `xray stream` creates."""
    replication_factor: int = Field(default=1, ge=1, le=10)
    """Replicas of a topic that is created; use 3 on a real cluster."""
    max_message_bytes: int = Field(default=MAX_MESSAGE_BYTES, ge=1024 * 1024)
    """Largest message, in bytes."""

    @field_validator("bootstrap_servers")
    @classmethod
    def _servers_have_ports(cls, servers: str) -> str:
        for server in servers.split(","):
            host, _, port = server.strip().rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) <= _HIGHEST_PORT:
                msg = f"wanted HOST:PORT, or several with commas between them; {server.strip()!r} is not one"
                raise ValueError(msg)
        return servers

    @model_validator(mode="after")
    def _sasl_is_complete(self) -> "KafkaSettings":
        wanted = ("sasl_mechanism", "sasl_username", "sasl_password")
        missing = [name for name in wanted if getattr(self, name) is None]
        if self.security_protocol.startswith("SASL") and missing:
            msg = f"security_protocol {self.security_protocol} also needs {', '.join(missing)}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _certificate_has_a_key(self) -> "KafkaSettings":
        if (self.ssl_certificate_location is None) != (self.ssl_key_location is None):
            msg = "ssl_certificate_location and ssl_key_location are wanted both or neither"
            raise ValueError(msg)
        return self

    def to_librdkafka(self) -> dict[str, Any]:
        """Options for confluent-kafka clients."""
        options: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password.get_secret_value() if self.sasl_password else None,
            "ssl.ca.location": _text(self.ssl_ca_location),
            "ssl.certificate.location": _text(self.ssl_certificate_location),
            "ssl.key.location": _text(self.ssl_key_location),
        }
        return {name: value for name, value in options.items() if value is not None}

    def to_kafka_python(self) -> dict[str, Any]:
        """Options for kafka-python clients."""
        options: dict[str, Any] = {
            "bootstrap_servers": [server.strip() for server in self.bootstrap_servers.split(",")],
            "security_protocol": self.security_protocol,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": self.sasl_password.get_secret_value() if self.sasl_password else None,
            "ssl_cafile": _text(self.ssl_ca_location),
            "ssl_certfile": _text(self.ssl_certificate_location),
            "ssl_keyfile": _text(self.ssl_key_location),
        }
        return {name: value for name, value in options.items() if value is not None}

    def to_spark(self) -> dict[str, str]:
        """Options for Spark's Kafka source and sink, each name with its ``kafka.`` prefix."""
        options: dict[str, str | None] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.jaas.config": self._jaas_config(),
            **self._java_tls(),
        }
        return {f"kafka.{name}": value for name, value in options.items() if value is not None}

    def _jaas_config(self) -> str | None:
        if not self.security_protocol.startswith("SASL") or self.sasl_password is None:
            return None
        module = "plain.PlainLoginModule" if self.sasl_mechanism == "PLAIN" else "scram.ScramLoginModule"
        user, password = _quote(self.sasl_username or ""), _quote(self.sasl_password.get_secret_value())
        return f"org.apache.kafka.common.security.{module} required username={user} password={password};"

    def _java_tls(self) -> dict[str, str | None]:
        """Java's names for the same PEM files; a key pair is given as text, because Java wants both in one place."""
        options: dict[str, str | None] = {}
        if self.ssl_ca_location:
            options |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(self.ssl_ca_location)}
        if self.ssl_certificate_location and self.ssl_key_location:
            options |= {
                "ssl.keystore.type": "PEM",
                "ssl.keystore.certificate.chain": self.ssl_certificate_location.read_text(encoding="ascii"),
                "ssl.keystore.key": self.ssl_key_location.read_text(encoding="ascii"),
            }
        return options


class SparkSettings(_Section):
    """The Spark session."""

    master: str = "local[*]"
    """As Spark names it; ``local[*]`` uses every core of this machine."""
    driver_memory: str = Field(default="3g", pattern=r"^\d+[mg]$")
    """Heap of the driver. A backlog of the largest messages takes 0.5 GB and 16 times their size per task at once."""
    secret: SecretStr | None = None
    """Wanted with a ``spark://`` master: the cluster's ``spark.authenticate.secret``; never printed."""

    @field_validator("master")
    @classmethod
    def _master_is_known(cls, master: str) -> str:
        if _MASTER.fullmatch(master) is None:
            msg = "wanted local[*], local[4], spark://HOST:PORT, yarn or k8s://..."
            raise ValueError(msg)
        return master

    def to_conf(self) -> dict[str, str]:
        """Properties of Spark that hold a secret; `start_session` keeps them off the command line."""
        return {"spark.authenticate.secret": self.secret.get_secret_value()} if self.secret else {}


class ScoreSettings(_Section):
    """The SCORE query: images in, outcomes out."""

    max_images_per_batch: int = Field(default=600, ge=1)
    """Upper bound of a micro-batch. Larger ones cost less per image, smaller ones commit more often."""
    max_payload_bytes: int = Field(default=MAX_PAYLOAD_BYTES, ge=1024)
    """Images above this many bytes become dead letters."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1024)
    """Images that claim more pixels become dead letters before anything is decompressed."""
    modalities: str = Field(default="CR,DX,RG,DR,SC", pattern=r"^[A-Z0-9]{1,16}(,[A-Z0-9]{1,16})*$")
    """DICOM images of other modalities become dead letters; those that name none, or OT, are scored."""
    for_processing: bool = False
    """Whether raw data of a detector (DICOM images FOR PROCESSING) are scored; else they become dead letters."""
    trigger_s: float = Field(default=0.0, ge=0)
    """Seconds between two micro-batches; 0 starts the next one as soon as there are images."""
    starting_offsets: Literal["earliest", "latest"] = "earliest"
    """Where a stream without a checkpoint begins."""
    canary_s: float = Field(default=20.0, ge=0, le=50)
    """Seconds between two canary images; 0 sends none. Spark ends idle Python workers after 60 s."""
    decode_tries: int = Field(default=2, ge=1, le=10)
    """Workers a micro-batch may lose before its images are decoded apart, and processes one image may end there."""

    def to_limits(self) -> DecodeLimits:
        """Give which images are decoded: the same to the stream and to whoever shows what it would do."""
        return DecodeLimits(
            max_payload_bytes=self.max_payload_bytes,
            max_pixels=self.max_pixels,
            modalities=tuple(self.modalities.split(",")),
            for_processing=self.for_processing,
        )


class TrainSettings(_Section):
    """Reading files, in training and for a folder's features."""

    max_file_bytes: int = Field(default=MAX_FILE_BYTES, ge=1024)
    """Files above this many bytes are left out by ``xray train`` and ``xray featurize``."""


class ArchiveSettings(_Section):
    """ARCHIVE: outcomes into Delta tables."""

    folder: str | None = None
    """Folder or URI of the tables; by default ``tables`` in XRAY_HOME."""
    trigger_s: float = Field(default=15.0, ge=0)
    """Seconds between two writes."""
    max_records_per_batch: int = Field(default=5000, ge=1)
    """Upper bound of one write."""
    span_days: int = Field(default=35, ge=1, le=3660)
    """Days between two images, of when they were received, within which one event id is one row."""
    compact_files: int = Field(default=100, ge=0)
    """Small files of one date from which they are joined; 0 leaves all upkeep to 'xray tables compact'."""
    keep_days: int = Field(default=3, ge=1)
    """Days for which replaced files and commits stay, and with them older versions of the tables."""
    min_free_bytes: int = Field(default=500_000_000, ge=0)
    """Room that is left on the disk of the tables, where SCORE's checkpoint may be too; below it nothing is written."""
    deadline_s: float = Field(default=600.0, ge=10)
    """Seconds without any step after which an archive that hangs is ended, to be started again."""
    metrics_port: int = Field(default=9465, ge=0, le=65535)
    """Port of its own ``/metrics`` and ``/health``, at XRAY_METRICS__HOST; 0 takes a free one."""


class RetrySettings(_Section):
    """What happens when a query fails for another reason than an image."""

    first_wait_s: float = Field(default=1.0, gt=0)
    """Seconds before a failed query is started again; each further failure doubles them."""
    max_wait_s: float = Field(default=30.0, gt=0)
    """Upper bound of that wait."""
    give_up_s: float = Field(default=600.0, ge=0)
    """Seconds after which a query that keeps failing ends the process; 0 ends it at the first failure."""


class AuditSettings(_Section):
    """The account that a running stream draws up of itself."""

    interval_s: float = Field(default=300.0, ge=0)
    """Seconds between two accounts; 0 draws up none."""
    window_s: float = Field(default=3600.0, gt=0)
    """Each is about the images that the broker received in so many seconds before it."""


class MonitorSettings(_Section):
    """What a running stream finds out about the model in service and its challenger, from the tables."""

    interval_s: float = Field(default=3600.0, ge=0)
    """Seconds between two looks for drift, and at the challenger in shadow; 0 never looks."""


class MetricsSettings(_Section):
    """The Prometheus page."""

    host: str = "127.0.0.1"
    """Address to listen on; this machine only, unless told otherwise."""
    port: int = Field(default=9464, ge=0, le=65535)
    """Port of ``/metrics``; 0 takes a free one."""


class GatewaySettings(_Section):
    """The gateway: images from devices by DICOM and HTTP into the images topic."""

    host: str = "127.0.0.1"
    """Address that both doors listen on; this machine only, unless told otherwise."""
    dicom_port: Port | Literal["off"] = 11112
    """Port of the DICOM door; 0 takes a free one, ``off`` closes it."""
    http_port: Port | Literal["off"] = 8042
    """Port of the HTTP door; 0 takes a free one, ``off`` closes it."""
    metrics_port: Port = 9466
    """Port of its own ``/metrics`` and ``/health``, at XRAY_METRICS__HOST; 0 takes a free one."""
    aet: AeTitle = "XRAY"
    """Application entity title of the gateway, at most 16 characters."""
    check_called_aet: bool = True
    """Whether an association that calls another title is refused."""
    devices: Path | None = None
    """TOML file of the devices that may send: titles, addresses, tokens, source names; read again when it changes."""
    anyone: bool = False
    """Whether devices that the file does not name may send too; without a file only this machine may, unless true."""
    tls_certificate: Path | None = None
    """PEM file with the gateway's certificate; with it both doors speak TLS only. Read again when it changes."""
    tls_key: Path | None = None
    """PEM file with its private key, PKCS#8 and without a pass phrase."""
    tls_client_ca: Path | None = None
    """PEM file of the authority that signs devices' certificates; with it both doors want one of each device."""
    max_associations: int = Field(default=25, ge=1, le=1000)
    """DICOM associations at once; further ones are rejected as transient."""
    max_pdu_bytes: int = Field(default=131_072, ge=0, le=16_777_216)
    """Largest PDU that is received; 0 sets no limit."""
    max_object_bytes: int = Field(default=MAX_PAYLOAD_BYTES, ge=1024)
    """Larger objects are refused for good. Kafka's own limit comes first where it is lower."""
    max_pending_bytes: int = Field(default=4 * MAX_PAYLOAD_BYTES, ge=1024 * 1024)
    """Of objects that are received and wait for the broker, all together: that much memory, whoever sends."""
    rate_per_s: float = Field(default=0.0, ge=0)
    """Objects a second of one device, on average; 0 sets no limit. The file of devices may say otherwise for each."""
    answer_s: float = Field(default=20.0, ge=1, le=300)
    """Seconds within which a device has its answer; below the DIMSE time-out of the devices, often 30."""
    idle_s: float = Field(default=60.0, ge=1)
    """Seconds of silence after which an association or connection is ended."""
    spool: Path | None = None
    """Folder where objects wait on disk while Kafka is away; without one they are refused as transient."""
    spool_max_bytes: int = Field(default=10_000_000_000, ge=1024 * 1024)
    """Of the objects in the spool; further ones are refused as transient."""
    spool_min_free_bytes: int = Field(default=1_000_000_000, ge=0)
    """Room that is left on the spool's disk."""
    deidentify: bool = True
    """Whether objects are de-identified before they are published or spooled."""
    deidentify_key: Path | None = None
    """File with the key of the pseudonyms; by default ``gateway/pseudonyms.key`` in XRAY_HOME, made where missing."""
    dates: Literal["cut", "shift"] = "cut"
    """What de-identification does to dates: away with them, or all of a patient by one number of days."""
    crosswalk: Path | None = None
    """File that keeps patient id, UIDs and accession number beside their pseudonyms, encrypted."""
    crosswalk_key: Path | None = None
    """File with the key of the crosswalk; by default ``gateway/crosswalk.key`` in XRAY_HOME, made where missing."""
    storage_commitment: bool = False
    """Whether Storage Commitment is offered; wants ``keep_originals``, since a device deletes its copy after it."""
    keep_originals: Path | None = None
    """Folder that keeps whole objects as they came, before Success is answered; they name patients."""
    receipt_scores: bool = False
    """Whether receipts have the label and the probability too."""
    max_waiters: int = Field(default=100, ge=0)
    """HTTP requests at once that may wait for a prediction."""

    @model_validator(mode="after")
    def _tls_is_complete(self) -> "GatewaySettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            msg = "tls_certificate and tls_key are wanted both or neither"
            raise ValueError(msg)
        if self.tls_client_ca is not None and self.tls_certificate is None:
            msg = "tls_client_ca also needs tls_certificate and tls_key"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _commitment_keeps(self) -> "GatewaySettings":
        if self.storage_commitment and self.keep_originals is None:
            msg = "storage_commitment also needs keep_originals: a device deletes its copy after a positive answer"
            raise ValueError(msg)
        return self


class AlertsSettings(_Section):
    """Alarms on outcomes, by the rules of a file."""

    group: str = Field(default="xray-alerts", min_length=1)
    """Consumer group that reads predictions, dead letters and receipts."""
    folder: Path | None = None
    """Folder of the ledger of alarms and deliveries, of one process alone; by default ``alerts`` in XRAY_HOME."""
    metrics_port: Port = 9467
    """Port of its own ``/metrics`` and ``/health``, at XRAY_METRICS__HOST; 0 takes a free one."""


class ReportsSettings(_Section):
    """Reports to hospital systems: ``xray results``."""

    metrics_port: Port = 9468
    """Port of the ``/metrics`` and ``/health`` of ``xray results run``, at XRAY_METRICS__HOST; 0 takes a free one."""
    folder: Path | None = None
    """Where the ledgers of what was delivered are kept; by default ``reporting`` in XRAY_HOME."""
    demonstration_models: str = Field(default="demo,phantom", pattern=r"^[^,\s]*(,[^,\s]+)*$")
    """Names of models, with commas between, whose predictions are reported only with ``--demonstration``."""
    answer_s: float = Field(default=30.0, gt=0, le=600)
    """Seconds within which a target has to answer."""
    refusal_tries: int = Field(default=5, ge=1, le=1000)
    """How often a report is sent that its target refuses, before it is given up."""
    refusal_wait_s: float = Field(default=60.0, ge=0)
    """Seconds before a refused report is sent again; each further refusal doubles them."""
    max_open: int = Field(default=10_000, ge=1)
    """Reports that wait for a target; while there are so many, no further predictions are read."""
    keep_days: int = Field(default=90, ge=1)
    """Days for which a delivered report is remembered, so that it is not sent again and can be amended."""
    patient_system: str | None = None
    """FHIR: system (URI) of the patients' ids."""
    accession_system: str | None = None
    """FHIR: system (URI) of the accession numbers."""
    http_token: SecretStr | None = None
    """Bearer token for FHIR and STOW-RS servers; never printed."""
    http_ca: Path | None = None
    """PEM file of the authority that signed these servers' certificates; the usual ones when absent."""
    tls_ca: Path | None = None
    """PEM file of the authority of ``mllps:`` and ``dicoms:`` targets' certificates; the usual ones when absent."""
    tls_certificate: Path | None = None
    """PEM file with the certificate that is shown to targets with TLS, HTTPS too, which want one."""
    tls_key: Path | None = None
    """PEM file with its private key, PKCS#8 and without a pass phrase."""
    aet: str = Field(default="XRAY", pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")
    """DICOM: application entity title that reports are sent from, at most 16 characters."""
    sending_facility: str | None = None
    """HL7: sending facility (MSH-4)."""
    receiving_application: str | None = None
    """HL7: receiving application (MSH-5)."""
    receiving_facility: str | None = None
    """HL7: receiving facility (MSH-6)."""
    patient_authority: str | None = None
    """HL7: who gives out the patients' ids (PID-3.4)."""
    processing: Literal["P", "T", "D"] = "P"
    """HL7: processing id (MSH-11): production, training or debugging."""

    @model_validator(mode="after")
    def _tls_is_complete(self) -> "ReportsSettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            msg = "tls_certificate and tls_key are wanted both or neither"
            raise ValueError(msg)
        return self


class PageSettings(_Section):
    """The page: what the stream does, for people who look."""

    host: str = "127.0.0.1"
    """Address to listen on; this machine only, unless told otherwise."""
    port: Port = 8050
    """Port of the page; 0 takes a free one."""
    hosts: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.:\[\]-]+(,[A-Za-z0-9.:\[\]-]+)*$")
    """Further names, with commas between, that browsers may call it by: ``page.hospital.example``."""
    people: Path | None = None
    """TOML file of who may look, label and operate, with the hashes of their tokens; read again when it changes."""
    allow_operate: bool = False
    """Whether those who may operate can promote, roll back and redrive; otherwise nobody can from here."""
    tls_certificate: Path | None = None
    """PEM file with the page's certificate; with it the page speaks TLS only. Read again when it changes."""
    tls_key: Path | None = None
    """PEM file with its private key, PKCS#8 and without a pass phrase."""
    tls_client_ca: Path | None = None
    """PEM file of the authority that signs browsers' certificates; with it the page wants one of each."""
    plain_http: bool = False
    """Whether it speaks plain HTTP at any address: for a proxy with TLS before it, or in a container."""
    thumbnails: Path | None = None
    """Folder that keeps thumbnails for longer than Kafka keeps the images; without one they are in memory only."""
    thumbnails_max_bytes: int = Field(default=2**30, ge=1024 * 1024)
    """Of that folder; the oldest thumbnails go first."""
    trail: Path | None = None
    """File where each promotion, roll back and redrive is written; by default ``page-trail.jsonl`` in XRAY_HOME."""
    max_tabs: int = Field(default=40, ge=1, le=1000)
    """Open pages that are kept up to date at once; further ones say that they are not."""
    stream_url: str | None = Field(default=None, pattern=r"^https?://[^/]+$")
    """Where the stream's ``/metrics`` is; by default at XRAY_METRICS__HOST and XRAY_METRICS__PORT."""
    archive_url: str | None = Field(default=None, pattern=r"^https?://[^/]+$")
    """Where the archive's ``/metrics`` is; by default at XRAY_METRICS__HOST and its own port."""
    gateway_url: str | None = Field(default=None, pattern=r"^https?://[^/]+$")
    """Where the gateway's ``/metrics`` is; by default at XRAY_METRICS__HOST and its own port."""
    alerts_url: str | None = Field(default=None, pattern=r"^https?://[^/]+$")
    """Where the alarms' ``/metrics`` is; by default at XRAY_METRICS__HOST and its own port."""
    reports_url: str | None = Field(default=None, pattern=r"^https?://[^/]+$")
    """Where the reports' ``/metrics`` is; by default at XRAY_METRICS__HOST and its own port."""

    @model_validator(mode="after")
    def _tls_is_complete(self) -> "PageSettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            msg = "tls_certificate and tls_key are wanted both or neither"
            raise ValueError(msg)
        return self


class TrackingSettings(_Section):
    """Where training runs and the models' aliases are mirrored to, for MLflow."""

    uri: str | None = Field(default=None, pattern=r"^(sqlite:///|https?://).+")
    """MLflow's address, ``sqlite:///FILE`` or ``http(s)://SERVER``; by default the file ``mlflow.db`` in XRAY_HOME."""
    experiment: str = Field(default="xray", min_length=1)
    """Experiment that the runs go into; it is made where it is not there."""


class StreamSettings(BaseSettings):
    """All settings; see the sections for theirs."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # some of the inputs are secrets
    )

    home: Path = Field(default_factory=lambda: user_data_path("xray"))
    """Folder of everything this machine keeps: jars, broker, models, checkpoints, tables, logs."""
    jars: Path | None = None
    """Folder of the connectors' and the broker's jars; by default ``jars`` in XRAY_HOME."""
    model: Path | None = None
    """Folder of the model to serve; by default the one last promoted in XRAY_HOME."""
    kafka: KafkaSettings = KafkaSettings()
    spark: SparkSettings = SparkSettings()
    score: ScoreSettings = ScoreSettings()
    train: TrainSettings = TrainSettings()
    archive: ArchiveSettings = ArchiveSettings()
    retry: RetrySettings = RetrySettings()
    audit: AuditSettings = AuditSettings()
    monitor: MonitorSettings = MonitorSettings()
    metrics: MetricsSettings = MetricsSettings()
    gateway: GatewaySettings = GatewaySettings()
    alerts: AlertsSettings = AlertsSettings()
    reports: ReportsSettings = ReportsSettings()
    page: PageSettings = PageSettings()
    tracking: TrackingSettings = TrackingSettings()

    def to_file_limits(self) -> DecodeLimits:
        """Give which files are decoded in training: as the stream's images, and larger ones."""
        return replace(self.score.to_limits(), max_payload_bytes=self.train.max_file_bytes)

    @property
    def jars_folder(self) -> Path:
        """Where resolved jars are kept."""
        return self.jars or self.home / "jars"

    @property
    def logs_folder(self) -> Path:
        """Where Spark and the broker log."""
        return self.home / "logs"

    @property
    def models_folder(self) -> Path:
        """Where trained models are kept."""
        return self.home / "models"

    @property
    def reports_folder(self) -> Path:
        """Where the reports on trained models are kept."""
        return self.home / "reports"

    @property
    def tracking_uri(self) -> str:
        """MLflow's address."""
        return self.tracking.uri or f"sqlite:///{(self.home / 'mlflow.db').absolute()}"

    @property
    def checkpoints_folder(self) -> Path:
        """Where the queries keep their progress."""
        return self.home / "checkpoints"

    @property
    def gateway_folder(self) -> Path:
        """Where the gateway keeps its keys, its receipts, and objects while they are received."""
        return self.home / "gateway"

    @property
    def alerts_folder(self) -> Path:
        """Where the ledger of alarms is."""
        return self.alerts.folder or self.home / "alerts"

    @property
    def pseudonyms_key(self) -> Path:
        """Where the key of the pseudonyms is."""
        return self.gateway.deidentify_key or self.gateway_folder / "pseudonyms.key"

    @property
    def crosswalk_key(self) -> Path:
        """Where the key of the crosswalk is."""
        return self.gateway.crosswalk_key or self.gateway_folder / "crosswalk.key"

    @property
    def reporting_folder(self) -> Path:
        """Where the ledgers of reports are."""
        return self.reports.folder or self.home / "reporting"

    @property
    def page_folder(self) -> Path:
        """Where the page keeps findings until the broker has them."""
        return self.home / "page"

    @property
    def page_trail(self) -> Path:
        """Where it is written down who promoted, rolled back and redrove from the page."""
        return self.page.trail or self.home / "page-trail.jsonl"

    @property
    def scratch_folder(self) -> Path:
        """Where the stream's Spark keeps what is of no use after its end."""
        return self.home / "scratch"

    @property
    def tables_folder(self) -> str:
        """Where the Delta tables are."""
        return self.archive.folder or str(self.home / "tables")


_chosen: list[Path] = []


def choose_env_file(path: Path | None) -> None:
    """Have `load_settings` read this file instead of ``xray.env`` in XRAY_HOME; None goes back to that one."""
    _chosen[:] = [] if path is None else [path]


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> StreamSettings:
    """Read the environment and the file of settings, then apply what the command line says.

    Parameters
    ----------
    environ : Mapping, optional
        Only looked at for names that nobody knows; values come from the process's own environment.
    **overrides
        Fields of `StreamSettings`; they win over the environment, which wins over the file. A section is a dict of its
        fields.

    Raises
    ------
    SettingsError
        A value is wrong or a variable has an unknown name; the message holds the variable's name, and the file's where
        it is from there.
    """
    _refuse_unknown_variables(os.environ if environ is None else environ)
    file = find_env_file(overrides.get("home"))
    in_file = set() if file is None else _check_env_file(file)
    try:
        settings = StreamSettings(_env_file=file, **overrides)  # type: ignore[call-arg]  # pydantic-settings' own
    except ValidationError as exc:
        lines = [f"{_place(error['loc'], file, in_file)}: {_describe(error)}" for error in exc.errors()]
        raise SettingsError("\n".join(lines)) from exc
    _check_pem_files(settings.kafka)
    return settings


def find_sources() -> dict[str, str]:
    """Tell where each setting's value comes from: ``"environment"``, a file's name, or ``"default"``.

    Returns
    -------
    dict
        By the variable's name, in the order of the settings.
    """
    file = find_env_file(None)
    in_file = set() if file is None else _check_env_file(file)
    exported = {name.upper() for name in os.environ}
    return {
        name: "environment" if name in exported else str(file) if name in in_file else "default"
        for name in variable_names()
    }


def find_env_file(home: Path | str | None = None) -> Path | None:
    """Find the file of settings that is read.

    Parameters
    ----------
    home : Path or str, optional
        XRAY_HOME, where the command line says it.

    Returns
    -------
    Path or None
        The chosen one, whether or not it is there; else ``xray.env`` in XRAY_HOME, None where that is not there.
    """
    if _chosen:
        return _chosen[0]
    file = Path(home or os.environ.get(f"{PREFIX}HOME") or user_data_path("xray")) / ENV_FILE_NAME
    return file if file.is_file() else None


def _check_env_file(file: Path) -> set[str]:
    """Give the names that a file of settings has, each of which is known; values are never repeated."""
    try:
        with file.open(encoding="utf-8") as stream:
            bindings = [one for one in parse_stream(stream) if one.key is not None or one.error]
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        msg = f"{file} cannot be read ({why}), wanted KEY=VALUE lines"
        raise SettingsError(msg) from exc
    for one in bindings:
        if one.error or one.value is None:
            msg = f"{file}: line {one.original.line} is not KEY=VALUE"
            raise SettingsError(msg)
        if one.key and one.key.upper() not in variable_names():
            msg = f"{file}: {_unknown(one.key)}"
            raise SettingsError(msg)
        if one.key and one.key.upper() == f"{PREFIX}HOME" and not _chosen:
            msg = f"{file}: XRAY_HOME says where this very file is; export it instead, or use 'xray --env FILE'"
            raise SettingsError(msg)
    return {one.key.upper() for one in bindings if one.key}


def _place(location: tuple[str | int, ...], file: Path | None, in_file: set[str]) -> str:
    """Name a variable, and the file where it is from there."""
    name = _variable(location)
    # What is wrong may be a whole section, for a part that is missing.
    from_file = any(one == name or one.startswith(f"{name}__") for one in in_file)
    return f"{file}: {name}" if from_file and name not in {one.upper() for one in os.environ} else name


def _describe(error: Mapping[str, Any]) -> str:
    shown = _shown(error)
    why = str(error["msg"]).removeprefix("Value error, ")
    return why if shown is None else f"{why} (found {shown})"


def _shown(error: Mapping[str, Any]) -> str | None:
    """Give the input that is wrong; None where it could hold a secret: a section, a secret, or nobody knows what."""
    name, value = _variable(error["loc"]), error["input"]
    field = _fields().get(name)
    could_be_secret = isinstance(value, dict) or field is None or SecretStr in get_args(field.annotation)
    return None if could_be_secret else repr(value)


def _check_pem_files(kafka: KafkaSettings) -> None:
    """Check the files that clients would complain about late, and in words that name no setting."""
    for name in ("ssl_ca_location", "ssl_certificate_location", "ssl_key_location"):
        path: Path | None = getattr(kafka, name)
        if path is None:
            continue
        wanted = "-----BEGIN PRIVATE KEY-----" if name == "ssl_key_location" else "-----BEGIN CERTIFICATE-----"
        try:
            found = wanted in path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            msg = f"{_variable(('kafka', name))}: {path} cannot be read as text ({type(exc).__name__}), expected PEM"
            raise SettingsError(msg) from exc
        if not found:
            msg = f"{_variable(('kafka', name))}: {path} has no line {wanted!r}"
            raise SettingsError(msg)


def _variable(location: tuple[str | int, ...]) -> str:
    return PREFIX + "__".join(str(part) for part in location).upper()


def variable_names() -> dict[str, str]:
    """Every environment variable that is read, with what it means.

    Returns
    -------
    dict
        Name to description, in the order of the settings.
    """
    return {name: field.description or "" for name, field in _fields().items()}


def _fields() -> dict[str, FieldInfo]:
    """Every setting by its environment variable."""
    found: dict[str, FieldInfo] = {}
    for name, field in StreamSettings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, _Section):
            found |= {_variable((name, inner)): inner_field for inner, inner_field in section.model_fields.items()}
        else:
            found[_variable((name,))] = field
    return found


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = list(variable_names())
    for name in sorted(environ):
        if name.startswith(PREFIX) and name.upper() not in known:
            raise SettingsError(_unknown(name))


def _unknown(name: str) -> str:
    """Say that there is no such setting, and which one may be meant; what all names begin with is no likeness."""
    if name.upper() in _FORMER:
        return f"{name}: there is no such setting any more: {_FORMER[name.upper()]}. Remove it."
    known = [one.removeprefix(PREFIX) for one in variable_names()]
    nearest = get_close_matches(name.upper().removeprefix(PREFIX), known, n=1, cutoff=0.7)
    hint = f" Did you mean {PREFIX}{nearest[0]}?" if nearest else ""
    return f"{name}: there is no such setting.{hint} 'xray settings' lists them all."


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
