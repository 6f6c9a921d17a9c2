# ruff: noqa: T201 - a script that says what it did
"""Publishes one confirmed finding: python examples/confirm_finding.py BROKER:PORT SHA256 LABEL [CONFIRMED_AT]."""

import argparse
import json
import sys
import uuid

from confluent_kafka import Producer

parser = argparse.ArgumentParser(description="Publishes one confirmed finding.")
parser.add_argument("broker", help="HOST:PORT of Kafka")
parser.add_argument("sha256", help="of the image's bytes, as in its prediction")
parser.add_argument("label", help="one of the model's")
parser.add_argument("confirmed_at", nargs="?", help="ISO 8601")
asked = parser.parse_args()
event = {"sha256": asked.sha256, "label": asked.label, "confirmed_at": asked.confirmed_at}
headers = {
    "content-type": "application/json",
    "ce_specversion": "1.0",
    "ce_type": "xray.label.v1",
    "ce_source": "/ris/reports",
    "ce_id": str(uuid.uuid4()),
}

failed = []
producer = Producer({"bootstrap.servers": asked.broker, "enable.idempotence": True, "message.timeout.ms": 30_000})
producer.produce(
    "xray.labels",
    json.dumps(event).encode(),
    key=asked.sha256,  # events of one image stay in their order
    headers=headers,
    on_delivery=lambda error, _: error and failed.append(error.str()),
)
producer.flush()
sys.exit(f"not confirmed: {failed[0]}" if failed else print("confirmed by the broker"))
