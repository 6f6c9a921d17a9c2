import com.fasterxml.jackson.databind.ObjectMapper;
import java.nio.file.*;
import java.time.Duration;
import java.util.*;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.StringDeserializer;

/** Predictions in Java: {@code java -cp 'JARS/*' Consumer.java localhost:19092 ward-3 seen.txt}. */
public class Consumer {
    public static void main(String[] args) throws Exception {
        var path = Path.of(args[2]);
        var seen = new HashSet<String>(Files.exists(path) ? Files.readAllLines(path) : List.of());
        Map<String, Object> options = Map.of("bootstrap.servers", args[0], "group.id", args[1],
            "auto.offset.reset", "earliest", "enable.auto.commit", "false");
        try (var consumer = new KafkaConsumer<>(options, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(args.length > 3 ? args[3] : "xray.predictions"));
            while (true) {
                for (var record : consumer.poll(Duration.ofSeconds(1))) {
                    var event = new ObjectMapper().readTree(record.value());
                    var id = event.get("event_id").asText();
                    if (!seen.add(id)) continue;
                    var said = event.get("label").equals(event.get("positive_label")) ? "FINDING" : "nothing";
                    if (event.path("flags").size() > 0) said = "UNDECIDED"; // any flag, also one that is not known here
                    System.out.println(String.join(" ", said, id, event.at("/image/id").asText(),
                        event.get("disclaimer").asText()));
                    Files.writeString(path, id + "\n", StandardOpenOption.CREATE, StandardOpenOption.APPEND);
                }
                consumer.commitSync(); // behind the work: a crash repeats the last events, it loses none
            }
        }
    }
}
