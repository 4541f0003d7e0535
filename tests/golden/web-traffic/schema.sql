CREATE SCHEMA "analytics__web_traffic" AUTHORIZATION "analytics__web_traffic_owner";
SET ROLE "analytics__web_traffic_owner";
GRANT USAGE ON SCHEMA "analytics__web_traffic" TO "analytics__web_traffic_writer", "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_generation" (
  "only" boolean PRIMARY KEY DEFAULT true CHECK ("only"),
  "generation" bigint NOT NULL,
  "accepted" jsonb
);
GRANT SELECT ON "analytics__web_traffic"."_generation" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_generation" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_aggregations" (
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
GRANT SELECT, UPDATE (closed_until, rev, scanned_until, published_until, late_dead, late_dropped) ON "analytics__web_traffic"."_aggregations" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_aggregations" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_readers" (
  "reader" text PRIMARY KEY,
  "watermark" bigint,
  "candidate" bigint,
  "candidate_at" timestamptz,
  "active_since" timestamptz,
  "idle_since" timestamptz,
  "idle_base" bigint,
  "switched_at" timestamptz
) WITH (fillfactor = 50);
GRANT SELECT, UPDATE ON "analytics__web_traffic"."_readers" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_readers" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_offsets" (
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
GRANT SELECT, UPDATE ON "analytics__web_traffic"."_offsets" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_offsets" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_lost" (
  "reader" text NOT NULL,
  "partition" integer NOT NULL,
  "epoch" integer NOT NULL,
  "from_offset" bigint NOT NULL,
  "to_offset" bigint,
  "reason" text NOT NULL,
  "noticed_at" timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (reader, partition, epoch, from_offset)
);
GRANT SELECT, INSERT ON "analytics__web_traffic"."_lost" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_lost" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_dead_letters" (
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
CREATE INDEX "_dead_letters_unpublished" ON "analytics__web_traffic"."_dead_letters" (epoch, partition, "offset") WHERE NOT published;
CREATE INDEX "_dead_letters_by_time" ON "analytics__web_traffic"."_dead_letters" (created_at, epoch, partition, "offset", aggregation);
GRANT SELECT, INSERT, UPDATE (published) ON "analytics__web_traffic"."_dead_letters" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_dead_letters" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_detectors" (
  "anomaly" text NOT NULL,
  "aggregation_id" integer NOT NULL,
  "group_key" text NOT NULL,
  "state" jsonb NOT NULL,
  "seen" bigint[],
  PRIMARY KEY (anomaly, aggregation_id, group_key)
) WITH (fillfactor = 70);
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__web_traffic"."_detectors" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_detectors" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_detector_history" (
  "anomaly" text NOT NULL,
  "aggregation_id" integer NOT NULL,
  "group_key" text NOT NULL,
  "window_start" bigint NOT NULL,
  "state" jsonb NOT NULL,
  PRIMARY KEY (anomaly, aggregation_id, group_key, window_start)
);
CREATE INDEX "_detector_history_by_time" ON "analytics__web_traffic"."_detector_history" (aggregation_id, window_start);
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__web_traffic"."_detector_history" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_detector_history" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_corrections" (
  "aggregation_id" integer NOT NULL,
  "rev" bigint NOT NULL,
  "first_start" bigint NOT NULL,
  "last_start" bigint NOT NULL,
  "published" boolean NOT NULL,
  "scanned" boolean NOT NULL,
  PRIMARY KEY (aggregation_id, rev)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__web_traffic"."_corrections" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_corrections" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_anomalies" (
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
CREATE INDEX "_anomalies_unpublished" ON "analytics__web_traffic"."_anomalies" (id) WHERE NOT published;
CREATE INDEX "_anomalies_by_time" ON "analytics__web_traffic"."_anomalies" (window_start, id);
GRANT SELECT, INSERT, UPDATE (published) ON "analytics__web_traffic"."_anomalies" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_anomalies" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_kept" (
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
GRANT SELECT, INSERT, UPDATE ON "analytics__web_traffic"."_kept" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_kept" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_skipped" (
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
GRANT SELECT, INSERT, DELETE ON "analytics__web_traffic"."_skipped" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_skipped" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_held_up" (
  "aggregation" text NOT NULL,
  "version" integer NOT NULL,
  "duty" text NOT NULL,
  "reason" text NOT NULL,
  "since" timestamptz NOT NULL DEFAULT now(),
  "tried_at" timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (aggregation, version, duty)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__web_traffic"."_held_up" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_held_up" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."_topics" (
  "name" text PRIMARY KEY,
  "made_at" timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE "analytics__web_traffic"."_events" (
  "event_time" timestamptz NOT NULL,
  "epoch" integer NOT NULL,
  "partition" integer NOT NULL,
  "offset" bigint NOT NULL,
  "data" jsonb NOT NULL,
  "element" integer NOT NULL DEFAULT -1,
  PRIMARY KEY (event_time, epoch, partition, "offset", element)
) PARTITION BY RANGE (event_time);
GRANT SELECT, INSERT ON "analytics__web_traffic"."_events" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."_events" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."by_section_v1" (
  "section" text COLLATE "C",
  "window_start" timestamptz NOT NULL,
  "_rev" bigint NOT NULL,
  "_since" bigint NOT NULL DEFAULT 0,
  "_count" bigint,
  "_n_latency_ms" bigint,
  "_sum_latency_ms" double precision,
  "_max_latency_ms" double precision,
  "_n_failed" bigint,
  "_sum_failed" numeric,
  "_n_slow" bigint,
  "_sum_slow" numeric,
  "_count_.e19f046bfb2fc38b" bigint,
  "_count_.845e3f4a22e96df0" bigint,
  "_sum_kibibytes" double precision,
  UNIQUE NULLS NOT DISTINCT ("section", "window_start")
) PARTITION BY RANGE ("window_start");
CREATE INDEX "by_section_v1_by_time" ON "analytics__web_traffic"."by_section_v1" ("window_start");
GRANT SELECT, INSERT, UPDATE ON "analytics__web_traffic"."by_section_v1" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."by_section_v1" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."by_status_v1" (
  "method" text COLLATE "C",
  "status" bigint,
  "window_start" timestamptz NOT NULL,
  "_rev" bigint NOT NULL,
  "_since" bigint NOT NULL DEFAULT 0,
  "_count" bigint,
  "_count_.c58e21fae72f180f" bigint,
  "_sum_bytes.d959f4c1c16306b7" numeric,
  "_n_latency_ms" bigint,
  "_mean_latency_ms" double precision,
  "_low_latency_ms" double precision,
  "_m2_latency_ms" double precision,
  UNIQUE NULLS NOT DISTINCT ("method", "status", "window_start")
) PARTITION BY RANGE ("window_start");
CREATE INDEX "by_status_v1_by_time" ON "analytics__web_traffic"."by_status_v1" ("window_start");
GRANT SELECT, INSERT, UPDATE ON "analytics__web_traffic"."by_status_v1" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."by_status_v1" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."by_country_v1" (
  "country" text COLLATE "C",
  "hour" bigint,
  "window_start" timestamptz NOT NULL,
  "_rev" bigint NOT NULL,
  "_since" bigint NOT NULL DEFAULT 0,
  "_count" bigint,
  "_sum_failed" numeric,
  UNIQUE NULLS NOT DISTINCT ("country", "hour", "window_start")
) PARTITION BY RANGE ("window_start");
CREATE INDEX "by_country_v1_by_time" ON "analytics__web_traffic"."by_country_v1" ("window_start");
GRANT SELECT, INSERT, UPDATE ON "analytics__web_traffic"."by_country_v1" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."by_country_v1" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."site_v1" (
  "window_start" timestamptz NOT NULL,
  "_after" timestamptz NOT NULL DEFAULT '-infinity',
  "_rev" bigint NOT NULL,
  "_since" bigint NOT NULL DEFAULT 0,
  "_count" bigint,
  "_n_latency_ms" bigint,
  "_sum_latency_ms" double precision,
  "_first_url" text COLLATE "C",
  "_first_at_url" bigint[],
  "_last_url" text COLLATE "C",
  "_last_at_url" bigint[],
  UNIQUE NULLS NOT DISTINCT ("window_start", "_after")
) PARTITION BY RANGE ("window_start");
CREATE INDEX "site_v1_by_time" ON "analytics__web_traffic"."site_v1" ("window_start");
GRANT SELECT, INSERT, UPDATE ON "analytics__web_traffic"."site_v1" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."site_v1" TO "analytics__web_traffic_reader";

CREATE TABLE "analytics__web_traffic"."visits_v1" (
  "session_id" text COLLATE "C",
  "window_start" timestamptz NOT NULL,
  "window_end" timestamptz NOT NULL,
  "_rev" bigint NOT NULL,
  "_since" bigint NOT NULL DEFAULT 0,
  "_count" bigint,
  "_first_url" text COLLATE "C",
  "_first_at_url" bigint[],
  "_last_url" text COLLATE "C",
  "_last_at_url" bigint[],
  "_sum_failed" numeric,
  UNIQUE NULLS NOT DISTINCT ("session_id", "window_start")
) PARTITION BY RANGE ("window_start");
CREATE INDEX "visits_v1_by_time" ON "analytics__web_traffic"."visits_v1" ("window_start");
CREATE INDEX "visits_v1_by_end" ON "analytics__web_traffic"."visits_v1" ("window_end");
CREATE INDEX "visits_v1_open" ON "analytics__web_traffic"."visits_v1" ("session_id", "window_end");
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__web_traffic"."visits_v1" TO "analytics__web_traffic_writer";
GRANT SELECT ON "analytics__web_traffic"."visits_v1" TO "analytics__web_traffic_reader";

CREATE OR REPLACE FUNCTION "analytics__web_traffic".ensure_partitions(table_name text, days integer[], widths integer[]) RETURNS integer
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
   WHERE n.nspname = 'analytics__web_traffic' AND c.relname = table_name AND c.relkind = 'p';
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
      EXECUTE format('CREATE TABLE IF NOT EXISTS "analytics__web_traffic".%I (LIKE "analytics__web_traffic".%I INCLUDING DEFAULTS INCLUDING STORAGE)'
                     ' WITH (fillfactor = 80)', part, table_name);
      EXECUTE format('ALTER TABLE "analytics__web_traffic".%I ATTACH PARTITION "analytics__web_traffic".%I FOR VALUES FROM (%L) TO (%L)',
                     table_name, part, first_day::text || ' 00:00:00+00', end_day::text || ' 00:00:00+00');
      lows := lows || first_day;
      highs := highs || end_day;
      made := made + 1;
    END LOOP;
  END LOOP;
  RETURN made;
END $body$;
REVOKE ALL ON FUNCTION "analytics__web_traffic"."ensure_partitions" FROM PUBLIC;
GRANT EXECUTE ON FUNCTION "analytics__web_traffic"."ensure_partitions" TO "analytics__web_traffic_writer";

CREATE OR REPLACE FUNCTION "analytics__web_traffic".ensure_partition(table_name text, day integer, days integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
  RETURN "analytics__web_traffic".ensure_partitions(table_name, ARRAY[day], ARRAY[days]) > 0;
END $body$;
REVOKE ALL ON FUNCTION "analytics__web_traffic"."ensure_partition" FROM PUBLIC;
GRANT EXECUTE ON FUNCTION "analytics__web_traffic"."ensure_partition" TO "analytics__web_traffic_writer";

INSERT INTO "analytics__web_traffic"._generation (generation) VALUES (1);
INSERT INTO "analytics__web_traffic"._readers (reader) VALUES ('live');
INSERT INTO "analytics__web_traffic"._offsets (reader, partition) SELECT 'live', generate_series(0, 5);
INSERT INTO "analytics__web_traffic"._aggregations (name, version, table_name, reader, shape, partition_days, retention_ms)
  VALUES ('by_section', 1, 'by_section_v1', 'live', '{"groupBy": [["section", "string"]], "partials": ["_count", "_n_latency_ms", "_sum_latency_ms", "_max_latency_ms", "_n_failed", "_sum_failed", "_n_slow", "_sum_slow", "_count_.e19f046bfb2fc38b", "_count_.845e3f4a22e96df0", "_sum_kibibytes"], "types": {"_max_latency_ms": ["latency_ms", "number"], "_n_failed": ["failed", "boolean"], "_n_latency_ms": ["latency_ms", "number"], "_n_slow": ["slow", "boolean"], "_sum_failed": ["failed", "boolean"], "_sum_kibibytes": ["kibibytes", "number"], "_sum_latency_ms": ["latency_ms", "number"], "_sum_slow": ["slow", "boolean"]}, "window": {"grace": "10s", "size": "1m", "type": "tumbling"}}', 1, 7776000000);
INSERT INTO "analytics__web_traffic"._aggregations (name, version, table_name, reader, shape, partition_days, retention_ms)
  VALUES ('by_status', 1, 'by_status_v1', 'live', '{"groupBy": [["method", "string"], ["status", "integer"]], "partials": ["_count", "_count_.c58e21fae72f180f", "_sum_bytes.d959f4c1c16306b7", "_n_latency_ms", "_mean_latency_ms", "_low_latency_ms", "_m2_latency_ms"], "types": {"_low_latency_ms": ["latency_ms", "number"], "_m2_latency_ms": ["latency_ms", "number"], "_mean_latency_ms": ["latency_ms", "number"], "_n_latency_ms": ["latency_ms", "number"], "_sum_bytes.d959f4c1c16306b7": ["bytes", "integer"]}, "window": {"grace": "0s", "size": "5m", "type": "tumbling"}}', 1, 7776000000);
INSERT INTO "analytics__web_traffic"._aggregations (name, version, table_name, reader, shape, partition_days, retention_ms)
  VALUES ('by_country', 1, 'by_country_v1', 'live', '{"groupBy": [["country", "string"], ["hour", "integer"]], "partials": ["_count", "_sum_failed"], "types": {"_sum_failed": ["failed", "boolean"]}, "window": {"grace": "1m", "size": "1h", "type": "tumbling"}}', 1, 31536000000);
INSERT INTO "analytics__web_traffic"._aggregations (name, version, table_name, reader, shape, partition_days, retention_ms)
  VALUES ('site', 1, 'site_v1', 'live', '{"groupBy": [], "partials": ["_count", "_n_latency_ms", "_sum_latency_ms", "_first_url", "_first_at_url", "_last_url", "_last_at_url"], "types": {"_first_at_url": ["url", "string"], "_first_url": ["url", "string"], "_last_at_url": ["url", "string"], "_last_url": ["url", "string"], "_n_latency_ms": ["latency_ms", "number"], "_sum_latency_ms": ["latency_ms", "number"]}, "window": {"grace": "10s", "hop": "30s", "size": "5m", "type": "hopping"}}', 1, 7776000000);
INSERT INTO "analytics__web_traffic"._aggregations (name, version, table_name, reader, shape, partition_days, retention_ms)
  VALUES ('visits', 1, 'visits_v1', 'live', '{"groupBy": [["session_id", "string"]], "partials": ["_count", "_first_url", "_first_at_url", "_last_url", "_last_at_url", "_sum_failed"], "types": {"_first_at_url": ["url", "string"], "_first_url": ["url", "string"], "_last_at_url": ["url", "string"], "_last_url": ["url", "string"], "_sum_failed": ["failed", "boolean"]}, "window": {"gap": "30m", "grace": "10s", "maxLength": "12h", "type": "session"}}', 1, 7776000000);
RESET ROLE;
