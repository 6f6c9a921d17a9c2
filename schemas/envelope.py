"""The message envelope: topic-independent names of headers, event types and identities.

Messages follow CloudEvents 1.0, Kafka protocol binding, binary content mode: the value is the payload as it is, the
attributes are headers. Plain bytes without any header are valid input too.

References
----------
CloudEvents 1.0.2; Kafka Protocol Binding for CloudEvents 1.0.2, section 3.2; W3C Trace Context.
Kafka Connect ``DeadLetterQueueReporter`` for the names of the dead-letter headers.
"""

import hashlib

CONTENT_TYPE = "content-type"
CE_SPECVERSION = "ce_specversion"
CE_ID = "ce_id"
CE_SOURCE = "ce_source"
CE_TYPE = "ce_type"
CE_TIME = "ce_time"
CE_SUBJECT = "ce_subject"
CE_PARTITIONKEY = "ce_partitionkey"
TRACE_HEADERS = ("traceparent", "tracestate")

# On an image that was sent again: topic-partition@offset of the record in the images topic whose attempt failed.
REDRIVEN_FROM = "xray_redriven_from"
# And Kafka's id of that topic, where it is known: one that was made anew counts its offsets from 0 again.
REDRIVEN_TOPIC_ID = "xray_redriven_topic_id"
MAX_REDRIVE_BYTES = 1024
"""Room for these two: they come on top of headers that may use all that they are allowed."""

SPECVERSION = "1.0"
IMAGE_TYPE = "xray.image.v1"
PREDICTION_TYPE = "xray.prediction.v1"
FEATURES_TYPE = "xray.features.v1"
LABEL_TYPE = "xray.label.v1"
RECEIPT_TYPE = "xray.receipt.v1"
SCORE_SOURCE = "/xray-stream/score"
GATEWAY_SOURCE = "/xray-stream/gateway"
PAGE_SOURCE = "/xray-stream/page"

# On an image that a gateway took in: comma-separated, e.g. burned_in_annotation.
IMAGE_FLAGS = "xray_image_flags"
BURNED_IN = "burned_in_annotation"
"""BurnedInAnnotation is YES: pixels may name a patient, and de-identification does not change pixels."""
OTHER_BYTES = "other_bytes_under_uid"
"""The sender has used the id before, for other bytes; both are published, each as an event of its own."""

# What is true of one delivery travels in headers, so that the value stays the same whenever the record is replayed.
INPUT_TOPIC = "xray_input_topic"
INPUT_TOPIC_ID = "xray_input_topic_id"
INPUT_PARTITION = "xray_input_partition"
INPUT_OFFSET = "xray_input_offset"
INPUT_TIMESTAMP = "xray_input_timestamp"
CAPTURED_AT = "xray_captured_at"
EVENT_ID = "xray_event_id"
REASON = "xray_reason"
DECODE_SECONDS = "xray_decode_seconds"
PREDICT_SECONDS = "xray_predict_seconds"

ERROR_PREFIX = "__connect.errors."
ERROR_TOPIC = ERROR_PREFIX + "topic"
ERROR_PARTITION = ERROR_PREFIX + "partition"
ERROR_OFFSET = ERROR_PREFIX + "offset"
ERROR_CONNECTOR = ERROR_PREFIX + "connector.name"
ERROR_TASK = ERROR_PREFIX + "task.id"
ERROR_STAGE = ERROR_PREFIX + "stage"
ERROR_CLASS = ERROR_PREFIX + "class.name"
ERROR_EXCEPTION_CLASS = ERROR_PREFIX + "exception.class.name"
ERROR_EXCEPTION_MESSAGE = ERROR_PREFIX + "exception.message"
ERROR_EXCEPTION_STACKTRACE = ERROR_PREFIX + "exception.stacktrace"

DISCLAIMER = "Research use only. Not a medical device."

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""Largest Kafka message by default, at broker, topic, producer and consumer alike."""

# What a record of the images topic may carry besides the image. Key, id and trace go on to every outcome, so without a
# bound one record could make an outcome that no topic takes, and stop the stream for as long as the record is kept.
MAX_KEY_BYTES = 4 * 1024
MAX_HEADER_BYTES = 8 * 1024
"""Of one header, name and value."""
MAX_HEADERS_BYTES = 64 * 1024
"""Of all headers, names and values, each counted with `HEADER_OVERHEAD_BYTES` more."""
HEADER_OVERHEAD_BYTES = 8
"""So that the sum bounds the number of headers too: a million empty ones are no bytes and still a million objects."""
MAX_KEPT_HEADERS = MAX_HEADERS_BYTES // HEADER_OVERHEAD_BYTES
"""How many headers a dead letter keeps; with more it keeps none. librdkafka reads no headers of a record that has more
than 100,000, so nobody would see whose dead letter it is."""


def derive_event_id(*parts: str) -> str:
    """Derive the id of an outcome from what identifies it.

    Parameters
    ----------
    *parts : str
        The input's source and id, the SHA-256 of its bytes, and the model's SHA-256 (or the word ``dead-letter``).
        The bytes' hash is among them so that a device which sends one id for every image loses none of them.

    Returns
    -------
    str
        32 hexadecimal characters. The same parts always give the same id; parts may hold any character.
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()[:32]


def derive_image_event_id(source: str, image_id: str, sha256: str) -> str:
    """Derive the id of an image's own event, which its receipts have.

    It is known before any model has seen the image, and is the same for whichever model will.

    Parameters
    ----------
    source, image_id : str
        ``ce_source`` and ``ce_id`` of the image.
    sha256 : str
        Of its bytes as they are published, 64 hexadecimal characters.

    Returns
    -------
    str
        32 hexadecimal characters.
    """
    return derive_event_id(source, image_id, sha256, "image")
