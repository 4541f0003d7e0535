import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Comparator;
import java.util.Map;
import java.util.Optional;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.AggregateFunction;
import org.apache.flink.api.common.serialization.AbstractDeserializationSchema;
import org.apache.flink.api.common.serialization.SerializationSchema;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.windowing.ProcessWindowFunction;
import org.apache.flink.streaming.api.windowing.assigners.TumblingEventTimeWindows;
import org.apache.flink.streaming.api.windowing.windows.TimeWindow;
import org.apache.flink.util.Collector;

/**
 * The benchmark's window in Flink: an embedded cluster, parallelism 1, state on the heap, checkpoints every 10 s, at
 * least once. After a restart, the program continues from the newest checkpoint.
 *
 * <p>The program prints "FIRST (cpu seconds)" on its first record, so that the start is not counted.
 */
public final class FlinkWindow {
    /** The fields of an event that the program reads. */
    @JsonIgnoreProperties(ignoreUnknown = true)
    public static class Event {
        public long ts;
        public String page;
        public double latency_ms;
    }

    /** The state of a window. */
    public static class Sums {
        public long n;
        public double total;
        public double low = Double.POSITIVE_INFINITY;
        public double high = Double.NEGATIVE_INFINITY;
    }

    /** The result of a window. */
    public static class Result extends Sums {
        public String page;
        public long start;
    }

    private static volatile boolean begun = false;

    public static class Reader extends AbstractDeserializationSchema<Event> {
        private transient ObjectMapper json;

        @Override
        public void open(InitializationContext context) {
            json = new ObjectMapper();
        }

        @Override
        public Event deserialize(byte[] bytes) throws IOException {
            if (!begun) {
                begun = true;
                var system = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
                System.out.println("FIRST " + system.getProcessCpuTime() / 1e9);
                System.out.flush();
            }
            return json.readValue(bytes, Event.class);
        }
    }

    public static class Writer implements SerializationSchema<Result> {
        private transient ObjectMapper json;

        @Override
        public void open(InitializationContext context) {
            json = new ObjectMapper();
        }

        @Override
        public byte[] serialize(Result result) {
            try {
                return json.writeValueAsBytes(result);
            } catch (IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
        }
    }

    /** Serializes the key of a result. */
    public static class Key implements SerializationSchema<Result> {
        @Override
        public byte[] serialize(Result result) {
            return result.page.getBytes(StandardCharsets.UTF_8);
        }
    }

    /** Adds events to the state of windows. */
    public static class Adder implements AggregateFunction<Event, Sums, Sums> {
        @Override
        public Sums createAccumulator() {
            return new Sums();
        }

        @Override
        public Sums add(Event event, Sums sums) {
            sums.n++;
            sums.total += event.latency_ms;
            sums.low = Math.min(sums.low, event.latency_ms);
            sums.high = Math.max(sums.high, event.latency_ms);
            return sums;
        }

        @Override
        public Sums getResult(Sums sums) {
            return sums;
        }

        @Override
        public Sums merge(Sums one, Sums other) {
            one.n += other.n;
            one.total += other.total;
            one.low = Math.min(one.low, other.low);
            one.high = Math.max(one.high, other.high);
            return one;
        }
    }

    /** Emits the result of a window. */
    public static class Emitter extends ProcessWindowFunction<Sums, Result, String, TimeWindow> {
        @Override
        public void process(String page, Context context, Iterable<Sums> found, Collector<Result> out) {
            Sums sums = found.iterator().next();
            Result result = new Result();
            result.page = page;
            result.start = context.window().getStart();
            result.n = sums.n;
            result.total = sums.total;
            result.low = sums.low;
            result.high = sums.high;
            out.collect(result);
        }
    }

    /** Returns the newest complete checkpoint below a folder. */
    private static Optional<Path> newestCheckpoint(Path folder) throws IOException {
        if (!Files.isDirectory(folder)) {
            return Optional.empty();
        }
        try (var files = Files.walk(folder, 3)) {
            return files.filter(file -> file.endsWith("_metadata"))
                .max(Comparator.comparingLong((Path file) -> file.toFile().lastModified())).map(Path::getParent);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> env = System.getenv();
        Path state = Path.of(env.get("STATE"));
        Configuration settings = new Configuration();
        settings.setString("state.backend.type", "hashmap");
        settings.setString("execution.checkpointing.storage", "filesystem");
        settings.setString("execution.checkpointing.dir", state.toUri().toString());
        settings.setString("execution.checkpointing.externalized-checkpoint-retention", "RETAIN_ON_CANCELLATION");
        settings.setString("taskmanager.memory.managed.size", "64m");
        settings.setString("pipeline.object-reuse", "true");
        newestCheckpoint(state).ifPresent(
            path -> settings.setString("execution.state-recovery.path", path.toUri().toString()));
        StreamExecutionEnvironment flink = StreamExecutionEnvironment.getExecutionEnvironment(settings);
        flink.setParallelism(1);
        flink.enableCheckpointing(10_000);
        KafkaSource<Event> source = KafkaSource.<Event>builder().setBootstrapServers(env.get("BROKER"))
            .setTopics(env.get("IN")).setGroupId(env.get("GROUP"))
            .setStartingOffsets(OffsetsInitializer.earliest()).setValueOnlyDeserializer(new Reader()).build();
        KafkaSink<Result> sink = KafkaSink.<Result>builder().setBootstrapServers(env.get("BROKER"))
            .setDeliveryGuarantee(DeliveryGuarantee.AT_LEAST_ONCE).setProperty("acks", "all")
            .setRecordSerializer(KafkaRecordSerializationSchema.<Result>builder().setTopic(env.get("OUT"))
                .setKeySerializationSchema(new Key()).setValueSerializationSchema(new Writer()).build())
            .build();
        Duration behind = Duration.ofMillis(Long.parseLong(env.get("GRACE_MS")));
        flink
            .fromSource(source, WatermarkStrategy.<Event>forBoundedOutOfOrderness(behind)
                .withTimestampAssigner((event, before) -> event.ts), "events")
            .keyBy(event -> event.page)
            .window(TumblingEventTimeWindows.of(Duration.ofMillis(Long.parseLong(env.get("WINDOW_MS")))))
            .aggregate(new Adder(), new Emitter())
            .sinkTo(sink);
        flink.execute("bench");
    }
}
