# ruff: noqa: T201, PLR2004 - a program that prints, and a script's arguments
"""Predictions with kafka-python: ``python with_kafka_python.py localhost:19092 ward-3 seen.txt``."""

import json
import sys
from pathlib import Path

from kafka import KafkaConsumer

servers, group, path = sys.argv[1], sys.argv[2], Path(sys.argv[3])
seen = set(path.read_text().split()) if path.exists() else set()
consumer = KafkaConsumer(
    sys.argv[4] if len(sys.argv) > 4 else "xray.predictions",
    bootstrap_servers=servers,
    group_id=group,
    auto_offset_reset="earliest",
    enable_auto_commit=False,
)
with path.open("a") as file:
    for record in consumer:
        event = json.loads(record.value)
        if event["event_id"] not in seen:
            said = "FINDING" if event["label"] == event["positive_label"] else "nothing"
            said = "UNDECIDED" if event.get("flags") else said  # any flag, also one that is not known here
            print(said, event["event_id"], event["image"].get("id"), event["disclaimer"], flush=True)
            seen.add(event["event_id"])
            print(event["event_id"], file=file, flush=True)
        consumer.commit()  # behind the work: a crash repeats the last event, it loses none
