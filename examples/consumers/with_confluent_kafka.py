# ruff: noqa: T201, PLR2004 - a program that prints, and a script's arguments
"""Predictions with confluent-kafka: ``python with_confluent_kafka.py localhost:19092 ward-3 seen.txt``."""

import json
import sys
from pathlib import Path

from confluent_kafka import Consumer, KafkaException

servers, group, path = sys.argv[1], sys.argv[2], Path(sys.argv[3])
seen = set(path.read_text().split()) if path.exists() else set()
options = {"auto.offset.reset": "earliest", "enable.auto.commit": False}
consumer = Consumer({"bootstrap.servers": servers, "group.id": group, **options})
consumer.subscribe([sys.argv[4] if len(sys.argv) > 4 else "xray.predictions"])
with path.open("a") as file:
    while True:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        event = json.loads(message.value())
        if event["event_id"] not in seen:
            said = "FINDING" if event["label"] == event["positive_label"] else "nothing"
            said = "UNDECIDED" if event.get("flags") else said  # any flag, also one that is not known here
            print(said, event["event_id"], event["image"].get("id"), event["disclaimer"], flush=True)
            seen.add(event["event_id"])
            print(event["event_id"], file=file, flush=True)
        consumer.commit(message, asynchronous=False)  # behind the work: a crash repeats the last event
