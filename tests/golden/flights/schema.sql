CREATE SCHEMA "analytics__flights" AUTHORIZATION "analytics__flights_owner";
SET ROLE "analytics__flights_owner";
GRANT USAGE ON SCHEMA "analytics__flights" TO "analytics__flights_writer", "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_generation" (
  "only" boolean PRIMARY KEY DEFAULT true CHECK ("only"),
  "generation" bigint NOT NULL,
  "accepted" jsonb
);
GRANT SELECT ON "analytics__flights"."_generation" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_generation" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_aggregations" (
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
GRANT SELECT, UPDATE (closed_until, rev, scanned_until, published_until, late_dead, late_dropped) ON "analytics__flights"."_aggregations" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_aggregations" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_readers" (
  "reader" text PRIMARY KEY,
  "watermark" bigint,
  "candidate" bigint,
  "candidate_at" timestamptz,
  "active_since" timestamptz,
  "idle_since" timestamptz,
  "idle_base" bigint,
  "switched_at" timestamptz
) WITH (fillfactor = 50);
GRANT SELECT, UPDATE ON "analytics__flights"."_readers" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_readers" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_offsets" (
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
GRANT SELECT, UPDATE ON "analytics__flights"."_offsets" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_offsets" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_lost" (
  "reader" text NOT NULL,
  "partition" integer NOT NULL,
  "epoch" integer NOT NULL,
  "from_offset" bigint NOT NULL,
  "to_offset" bigint,
  "reason" text NOT NULL,
  "noticed_at" timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (reader, partition, epoch, from_offset)
);
GRANT SELECT, INSERT ON "analytics__flights"."_lost" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_lost" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_dead_letters" (
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
CREATE INDEX "_dead_letters_unpublished" ON "analytics__flights"."_dead_letters" (epoch, partition, "offset") WHERE NOT published;
CREATE INDEX "_dead_letters_by_time" ON "analytics__flights"."_dead_letters" (created_at, epoch, partition, "offset", aggregation);
GRANT SELECT, INSERT, UPDATE (published) ON "analytics__flights"."_dead_letters" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_dead_letters" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_detectors" (
  "anomaly" text NOT NULL,
  "aggregation_id" integer NOT NULL,
  "group_key" text NOT NULL,
  "state" jsonb NOT NULL,
  "seen" bigint[],
  PRIMARY KEY (anomaly, aggregation_id, group_key)
) WITH (fillfactor = 70);
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__flights"."_detectors" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_detectors" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_detector_history" (
  "anomaly" text NOT NULL,
  "aggregation_id" integer NOT NULL,
  "group_key" text NOT NULL,
  "window_start" bigint NOT NULL,
  "state" jsonb NOT NULL,
  PRIMARY KEY (anomaly, aggregation_id, group_key, window_start)
);
CREATE INDEX "_detector_history_by_time" ON "analytics__flights"."_detector_history" (aggregation_id, window_start);
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__flights"."_detector_history" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_detector_history" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_corrections" (
  "aggregation_id" integer NOT NULL,
  "rev" bigint NOT NULL,
  "first_start" bigint NOT NULL,
  "last_start" bigint NOT NULL,
  "published" boolean NOT NULL,
  "scanned" boolean NOT NULL,
  PRIMARY KEY (aggregation_id, rev)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__flights"."_corrections" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_corrections" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_anomalies" (
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
CREATE INDEX "_anomalies_unpublished" ON "analytics__flights"."_anomalies" (id) WHERE NOT published;
CREATE INDEX "_anomalies_by_time" ON "analytics__flights"."_anomalies" (window_start, id);
GRANT SELECT, INSERT, UPDATE (published) ON "analytics__flights"."_anomalies" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_anomalies" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_kept" (
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
GRANT SELECT, INSERT, UPDATE ON "analytics__flights"."_kept" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_kept" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_skipped" (
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
GRANT SELECT, INSERT, DELETE ON "analytics__flights"."_skipped" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_skipped" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_held_up" (
  "aggregation" text NOT NULL,
  "version" integer NOT NULL,
  "duty" text NOT NULL,
  "reason" text NOT NULL,
  "since" timestamptz NOT NULL DEFAULT now(),
  "tried_at" timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (aggregation, version, duty)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON "analytics__flights"."_held_up" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."_held_up" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."_topics" (
  "name" text PRIMARY KEY,
  "made_at" timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE "analytics__flights"."by_carrier_v1" (
  "carrier" text COLLATE "C",
  "window_start" timestamptz NOT NULL,
  "_rev" bigint NOT NULL,
  "_since" bigint NOT NULL DEFAULT 0,
  "_count" bigint,
  "_n_dep_delay" bigint,
  "_sum_dep_delay" double precision,
  "_max_dep_delay" double precision,
  "_mean_dep_delay" double precision,
  "_low_dep_delay" double precision,
  "_m2_dep_delay" double precision,
  "_n_delayed" bigint,
  "_sum_delayed" numeric,
  "_first_flight" bigint,
  "_first_at_flight" bigint[],
  "_last_flight" bigint,
  "_last_at_flight" bigint[],
  UNIQUE NULLS NOT DISTINCT ("carrier", "window_start")
) PARTITION BY RANGE ("window_start");
CREATE INDEX "by_carrier_v1_by_time" ON "analytics__flights"."by_carrier_v1" ("window_start");
GRANT SELECT, INSERT, UPDATE ON "analytics__flights"."by_carrier_v1" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."by_carrier_v1" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."by_origin_v1" (
  "origin" text COLLATE "C",
  "window_start" timestamptz NOT NULL,
  "_rev" bigint NOT NULL,
  "_since" bigint NOT NULL DEFAULT 0,
  "_count" bigint,
  "_n_arr_delay" bigint,
  "_sum_distance" numeric,
  "_n_speed" bigint,
  "_sum_speed" double precision,
  "_mean_speed" double precision,
  "_low_speed" double precision,
  "_m2_speed" double precision,
  "_frequent_dest" bytea,
  UNIQUE NULLS NOT DISTINCT ("origin", "window_start")
) PARTITION BY RANGE ("window_start");
CREATE INDEX "by_origin_v1_by_time" ON "analytics__flights"."by_origin_v1" ("window_start");
GRANT SELECT, INSERT, UPDATE ON "analytics__flights"."by_origin_v1" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."by_origin_v1" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."by_route_v1" (
  "origin" text COLLATE "C",
  "dest" text COLLATE "C",
  "window_start" timestamptz NOT NULL,
  "_after" timestamptz NOT NULL DEFAULT '-infinity',
  "_rev" bigint NOT NULL,
  "_since" bigint NOT NULL DEFAULT 0,
  "_count" bigint,
  "_n_dep_delay" bigint,
  "_sum_dep_delay" double precision,
  "_min_air_time" double precision,
  "_max_air_time" double precision,
  UNIQUE NULLS NOT DISTINCT ("origin", "dest", "window_start", "_after")
) PARTITION BY RANGE ("window_start");
CREATE INDEX "by_route_v1_by_time" ON "analytics__flights"."by_route_v1" ("window_start");
GRANT SELECT, INSERT, UPDATE ON "analytics__flights"."by_route_v1" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."by_route_v1" TO "analytics__flights_reader";

CREATE TABLE "analytics__flights"."overall_v1" (
  "window_start" timestamptz NOT NULL,
  "_rev" bigint NOT NULL,
  "_since" bigint NOT NULL DEFAULT 0,
  "_count" bigint,
  "_n_dep_delay" bigint,
  "_sum_dep_delay" double precision,
  "_sum_air_time" double precision,
  "_min_ts" timestamptz,
  "_max_ts" timestamptz,
  UNIQUE NULLS NOT DISTINCT ("window_start")
) PARTITION BY RANGE ("window_start");
CREATE INDEX "overall_v1_by_time" ON "analytics__flights"."overall_v1" ("window_start");
GRANT SELECT, INSERT, UPDATE ON "analytics__flights"."overall_v1" TO "analytics__flights_writer";
GRANT SELECT ON "analytics__flights"."overall_v1" TO "analytics__flights_reader";

CREATE OR REPLACE FUNCTION "analytics__flights".ensure_partitions(table_name text, days integer[], widths integer[]) RETURNS integer
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
   WHERE n.nspname = 'analytics__flights' AND c.relname = table_name AND c.relkind = 'p';
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
      EXECUTE format('CREATE TABLE IF NOT EXISTS "analytics__flights".%I (LIKE "analytics__flights".%I INCLUDING DEFAULTS INCLUDING STORAGE)'
                     ' WITH (fillfactor = 80)', part, table_name);
      EXECUTE format('ALTER TABLE "analytics__flights".%I ATTACH PARTITION "analytics__flights".%I FOR VALUES FROM (%L) TO (%L)',
                     table_name, part, first_day::text || ' 00:00:00+00', end_day::text || ' 00:00:00+00');
      lows := lows || first_day;
      highs := highs || end_day;
      made := made + 1;
    END LOOP;
  END LOOP;
  RETURN made;
END $body$;
REVOKE ALL ON FUNCTION "analytics__flights"."ensure_partitions" FROM PUBLIC;
GRANT EXECUTE ON FUNCTION "analytics__flights"."ensure_partitions" TO "analytics__flights_writer";

CREATE OR REPLACE FUNCTION "analytics__flights".ensure_partition(table_name text, day integer, days integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
  RETURN "analytics__flights".ensure_partitions(table_name, ARRAY[day], ARRAY[days]) > 0;
END $body$;
REVOKE ALL ON FUNCTION "analytics__flights"."ensure_partition" FROM PUBLIC;
GRANT EXECUTE ON FUNCTION "analytics__flights"."ensure_partition" TO "analytics__flights_writer";

INSERT INTO "analytics__flights"._generation (generation) VALUES (1);
INSERT INTO "analytics__flights"._readers (reader) VALUES ('live');
INSERT INTO "analytics__flights"._offsets (reader, partition) SELECT 'live', generate_series(0, 5);
INSERT INTO "analytics__flights"._aggregations (name, version, table_name, reader, shape, partition_days, retention_ms)
  VALUES ('by_carrier', 1, 'by_carrier_v1', 'live', '{"groupBy": [["carrier", "string"]], "partials": ["_count", "_n_dep_delay", "_sum_dep_delay", "_max_dep_delay", "_mean_dep_delay", "_low_dep_delay", "_m2_dep_delay", "_n_delayed", "_sum_delayed", "_first_flight", "_first_at_flight", "_last_flight", "_last_at_flight"], "types": {"_first_at_flight": ["flight", "integer"], "_first_flight": ["flight", "integer"], "_last_at_flight": ["flight", "integer"], "_last_flight": ["flight", "integer"], "_low_dep_delay": ["dep_delay", "number"], "_m2_dep_delay": ["dep_delay", "number"], "_max_dep_delay": ["dep_delay", "number"], "_mean_dep_delay": ["dep_delay", "number"], "_n_delayed": ["delayed", "boolean"], "_n_dep_delay": ["dep_delay", "number"], "_sum_delayed": ["delayed", "boolean"], "_sum_dep_delay": ["dep_delay", "number"]}, "window": {"grace": "10m", "size": "1h", "type": "tumbling"}}', 9, 315360000000);
INSERT INTO "analytics__flights"._aggregations (name, version, table_name, reader, shape, partition_days, retention_ms)
  VALUES ('by_origin', 1, 'by_origin_v1', 'live', '{"groupBy": [["origin", "string"]], "partials": ["_count", "_n_arr_delay", "_sum_distance", "_n_speed", "_sum_speed", "_mean_speed", "_low_speed", "_m2_speed", "_frequent_dest"], "types": {"_frequent_dest": ["dest", "string"], "_low_speed": ["speed", "number"], "_m2_speed": ["speed", "number"], "_mean_speed": ["speed", "number"], "_n_arr_delay": ["arr_delay", "number"], "_n_speed": ["speed", "number"], "_sum_distance": ["distance", "integer"], "_sum_speed": ["speed", "number"]}, "window": {"grace": "0s", "size": "1d", "type": "tumbling"}}', 9, 315360000000);
INSERT INTO "analytics__flights"._aggregations (name, version, table_name, reader, shape, partition_days, retention_ms)
  VALUES ('by_route', 1, 'by_route_v1', 'live', '{"groupBy": [["origin", "string"], ["dest", "string"]], "partials": ["_count", "_n_dep_delay", "_sum_dep_delay", "_min_air_time", "_max_air_time"], "types": {"_max_air_time": ["air_time", "number"], "_min_air_time": ["air_time", "number"], "_n_dep_delay": ["dep_delay", "number"], "_sum_dep_delay": ["dep_delay", "number"]}, "window": {"grace": "0s", "hop": "1h", "size": "6h", "type": "hopping"}}', 9, 315360000000);
INSERT INTO "analytics__flights"._aggregations (name, version, table_name, reader, shape, partition_days, retention_ms)
  VALUES ('overall', 1, 'overall_v1', 'live', '{"groupBy": [], "partials": ["_count", "_n_dep_delay", "_sum_dep_delay", "_sum_air_time", "_min_ts", "_max_ts"], "types": {"_max_ts": ["ts", "timestamp"], "_min_ts": ["ts", "timestamp"], "_n_dep_delay": ["dep_delay", "number"], "_sum_air_time": ["air_time", "number"], "_sum_dep_delay": ["dep_delay", "number"]}, "window": {"grace": "0s", "size": "1d", "type": "tumbling"}}', 9, 315360000000);
RESET ROLE;
