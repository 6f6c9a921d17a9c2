// Predictions in Node: npm ci; node consumer.mjs localhost:19092 ward-3 seen.txt
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { Kafka, logLevel } from "kafkajs";

const [servers, groupId, path, topic = "xray.predictions"] = process.argv.slice(2);
const seen = new Set(existsSync(path) ? readFileSync(path, "utf8").split("\n") : []);
const kafka = new Kafka({ brokers: servers.split(","), logLevel: logLevel.ERROR });
const consumer = kafka.consumer({ groupId });
await consumer.connect();
await consumer.subscribe({ topic, fromBeginning: true });
await consumer.run({
  autoCommit: false,
  eachMessage: async ({ topic, partition, message }) => {
    const event = JSON.parse(message.value.toString());
    if (!seen.has(event.event_id)) {
      let said = event.label === event.positive_label ? "FINDING" : "nothing";
      if (event.flags?.length) said = "UNDECIDED"; // any flag, also one that is not known here
      console.log(said, event.event_id, event.image.id ?? "", event.disclaimer);
      seen.add(event.event_id);
      appendFileSync(path, event.event_id + "\n");
    }
    // Behind the work: a crash repeats the last event, it loses none.
    await consumer.commitOffsets([{ topic, partition, offset: String(BigInt(message.offset) + 1n) }]);
  },
});
