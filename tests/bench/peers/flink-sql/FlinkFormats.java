import java.nio.file.Path;
import java.util.Map;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;
import org.apache.flink.table.functions.ScalarFunction;

/**
 * Runs statements of Flink SQL: an embedded cluster, parallelism 1, state on the heap, checkpoints every 10 s.
 *
 * <p>The variable SQL has the statements, separated by lines of "--". The last statement is the INSERT. The function
 * `marked` returns its argument, and prints "FIRST" on its first call, so that the start is not counted.
 */
public final class FlinkFormats {
    /** Prints FIRST on the first event. */
    public static class First extends ScalarFunction {
        private static volatile boolean begun = false;

        public Long eval(Long value) {
            if (!begun) {
                begun = true;
                System.out.println("FIRST");
                System.out.flush();
            }
            return value;
        }
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> env = System.getenv();
        Configuration settings = new Configuration();
        settings.setString("state.backend.type", "hashmap");
        settings.setString("execution.checkpointing.storage", "filesystem");
        settings.setString("execution.checkpointing.dir", Path.of(env.get("STATE")).toUri().toString());
        settings.setString("taskmanager.memory.managed.size", "256m");
        settings.setString("pipeline.object-reuse", "true");
        settings.setString("table.local-time-zone", "UTC");
        if (env.containsKey("PYTHON")) {
            settings.setString("python.executable", env.get("PYTHON"));
            settings.setString("python.client.executable", env.get("PYTHON"));
        }
        StreamExecutionEnvironment flink = StreamExecutionEnvironment.getExecutionEnvironment(settings);
        flink.setParallelism(1);
        flink.enableCheckpointing(10_000);
        StreamTableEnvironment tables = StreamTableEnvironment.create(flink);
        tables.createTemporarySystemFunction("marked", First.class);
        String[] statements = env.get("SQL").split("\n--\n");
        for (int number = 0; number < statements.length - 1; number++) {
            tables.executeSql(statements[number]);
        }
        tables.executeSql(statements[statements.length - 1]).await();
    }
}
