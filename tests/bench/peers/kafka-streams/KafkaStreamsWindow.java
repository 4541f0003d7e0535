import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.Suppressed;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.state.WindowStore;

/**
 * The benchmark's window in Kafka Streams: one thread, RocksDB with changelogs, at least once, final results only.
 *
 * <p>The program prints "FIRST (cpu seconds)" on its first record, so that the start is not counted.
 */
public final class KafkaStreamsWindow {
    /** The fields of an event that the program reads. */
    @JsonIgnoreProperties(ignoreUnknown = true)
    public static final class Event {
        public long ts;
        public String page;
        public double latency_ms;
    }

    /** The state of a window. */
    static final class Sums {
        long n;
        double total;
        double low = Double.POSITIVE_INFINITY;
        double high = Double.NEGATIVE_INFINITY;

        Sums add(double value) {
            n++;
            total += value;
            low = Math.min(low, value);
            high = Math.max(high, value);
            return this;
        }
    }

    /** The result of a window. */
    public record Result(String page, long start, long n, double total, double low, double high) {}

    private static final ObjectMapper JSON = new ObjectMapper();
    private static boolean begun = false;

    private static Event read(byte[] bytes) {
        if (!begun) {
            begun = true;
            var system = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
            System.out.println("FIRST " + system.getProcessCpuTime() / 1e9);
            System.out.flush();
        }
        try {
            return JSON.readValue(bytes, Event.class);
        } catch (java.io.IOException error) {
            throw new java.io.UncheckedIOException(error);
        }
    }

    private static byte[] write(Result result) {
        try {
            return JSON.writeValueAsBytes(result);
        } catch (java.io.IOException error) {
            throw new java.io.UncheckedIOException(error);
        }
    }

    private static byte[] pack(Sums sums) {
        return ByteBuffer.allocate(32).putLong(sums.n).putDouble(sums.total).putDouble(sums.low).putDouble(sums.high)
            .array();
    }

    private static Sums unpack(byte[] bytes) {
        ByteBuffer buffer = ByteBuffer.wrap(bytes);
        Sums sums = new Sums();
        sums.n = buffer.getLong();
        sums.total = buffer.getDouble();
        sums.low = buffer.getDouble();
        sums.high = buffer.getDouble();
        return sums;
    }

    private static <T> Deserializer<T> never() {
        return (topic, bytes) -> {
            throw new UnsupportedOperationException();
        };
    }

    public static void main(String[] arguments) throws InterruptedException {
        Map<String, String> env = System.getenv();
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, env.get("GROUP"));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, env.get("BROKER"));
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, env.get("STATE"));
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        // With the default, results wait up to 30 s. The CPU time of this interval differs less than that of two runs.
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1000);
        settings.put("auto.offset.reset", "earliest");
        settings.put("acks", "all");

        Serde<Event> events = Serdes.serdeFrom(
            (topic, event) -> {
                throw new UnsupportedOperationException();
            },
            (topic, bytes) -> read(bytes));
        Serde<Sums> sums = Serdes.serdeFrom(
            (topic, kept) -> kept == null ? null : pack(kept), (topic, bytes) -> bytes == null ? null : unpack(bytes));
        Serde<Result> results = Serdes.serdeFrom((topic, result) -> write(result), never());
        Duration window = Duration.ofMillis(Long.parseLong(env.get("WINDOW_MS")));
        Duration grace = Duration.ofMillis(Long.parseLong(env.get("GRACE_MS")));

        StreamsBuilder builder = new StreamsBuilder();
        builder
            .stream(env.get("IN"), Consumed.with(Serdes.String(), events)
                .withTimestampExtractor((record, before) -> ((Event) record.value()).ts))
            .groupByKey(Grouped.with(Serdes.String(), events))
            .windowedBy(TimeWindows.ofSizeAndGrace(window, grace))
            .aggregate(Sums::new, (page, event, kept) -> kept.add(event.latency_ms),
                Materialized.<String, Sums, WindowStore<Bytes, byte[]>>as("windows")
                    .withKeySerde(Serdes.String()).withValueSerde(sums))
            .suppress(Suppressed.untilWindowCloses(Suppressed.BufferConfig.unbounded()))
            .toStream()
            .map((key, kept) -> KeyValue.pair(
                key.key(),
                new Result(key.key(), key.window().start(), kept.n, kept.total, kept.low, kept.high)))
            .to(env.get("OUT"), Produced.with(Serdes.String(), results));

        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(10))));
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
        Thread.currentThread().join();
    }
}
