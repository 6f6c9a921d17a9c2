# ruff: noqa: T201 - a script that says what it did
"""Publishes one confirmed finding: python examples/confirm_finding.py BROKER:PORT SHA256 LABEL [CONFIRMED_AT]."""

import json
import sys
import uuid

from confluent_kafka import Producer

broker, sha256, label, *confirmed_at = sys.argv[1:]
event = {"sha256": sha256, "label": label, "confirmed_at": confirmed_at[0] if confirmed_at else None}
headers = {
    "content-type": "application/json",
    "ce_specversion": "1.0",
    "ce_type": "xray.label.v1",
    "ce_source": "/ris/reports",
    "ce_id": str(uuid.uuid4()),
}

failed = []
producer = Producer({"bootstrap.servers": broker, "enable.idempotence": True, "message.timeout.ms": 30_000})
producer.produce(
    "xray.labels",
    json.dumps(event).encode(),
    key=sha256,  # events of one image stay in their order
    headers=headers,
    on_delivery=lambda error, _: error and failed.append(error.str()),
)
producer.flush()
sys.exit(f"not confirmed: {failed[0]}" if failed else print("confirmed by the broker"))
