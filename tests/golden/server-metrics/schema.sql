CREATE SCHEMA "analytics__server_metrics" AUTHORIZATION "analytics__server_metrics_owner";
SET ROLE "analytics__server_metrics_owner";
GRANT USAGE ON SCHEMA "analytics__server_metrics" TO "analytics__server_metrics_writer", "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_generation" (
  "only" boolean PRIMARY KEY DEFAULT true CHECK ("only"),
  "generation" bigint NOT NULL,
  "accepted" jsonb
);
GRANT SELECT ON "analytics__server_metrics"."_generation" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_generation" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_aggregations" (
  "id" integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  "name" text NOT NULL,
  "version" integer NOT NULL,
  "table_name" text NOT NULL,
  "reader" text NOT NULL,
  "shape" jsonb NOT NULL,
  "partition_days" integer NOT NULL,
  "retention_ms" bigint NOT NULL,
  "closed_until" bigint,
  "rev" bigint NOT NULL DEFAULT 0,
  "scanned_until" bigint,
  "published_until" bigint,
  "late_dead" bigint NOT NULL DEFAULT 0,
  "late_dropped" bigint NOT NULL DEFAULT 0,
  "created_at" timestamptz NOT NULL DEFAULT now(),
  "layout" bigint NOT NULL DEFAULT 0,
  "fed" jsonb NOT NULL DEFAULT '{}',
  "ids" text,
  UNIQUE (name, version)
) WITH (fillfactor = 50);
GRANT SELECT, UPDATE (closed_until, rev, scanned_until, published_until, late_dead, late_dropped) ON "analytics__server_metrics"."_aggregations" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_aggregations" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_readers" (
  "reader" text PRIMARY KEY,
  "watermark" bigint,
  "candidate" bigint,
  "candidate_at" timestamptz,
  "active_since" timestamptz,
  "idle_since" timestamptz,
  "idle_base" bigint,
  "switched_at" timestamptz
) WITH (fillfactor = 50);
GRANT SELECT, UPDATE ON "analytics__server_metrics"."_readers" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_readers" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_offsets" (
  "reader" text NOT NULL,
  "partition" integer NOT NULL,
  "topic_id" text,
  "former_topic_ids" text[] NOT NULL DEFAULT '{}',
  "epoch" integer NOT NULL DEFAULT 0,
  "next_offset" bigint,
  "max_event_time" bigint,
  "suspects" bigint[] NOT NULL DEFAULT '{}',
  "last_event_at" timestamptz,
  "end_confirmed_at" timestamptz,
  "freshness_ms" bigint,
  "consumed" bigint NOT NULL DEFAULT 0,
  "filtered" bigint NOT NULL DEFAULT 0,
  "invalid" bigint NOT NULL DEFAULT 0,
  "feeds" integer[] NOT NULL DEFAULT '{}',
  "duplicates" bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (reader, partition)
) WITH (fillfactor = 50);
GRANT SELECT, UPDATE ON "analytics__server_metrics"."_offsets" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_offsets" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_lost" (
  "reader" text NOT NULL,
  "partition" integer NOT NULL,
  "epoch" integer NOT NULL,
  "from_offset" bigint NOT NULL,
  "to_offset" bigint,
  "reason" text NOT NULL,
  "noticed_at" timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (reader, partition, epoch, from_offset)
);
GRANT SELECT, INSERT ON "analytics__server_metrics"."_lost" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_lost" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_dead_letters" (
  "epoch" integer NOT NULL,
  "partition" integer NOT NULL,
  "offset" bigint NOT NULL,
  "aggregation" text NOT NULL DEFAULT '',
  "reason" text NOT NULL,
  "field" text,
  "detail" text,
  "key" bytea,
  "value" bytea,
  "value_bytes" bigint,
  "event_time" bigint,
  "windows" bigint[],
  "created_at" timestamptz NOT NULL DEFAULT now(),
  "published" boolean NOT NULL DEFAULT false,
  "bytes" bigint,
  "element" integer NOT NULL DEFAULT -1,
  PRIMARY KEY (epoch, partition, "offset", aggregation, element)
);
CREATE INDEX "_dead_letters_unpublished" ON "analytics__server_metrics"."_dead_letters" (epoch, partition, "offset") WHERE NOT published;
CREATE INDEX "_dead_letters_by_time" ON "analytics__server_metrics"."_dead_letters" (created_at, epoch, partition, "offset", aggregation);
GRANT SELECT, INSERT, UPDATE (published) ON "analytics__server_metrics"."_dead_letters" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_dead_letters" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_detectors" (
  "anomaly" text NOT NULL,
  "aggregation_id" integer NOT NULL,
  "group_key" text NOT NULL,
  "state" jsonb NOT NULL,
  "seen" bigint[],
  PRIMARY KEY (anomaly, aggregation_id, group_key)
) WITH (fillfactor = 70);
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__server_metrics"."_detectors" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_detectors" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_detector_history" (
  "anomaly" text NOT NULL,
  "aggregation_id" integer NOT NULL,
  "group_key" text NOT NULL,
  "window_start" bigint NOT NULL,
  "state" jsonb NOT NULL,
  PRIMARY KEY (anomaly, aggregation_id, group_key, window_start)
);
CREATE INDEX "_detector_history_by_time" ON "analytics__server_metrics"."_detector_history" (aggregation_id, window_start);
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__server_metrics"."_detector_history" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_detector_history" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_corrections" (
  "aggregation_id" integer NOT NULL,
  "rev" bigint NOT NULL,
  "first_start" bigint NOT NULL,
  "last_start" bigint NOT NULL,
  "published" boolean NOT NULL,
  "scanned" boolean NOT NULL,
  PRIMARY KEY (aggregation_id, rev)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__server_metrics"."_corrections" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_corrections" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_anomalies" (
  "id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  "anomaly" text NOT NULL,
  "aggregation" text NOT NULL,
  "version" integer NOT NULL,
  "metric" text NOT NULL,
  "group_key" jsonb NOT NULL,
  "window_start" timestamptz NOT NULL,
  "window_end" timestamptz NOT NULL,
  "value" double precision NOT NULL,
  "score" double precision NOT NULL,
  "expected" double precision,
  "lower" double precision,
  "upper" double precision,
  "severity" text NOT NULL DEFAULT 'warning',
  "revision" integer NOT NULL DEFAULT 0,
  "detected_at" timestamptz NOT NULL DEFAULT now(),
  "published" boolean NOT NULL DEFAULT false,
  "epoch" integer,
  "partition" integer,
  "offset" bigint,
  "bytes" bigint,
  "element" integer,
  UNIQUE NULLS NOT DISTINCT (anomaly, aggregation, version, group_key, window_start, revision, epoch, partition, "offset", element)
);
CREATE INDEX "_anomalies_unpublished" ON "analytics__server_metrics"."_anomalies" (id) WHERE NOT published;
CREATE INDEX "_anomalies_by_time" ON "analytics__server_metrics"."_anomalies" (window_start, id);
GRANT SELECT, INSERT, UPDATE (published) ON "analytics__server_metrics"."_anomalies" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_anomalies" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_kept" (
  "kind" text NOT NULL,
  "place" integer NOT NULL,
  "rows" bigint NOT NULL DEFAULT 0,
  "bytes" bigint NOT NULL DEFAULT 0,
  "bare" bigint NOT NULL DEFAULT 0,
  "counted" bigint NOT NULL DEFAULT 0,
  "expired" bigint NOT NULL DEFAULT 0,
  "evicted" bigint NOT NULL DEFAULT 0,
  "full_at" timestamptz,
  PRIMARY KEY (kind, place)
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE ON "analytics__server_metrics"."_kept" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_kept" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_skipped" (
  "id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  "aggregation" text NOT NULL,
  "version" integer NOT NULL,
  "duty" text NOT NULL,
  "window_start" timestamptz,
  "last_start" timestamptz,
  "group_key" jsonb,
  "metrics" text[] NOT NULL DEFAULT '{}',
  "reason" text NOT NULL,
  "skipped_at" timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT, INSERT, DELETE ON "analytics__server_metrics"."_skipped" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_skipped" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_held_up" (
  "aggregation" text NOT NULL,
  "version" integer NOT NULL,
  "duty" text NOT NULL,
  "reason" text NOT NULL,
  "since" timestamptz NOT NULL DEFAULT now(),
  "tried_at" timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (aggregation, version, duty)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__server_metrics"."_held_up" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."_held_up" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."_topics" (
  "name" text PRIMARY KEY,
  "made_at" timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE "analytics__server_metrics"."by_host_v1" (
  "host" text COLLATE "C",
  "series" text COLLATE "C",
  "window_start" timestamptz NOT NULL,
  "_rev" bigint NOT NULL,
  "_since" bigint NOT NULL DEFAULT 0,
  "_count" bigint,
  "_n_value" bigint,
  "_sum_value" double precision,
  "_min_value" double precision,
  "_max_value" double precision,
  "_mean_value" double precision,
  "_low_value" double precision,
  "_m2_value" double precision,
  "_last_value" double precision,
  "_last_at_value" bigint[],
  "_n_unhealthy" bigint,
  "_sum_unhealthy" numeric,
  UNIQUE NULLS NOT DISTINCT ("host", "series", "window_start")
) PARTITION BY RANGE ("window_start");
CREATE INDEX "by_host_v1_by_time" ON "analytics__server_metrics"."by_host_v1" ("window_start");
GRANT SELECT, INSERT, UPDATE ON "analytics__server_metrics"."by_host_v1" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."by_host_v1" TO "analytics__server_metrics_reader";

CREATE TABLE "analytics__server_metrics"."by_series_v1" (
  "series" text COLLATE "C",
  "window_start" timestamptz NOT NULL,
  "_after" timestamptz NOT NULL DEFAULT '-infinity',
  "_rev" bigint NOT NULL,
  "_since" bigint NOT NULL DEFAULT 0,
  "_count" bigint,
  "_n_value" bigint,
  "_sum_value" double precision,
  "_n_magnitude" bigint,
  "_sum_magnitude" double precision,
  "_mean_value" double precision,
  "_low_value" double precision,
  "_m2_value" double precision,
  UNIQUE NULLS NOT DISTINCT ("series", "window_start", "_after")
) PARTITION BY RANGE ("window_start");
CREATE INDEX "by_series_v1_by_time" ON "analytics__server_metrics"."by_series_v1" ("window_start");
GRANT SELECT, INSERT, UPDATE ON "analytics__server_metrics"."by_series_v1" TO "analytics__server_metrics_writer";
GRANT SELECT ON "analytics__server_metrics"."by_series_v1" TO "analytics__server_metrics_reader";

CREATE OR REPLACE FUNCTION "analytics__server_metrics".ensure_partitions(table_name text, days integer[], widths integer[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO' SET timezone = 'UTC'
AS $body$
DECLARE
  parent oid;
  place integer;
  first_day date;
  end_day date;
  prefix text := left(table_name, 40) || '_p';
  suffix text := CASE WHEN length(table_name) > 40 THEN '_' || left(md5(table_name), 8) ELSE '' END;
  lows date[];
  highs date[];
  part text;
  made integer := 0;
BEGIN
  SELECT c.oid INTO parent FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE n.nspname = 'analytics__server_metrics' AND c.relname = table_name AND c.relkind = 'p';
  IF parent IS NULL THEN
    RAISE EXCEPTION 'no partitioned table % here', table_name USING ERRCODE = 'undefined_table';
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext(parent::text), -1);
  -- FOR VALUES FROM ('…') TO ('…')
  SELECT array_agg(split_part(bound, '''', 2)::date), array_agg(split_part(bound, '''', 4)::date) INTO lows, highs
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) bound
   WHERE i.inhparent = parent;
  FOR place IN 1 .. coalesce(array_length(days, 1), 0) LOOP
    FOR first_day, end_day IN
      WITH wanted AS (
        SELECT low, low + widths[place] AS high FROM (SELECT date '1970-01-01' + days[place] AS low) at
      ), near AS (
        SELECT h.low, h.high FROM unnest(lows, highs) h(low, high), wanted w WHERE h.low < w.high AND h.high > w.low
      )
      SELECT low, high FROM wanted WHERE NOT EXISTS (SELECT FROM near)
      UNION ALL
      SELECT min(d), max(d) + 1 FROM (
        SELECT d, d - row_number() OVER (ORDER BY d)::integer AS run
          FROM wanted, generate_series(0, high - low - 1) n, LATERAL (SELECT low + n AS d) day
         WHERE EXISTS (SELECT FROM near)
           AND NOT EXISTS (SELECT FROM near h WHERE d >= h.low AND d < h.high)) missing
      GROUP BY run ORDER BY 1
    LOOP
      part := prefix || to_char(first_day, 'YYYYMMDD') || suffix;
      EXECUTE format('CREATE TABLE IF NOT EXISTS "analytics__server_metrics".%I (LIKE "analytics__server_metrics".%I INCLUDING DEFAULTS INCLUDING STORAGE)'
                     ' WITH (fillfactor = 80)', part, table_name);
      EXECUTE format('ALTER TABLE "analytics__server_metrics".%I ATTACH PARTITION "analytics__server_metrics".%I FOR VALUES FROM (%L) TO (%L)',
                     table_name, part, first_day::text || ' 00:00:00+00', end_day::text || ' 00:00:00+00');
      lows := lows || first_day;
      highs := highs || end_day;
      made := made + 1;
    END LOOP;
  END LOOP;
  RETURN made;
END $body$;
REVOKE ALL ON FUNCTION "analytics__server_metrics"."ensure_partitions" FROM PUBLIC;
GRANT EXECUTE ON FUNCTION "analytics__server_metrics"."ensure_partitions" TO "analytics__server_metrics_writer";

CREATE OR REPLACE FUNCTION "analytics__server_metrics".ensure_partition(table_name text, day integer, days integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
  RETURN "analytics__server_metrics".ensure_partitions(table_name, ARRAY[day], ARRAY[days]) > 0;
END $body$;
REVOKE ALL ON FUNCTION "analytics__server_metrics"."ensure_partition" FROM PUBLIC;
GRANT EXECUTE ON FUNCTION "analytics__server_metrics"."ensure_partition" TO "analytics__server_metrics_writer";

INSERT INTO "analytics__server_metrics"._generation (generation) VALUES (1);
INSERT INTO "analytics__server_metrics"._readers (reader) VALUES ('live');
INSERT INTO "analytics__server_metrics"._offsets (reader, partition) SELECT 'live', generate_series(0, 5);
INSERT INTO "analytics__server_metrics"._aggregations (name, version, table_name, reader, shape, partition_days, retention_ms)
  VALUES ('by_host', 1, 'by_host_v1', 'live', '{"groupBy": [["host", "string"], ["series", "string"]], "partials": ["_count", "_n_value", "_sum_value", "_min_value", "_max_value", "_mean_value", "_low_value", "_m2_value", "_last_value", "_last_at_value", "_n_unhealthy", "_sum_unhealthy"], "types": {"_last_at_value": ["value", "number"], "_last_value": ["value", "number"], "_low_value": ["value", "number"], "_m2_value": ["value", "number"], "_max_value": ["value", "number"], "_mean_value": ["value", "number"], "_min_value": ["value", "number"], "_n_unhealthy": ["unhealthy", "boolean"], "_n_value": ["value", "number"], "_sum_unhealthy": ["unhealthy", "boolean"], "_sum_value": ["value", "number"]}, "window": {"grace": "30s", "size": "5m", "type": "tumbling"}}', 1, 7776000000);
INSERT INTO "analytics__server_metrics"._aggregations (name, version, table_name, reader, shape, partition_days, retention_ms)
  VALUES ('by_series', 1, 'by_series_v1', 'live', '{"groupBy": [["series", "string"]], "partials": ["_count", "_n_value", "_sum_value", "_n_magnitude", "_sum_magnitude", "_mean_value", "_low_value", "_m2_value"], "types": {"_low_value": ["value", "number"], "_m2_value": ["value", "number"], "_mean_value": ["value", "number"], "_n_magnitude": ["magnitude", "number"], "_n_value": ["value", "number"], "_sum_magnitude": ["magnitude", "number"], "_sum_value": ["value", "number"]}, "window": {"grace": "30s", "hop": "5m", "size": "1h", "type": "hopping"}}', 1, 7776000000);
RESET ROLE;
