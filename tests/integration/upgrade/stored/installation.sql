CREATE ROLE "stored__orders_owner" NOLOGIN;
COMMENT ON ROLE "stored__orders_owner" IS '{"tidemill": {"cluster": "local", "database": "@database@", "name": "orders", "namespace": "stored", "uid": "uid-1"}}';
CREATE ROLE "stored__orders_reader" NOLOGIN;
COMMENT ON ROLE "stored__orders_reader" IS '{"tidemill": {"cluster": "local", "database": "@database@", "name": "orders", "namespace": "stored", "uid": "uid-1"}}';
CREATE ROLE "stored__orders_reader_a" LOGIN;
COMMENT ON ROLE "stored__orders_reader_a" IS '{"tidemill": {"cluster": "local", "database": "@database@", "name": "orders", "namespace": "stored", "uid": "uid-1"}}';
CREATE ROLE "stored__orders_writer" NOLOGIN;
COMMENT ON ROLE "stored__orders_writer" IS '{"tidemill": {"cluster": "local", "database": "@database@", "name": "orders", "namespace": "stored", "uid": "uid-1"}}';
CREATE ROLE "stored__orders_writer_a" LOGIN;
COMMENT ON ROLE "stored__orders_writer_a" IS '{"tidemill": {"cluster": "local", "database": "@database@", "name": "orders", "namespace": "stored", "uid": "uid-1"}}';
-- then
SELECT pg_catalog.set_config('search_path', '', false);

CREATE SCHEMA stored__orders;
ALTER SCHEMA stored__orders OWNER TO stored__orders_owner;
COMMENT ON SCHEMA stored__orders IS '{"tidemill": {"cluster": "local", "name": "orders", "namespace": "stored", "uid": "uid-1"}}';
CREATE FUNCTION stored__orders.ensure_partition(table_name text, day integer, days integer) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "DateStyle" TO 'ISO'
    SET "TimeZone" TO 'UTC'
    AS $$
DECLARE
  parent oid;
  first_day date := date '1970-01-01' + day;
  end_day date := first_day + days;
  prefix text := left(table_name, 40) || '_p';
  suffix text := CASE WHEN length(table_name) > 40 THEN '_' || left(md5(table_name), 8) ELSE '' END;
  lows date[];
  highs date[];
  part text;
  made boolean := false;
BEGIN
  SELECT c.oid INTO parent FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE n.nspname = 'stored__orders' AND c.relname = table_name AND c.relkind = 'p';
  IF parent IS NULL THEN
    RAISE EXCEPTION 'no partitioned table % here', table_name USING ERRCODE = 'undefined_table';
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext(parent::text), -1);
  -- Mostly it is there just so, and a look at all of them takes long.
  IF EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
              WHERE i.inhparent = parent
                AND c.oid = to_regclass(format('"stored__orders".%I', prefix || to_char(first_day, 'YYYYMMDD') || suffix))
                AND split_part(pg_get_expr(c.relpartbound, c.oid), '''', 4)::date >= end_day) THEN
    RETURN false;
  END IF;
  -- FOR VALUES FROM ('…') TO ('…')
  SELECT array_agg(split_part(bound, '''', 2)::date), array_agg(split_part(bound, '''', 4)::date) INTO lows, highs
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) bound
   WHERE i.inhparent = parent;
  FOR first_day, end_day IN
    SELECT min(d), max(d) + 1 FROM (
      SELECT d, d - row_number() OVER (ORDER BY d)::integer AS run
        FROM generate_series(0, days - 1) n, LATERAL (SELECT date '1970-01-01' + day + n AS d) wanted
       WHERE NOT EXISTS (SELECT FROM unnest(lows, highs) held(low, high) WHERE d >= low AND d < high)) missing
    GROUP BY run ORDER BY 1
  LOOP
    part := prefix || to_char(first_day, 'YYYYMMDD') || suffix;
    EXECUTE format('CREATE TABLE IF NOT EXISTS "stored__orders".%I (LIKE "stored__orders".%I INCLUDING DEFAULTS INCLUDING STORAGE)'
                   ' WITH (fillfactor = 80)', part, table_name);
    EXECUTE format('ALTER TABLE "stored__orders".%I ATTACH PARTITION "stored__orders".%I FOR VALUES FROM (%L) TO (%L)',
                   table_name, part, first_day::text || ' 00:00:00+00', end_day::text || ' 00:00:00+00');
    made := true;
  END LOOP;
  RETURN made;
END $$;
ALTER FUNCTION stored__orders.ensure_partition(table_name text, day integer, days integer) OWNER TO stored__orders_owner;
CREATE TABLE stored__orders._aggregations (
    id integer NOT NULL,
    name text NOT NULL,
    version integer NOT NULL,
    table_name text NOT NULL,
    reader text NOT NULL,
    shape jsonb NOT NULL,
    partition_days integer NOT NULL,
    retention_ms bigint NOT NULL,
    closed_until bigint,
    rev bigint DEFAULT 0 NOT NULL,
    scanned_until bigint,
    published_until bigint,
    late_dead bigint DEFAULT 0 NOT NULL,
    late_dropped bigint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    layout bigint DEFAULT 0 NOT NULL,
    fed jsonb DEFAULT '{}'::jsonb NOT NULL
)
WITH (fillfactor='50');
ALTER TABLE stored__orders._aggregations OWNER TO stored__orders_owner;
ALTER TABLE stored__orders._aggregations ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME stored__orders._aggregations_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE stored__orders._anomalies (
    id bigint NOT NULL,
    anomaly text NOT NULL,
    aggregation text NOT NULL,
    version integer NOT NULL,
    metric text NOT NULL,
    group_key jsonb NOT NULL,
    window_start timestamp with time zone NOT NULL,
    window_end timestamp with time zone NOT NULL,
    value double precision NOT NULL,
    score double precision NOT NULL,
    expected double precision,
    lower double precision,
    upper double precision,
    severity text DEFAULT 'warning'::text NOT NULL,
    revision integer DEFAULT 0 NOT NULL,
    detected_at timestamp with time zone DEFAULT now() NOT NULL,
    published boolean DEFAULT false NOT NULL,
    epoch integer,
    partition integer,
    "offset" bigint
);
ALTER TABLE stored__orders._anomalies OWNER TO stored__orders_owner;
ALTER TABLE stored__orders._anomalies ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME stored__orders._anomalies_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE stored__orders._corrections (
    aggregation_id integer NOT NULL,
    rev bigint NOT NULL,
    first_start bigint NOT NULL,
    last_start bigint NOT NULL,
    published boolean NOT NULL,
    scanned boolean NOT NULL
);
ALTER TABLE stored__orders._corrections OWNER TO stored__orders_owner;
CREATE TABLE stored__orders._dead_letters (
    epoch integer NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    aggregation text DEFAULT ''::text NOT NULL,
    reason text NOT NULL,
    field text,
    detail text,
    key bytea,
    value bytea,
    value_bytes bigint,
    event_time bigint,
    windows bigint[],
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    published boolean DEFAULT false NOT NULL
);
ALTER TABLE stored__orders._dead_letters OWNER TO stored__orders_owner;
CREATE TABLE stored__orders._detector_history (
    anomaly text NOT NULL,
    aggregation_id integer NOT NULL,
    group_key text NOT NULL,
    window_start bigint NOT NULL,
    state jsonb NOT NULL
);
ALTER TABLE stored__orders._detector_history OWNER TO stored__orders_owner;
CREATE TABLE stored__orders._detectors (
    anomaly text NOT NULL,
    aggregation_id integer NOT NULL,
    group_key text NOT NULL,
    state jsonb NOT NULL,
    seen bigint[]
)
WITH (fillfactor='70');
ALTER TABLE stored__orders._detectors OWNER TO stored__orders_owner;
CREATE TABLE stored__orders._events (
    event_time timestamp with time zone NOT NULL,
    epoch integer NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    data jsonb NOT NULL
)
PARTITION BY RANGE (event_time);
ALTER TABLE stored__orders._events OWNER TO stored__orders_owner;
CREATE TABLE stored__orders._events_p20231113 (
    event_time timestamp with time zone NOT NULL,
    epoch integer NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    data jsonb NOT NULL
)
WITH (fillfactor='80');
ALTER TABLE stored__orders._events_p20231113 OWNER TO stored__orders_owner;
CREATE TABLE stored__orders._generation (
    "only" boolean DEFAULT true NOT NULL,
    generation bigint NOT NULL,
    accepted jsonb,
    CONSTRAINT _generation_only_check CHECK ("only")
);
ALTER TABLE stored__orders._generation OWNER TO stored__orders_owner;
CREATE TABLE stored__orders._lost (
    reader text NOT NULL,
    partition integer NOT NULL,
    epoch integer NOT NULL,
    from_offset bigint NOT NULL,
    to_offset bigint,
    reason text NOT NULL,
    noticed_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE stored__orders._lost OWNER TO stored__orders_owner;
CREATE TABLE stored__orders._offsets (
    reader text NOT NULL,
    partition integer NOT NULL,
    topic_id text,
    epoch integer DEFAULT 0 NOT NULL,
    next_offset bigint,
    max_event_time bigint,
    suspects bigint[] DEFAULT '{}'::bigint[] NOT NULL,
    last_event_at timestamp with time zone,
    end_confirmed_at timestamp with time zone,
    freshness_ms bigint,
    consumed bigint DEFAULT 0 NOT NULL,
    filtered bigint DEFAULT 0 NOT NULL,
    invalid bigint DEFAULT 0 NOT NULL,
    feeds integer[] DEFAULT '{}'::integer[] NOT NULL
)
WITH (fillfactor='50');
ALTER TABLE stored__orders._offsets OWNER TO stored__orders_owner;
COMMENT ON TABLE stored__orders._offsets IS 'positions in stored.orders.events';
CREATE TABLE stored__orders._readers (
    reader text NOT NULL,
    watermark bigint,
    candidate bigint,
    candidate_at timestamp with time zone,
    active_since timestamp with time zone,
    idle_since timestamp with time zone,
    idle_base bigint,
    switched_at timestamp with time zone
)
WITH (fillfactor='50');
ALTER TABLE stored__orders._readers OWNER TO stored__orders_owner;
CREATE TABLE stored__orders.again_v1 (
    paid boolean,
    window_start timestamp with time zone NOT NULL,
    _rev bigint NOT NULL,
    _since bigint DEFAULT 0 NOT NULL,
    _count bigint,
    _max_price double precision,
    _last_at_home double precision,
    _last_at_at_home bigint[],
    _frequent_shop bytea,
    _n_price bigint,
    _mean_price double precision,
    _m2_price double precision,
    _revision bigint
)
PARTITION BY RANGE (window_start);
ALTER TABLE stored__orders.again_v1 OWNER TO stored__orders_owner;
CREATE TABLE stored__orders.again_v1_p20231113 (
    paid boolean,
    window_start timestamp with time zone NOT NULL,
    _rev bigint NOT NULL,
    _since bigint DEFAULT 0 NOT NULL,
    _count bigint,
    _max_price double precision,
    _last_at_home double precision,
    _last_at_at_home bigint[],
    _frequent_shop bytea,
    _n_price bigint,
    _mean_price double precision,
    _m2_price double precision,
    _revision bigint
)
WITH (fillfactor='80');
ALTER TABLE stored__orders.again_v1_p20231113 OWNER TO stored__orders_owner;
CREATE TABLE stored__orders.by_shop_v1 (
    shop text COLLATE pg_catalog."C",
    window_start timestamp with time zone NOT NULL,
    _rev bigint NOT NULL,
    _since bigint DEFAULT 0 NOT NULL,
    _count bigint,
    _n_price bigint,
    _sum_amount numeric,
    _sum_gross double precision,
    _sum_price double precision,
    _min_price double precision,
    _max_sent timestamp with time zone,
    _first_home double precision,
    _first_at_home bigint[],
    _last_amount bigint,
    _last_at_amount bigint[],
    _mean_price double precision,
    _m2_price double precision,
    _n_amount bigint,
    _mean_amount double precision,
    _m2_amount double precision,
    _quantiles_price bytea,
    _uniques_amount bytea,
    _frequent_amount bytea,
    _first_paid boolean,
    _first_at_paid bigint[]
)
PARTITION BY RANGE (window_start);
ALTER TABLE stored__orders.by_shop_v1 OWNER TO stored__orders_owner;
CREATE TABLE stored__orders.by_shop_v1_p20231113 (
    shop text COLLATE pg_catalog."C",
    window_start timestamp with time zone NOT NULL,
    _rev bigint NOT NULL,
    _since bigint DEFAULT 0 NOT NULL,
    _count bigint,
    _n_price bigint,
    _sum_amount numeric,
    _sum_gross double precision,
    _sum_price double precision,
    _min_price double precision,
    _max_sent timestamp with time zone,
    _first_home double precision,
    _first_at_home bigint[],
    _last_amount bigint,
    _last_at_amount bigint[],
    _mean_price double precision,
    _m2_price double precision,
    _n_amount bigint,
    _mean_amount double precision,
    _m2_amount double precision,
    _quantiles_price bytea,
    _uniques_amount bytea,
    _frequent_amount bytea,
    _first_paid boolean,
    _first_at_paid bigint[]
)
WITH (fillfactor='80');
ALTER TABLE stored__orders.by_shop_v1_p20231113 OWNER TO stored__orders_owner;
CREATE TABLE stored__orders.clash_order_v1 (
    window_start timestamp with time zone NOT NULL,
    _rev bigint NOT NULL,
    _since bigint DEFAULT 0 NOT NULL,
    _count bigint,
    _last_home double precision,
    _last_at_home bigint[],
    _last_at_at_home bigint[]
)
PARTITION BY RANGE (window_start);
ALTER TABLE stored__orders.clash_order_v1 OWNER TO stored__orders_owner;
CREATE TABLE stored__orders.clash_order_v1_p20231113 (
    window_start timestamp with time zone NOT NULL,
    _rev bigint NOT NULL,
    _since bigint DEFAULT 0 NOT NULL,
    _count bigint,
    _last_home double precision,
    _last_at_home bigint[],
    _last_at_at_home bigint[]
)
WITH (fillfactor='80');
ALTER TABLE stored__orders.clash_order_v1_p20231113 OWNER TO stored__orders_owner;
CREATE TABLE stored__orders.clash_value_v1 (
    window_start timestamp with time zone NOT NULL,
    _rev bigint NOT NULL,
    _since bigint DEFAULT 0 NOT NULL,
    _count bigint,
    _last_at_home double precision,
    _last_at_at_home bigint[],
    _last_home double precision
)
PARTITION BY RANGE (window_start);
ALTER TABLE stored__orders.clash_value_v1 OWNER TO stored__orders_owner;
CREATE TABLE stored__orders.clash_value_v1_p20231113 (
    window_start timestamp with time zone NOT NULL,
    _rev bigint NOT NULL,
    _since bigint DEFAULT 0 NOT NULL,
    _count bigint,
    _last_at_home double precision,
    _last_at_at_home bigint[],
    _last_home double precision
)
WITH (fillfactor='80');
ALTER TABLE stored__orders.clash_value_v1_p20231113 OWNER TO stored__orders_owner;
CREATE TABLE stored__orders.hops_v1 (
    paid boolean,
    window_start timestamp with time zone NOT NULL,
    _after timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    _rev bigint NOT NULL,
    _since bigint DEFAULT 0 NOT NULL,
    _count bigint,
    _n_price bigint,
    _sum_amount numeric,
    _sum_gross double precision,
    _sum_price double precision,
    _min_price double precision,
    _max_sent timestamp with time zone,
    _first_home double precision,
    _first_at_home bigint[],
    _last_amount bigint,
    _last_at_amount bigint[],
    _mean_price double precision,
    _m2_price double precision,
    _n_amount bigint,
    _mean_amount double precision,
    _m2_amount double precision,
    _quantiles_price bytea,
    _uniques_amount bytea,
    _frequent_amount bytea,
    _first_paid boolean,
    _first_at_paid bigint[]
)
PARTITION BY RANGE (window_start);
ALTER TABLE stored__orders.hops_v1 OWNER TO stored__orders_owner;
CREATE TABLE stored__orders.hops_v1_p20231113 (
    paid boolean,
    window_start timestamp with time zone NOT NULL,
    _after timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    _rev bigint NOT NULL,
    _since bigint DEFAULT 0 NOT NULL,
    _count bigint,
    _n_price bigint,
    _sum_amount numeric,
    _sum_gross double precision,
    _sum_price double precision,
    _min_price double precision,
    _max_sent timestamp with time zone,
    _first_home double precision,
    _first_at_home bigint[],
    _last_amount bigint,
    _last_at_amount bigint[],
    _mean_price double precision,
    _m2_price double precision,
    _n_amount bigint,
    _mean_amount double precision,
    _m2_amount double precision,
    _quantiles_price bytea,
    _uniques_amount bytea,
    _frequent_amount bytea,
    _first_paid boolean,
    _first_at_paid bigint[]
)
WITH (fillfactor='80');
ALTER TABLE stored__orders.hops_v1_p20231113 OWNER TO stored__orders_owner;
CREATE TABLE stored__orders.visits_v1 (
    shop text COLLATE pg_catalog."C",
    window_start timestamp with time zone NOT NULL,
    window_end timestamp with time zone NOT NULL,
    _rev bigint NOT NULL,
    _since bigint DEFAULT 0 NOT NULL,
    _count bigint,
    _sum_amount numeric,
    _first_at_home double precision,
    _first_at_at_home bigint[],
    _uniques_price bytea
)
PARTITION BY RANGE (window_start);
ALTER TABLE stored__orders.visits_v1 OWNER TO stored__orders_owner;
CREATE TABLE stored__orders.visits_v1_p20231113 (
    shop text COLLATE pg_catalog."C",
    window_start timestamp with time zone NOT NULL,
    window_end timestamp with time zone NOT NULL,
    _rev bigint NOT NULL,
    _since bigint DEFAULT 0 NOT NULL,
    _count bigint,
    _sum_amount numeric,
    _first_at_home double precision,
    _first_at_at_home bigint[],
    _uniques_price bytea
)
WITH (fillfactor='80');
ALTER TABLE stored__orders.visits_v1_p20231113 OWNER TO stored__orders_owner;
ALTER TABLE ONLY stored__orders._events ATTACH PARTITION stored__orders._events_p20231113 FOR VALUES FROM ('2023-11-13 00:00:00+00') TO ('2023-11-22 00:00:00+00');
ALTER TABLE ONLY stored__orders.again_v1 ATTACH PARTITION stored__orders.again_v1_p20231113 FOR VALUES FROM ('2023-11-13 00:00:00+00') TO ('2023-11-22 00:00:00+00');
ALTER TABLE ONLY stored__orders.by_shop_v1 ATTACH PARTITION stored__orders.by_shop_v1_p20231113 FOR VALUES FROM ('2023-11-13 00:00:00+00') TO ('2023-11-22 00:00:00+00');
ALTER TABLE ONLY stored__orders.clash_order_v1 ATTACH PARTITION stored__orders.clash_order_v1_p20231113 FOR VALUES FROM ('2023-11-13 00:00:00+00') TO ('2023-11-22 00:00:00+00');
ALTER TABLE ONLY stored__orders.clash_value_v1 ATTACH PARTITION stored__orders.clash_value_v1_p20231113 FOR VALUES FROM ('2023-11-13 00:00:00+00') TO ('2023-11-22 00:00:00+00');
ALTER TABLE ONLY stored__orders.hops_v1 ATTACH PARTITION stored__orders.hops_v1_p20231113 FOR VALUES FROM ('2023-11-13 00:00:00+00') TO ('2023-11-22 00:00:00+00');
ALTER TABLE ONLY stored__orders.visits_v1 ATTACH PARTITION stored__orders.visits_v1_p20231113 FOR VALUES FROM ('2023-11-13 00:00:00+00') TO ('2023-11-22 00:00:00+00');
INSERT INTO stored__orders._aggregations OVERRIDING SYSTEM VALUE VALUES (4, 'again', 1, 'again_v1', 'live', '{"window": {"size": "30m", "type": "tumbling", "grace": "0s"}, "groupBy": [["paid", "boolean"]], "partials": ["_count", "_max_price", "_last_at_home", "_last_at_at_home", "_frequent_shop", "_n_price", "_mean_price", "_m2_price", "_revision"]}', 9, 315360000000, 1699995600000, 1, 1699995600000, 1699995600000, 0, 0, '2026-11-28 17:44:55.923453+00', 0, '{}');
INSERT INTO stored__orders._aggregations OVERRIDING SYSTEM VALUE VALUES (1, 'by_shop', 1, 'by_shop_v1', 'live', '{"window": {"size": "1h", "type": "tumbling", "grace": "0s"}, "groupBy": [["shop", "string"]], "partials": ["_count", "_n_price", "_sum_amount", "_sum_gross", "_sum_price", "_min_price", "_max_sent", "_first_home", "_first_at_home", "_last_amount", "_last_at_amount", "_mean_price", "_m2_price", "_n_amount", "_mean_amount", "_m2_amount", "_quantiles_price", "_uniques_amount", "_frequent_amount", "_first_paid", "_first_at_paid"]}', 9, 315360000000, 1699995600000, 1, 1699995600000, 1699995600000, 0, 0, '2026-11-28 17:44:55.923453+00', 0, '{}');
INSERT INTO stored__orders._aggregations OVERRIDING SYSTEM VALUE VALUES (2, 'hops', 1, 'hops_v1', 'live', '{"window": {"hop": "1h", "size": "3h", "type": "hopping", "grace": "0s"}, "groupBy": [["paid", "boolean"]], "partials": ["_count", "_n_price", "_sum_amount", "_sum_gross", "_sum_price", "_min_price", "_max_sent", "_first_home", "_first_at_home", "_last_amount", "_last_at_amount", "_mean_price", "_m2_price", "_n_amount", "_mean_amount", "_m2_amount", "_quantiles_price", "_uniques_amount", "_frequent_amount", "_first_paid", "_first_at_paid"]}', 9, 315360000000, 1699995600000, 1, NULL, 1699995600000, 0, 0, '2026-11-28 17:44:55.923453+00', 0, '{}');
INSERT INTO stored__orders._aggregations OVERRIDING SYSTEM VALUE VALUES (3, 'visits', 1, 'visits_v1', 'live', '{"window": {"gap": "10m", "type": "session", "grace": "0s"}, "groupBy": [["shop", "string"]], "partials": ["_count", "_sum_amount", "_first_at_home", "_first_at_at_home", "_uniques_price"]}', 9, 315360000000, 1699997100000, 1, NULL, 1699997100000, 0, 0, '2026-11-28 17:44:55.923453+00', 0, '{}');
INSERT INTO stored__orders._aggregations OVERRIDING SYSTEM VALUE VALUES (5, 'clash_value', 1, 'clash_value_v1', 'live', '{"window": {"size": "1h", "type": "tumbling", "grace": "0s"}, "groupBy": [], "partials": ["_count", "_last_at_home", "_last_at_at_home", "_last_home"]}', 9, 315360000000, 1699995600000, 1, NULL, 1699995600000, 0, 0, '2026-11-28 17:44:55.923453+00', 0, '{}');
INSERT INTO stored__orders._aggregations OVERRIDING SYSTEM VALUE VALUES (6, 'clash_order', 1, 'clash_order_v1', 'live', '{"window": {"size": "1h", "type": "tumbling", "grace": "0s"}, "groupBy": [], "partials": ["_count", "_last_home", "_last_at_home", "_last_at_at_home"]}', 9, 315360000000, 1699995600000, 1, NULL, 1699995600000, 0, 0, '2026-11-28 17:44:55.923453+00', 0, '{}');
INSERT INTO stored__orders._anomalies OVERRIDING SYSTEM VALUE VALUES (1, 'price_odd', '', 0, 'price', '{"shop": "a"}', '2023-11-14 19:42:47.999+00', '2023-11-14 19:42:47.999+00', 100, 13.469203775385623, 5.245, -51.034496, 61.52449599999999, 'warning', 0, '2026-11-28 17:45:02.115994+00', true, 0, 0, 6);
INSERT INTO stored__orders._anomalies OVERRIDING SYSTEM VALUE VALUES (2, 'price_odd', '', 0, 'price', '{"shop": "ü"}', '2023-11-14 20:31:15.511+00', '2023-11-14 20:31:15.511+00', 9.99, 6992000.000000001, 1.25, 1.24999, 1.25001, 'critical', 0, '2026-11-28 17:45:02.115994+00', true, 0, 0, 12);
INSERT INTO stored__orders._anomalies OVERRIDING SYSTEM VALUE VALUES (3, 'price_odd', '', 0, 'price', '{"shop": null}', '2023-11-14 21:34:58.841+00', '2023-11-14 21:34:58.841+00', 100, 24.651624516767722, 9.99, -19.220245333333338, 39.200245333333335, 'critical', 0, '2026-11-28 17:45:02.115994+00', true, 0, 0, 20);
INSERT INTO stored__orders._anomalies OVERRIDING SYSTEM VALUE VALUES (4, 'price_odd', '', 0, 'price', '{"shop": "b"}', '2023-11-14 22:25:00+00', '2023-11-14 22:25:00+00', 1.25, 1500000, 0.5, 0.499996, 0.500004, 'critical', 0, '2026-11-28 17:45:02.115994+00', true, 0, 0, 23);
INSERT INTO stored__orders._anomalies OVERRIDING SYSTEM VALUE VALUES (5, 'price_odd', '', 0, 'price', '{"shop": "b"}', '2023-11-14 20:00:22.519+00', '2023-11-14 20:00:22.519+00', 100, 9010010.010010011, 9.99, 9.989920080000001, 9.99007992, 'critical', 0, '2026-11-28 17:45:02.115994+00', true, 0, 1, 5);
INSERT INTO stored__orders._anomalies OVERRIDING SYSTEM VALUE VALUES (6, 'price_odd', '', 0, 'price', '{"shop": null}', '2023-11-14 21:40:13.882+00', '2023-11-14 21:40:13.882+00', 9.99, 18980000, 0.5, 0.499996, 0.500004, 'critical', 0, '2026-11-28 17:45:02.115994+00', true, 0, 1, 18);
INSERT INTO stored__orders._anomalies OVERRIDING SYSTEM VALUE VALUES (7, 'price_odd', '', 0, 'price', '{"shop": "a"}', '2023-11-14 22:09:04.475+00', '2023-11-14 22:09:04.475+00', 9.99, 27.894358892523737, 1.25, -1.2566000000000002, 3.7566, 'critical', 0, '2026-11-28 17:45:02.115994+00', true, 0, 1, 21);
INSERT INTO stored__orders._detector_history VALUES ('orders_odd', 4, '{"paid": true}', 1699986600000, '{}');
INSERT INTO stored__orders._detector_history VALUES ('orders_odd', 4, '{"paid": false}', 1699988400000, '{}');
INSERT INTO stored__orders._detector_history VALUES ('orders_odd', 4, '{"paid": true}', 1699988400000, '{"n": 1, "of": "auto", "slow": 2.0, "views": [[[1, 2.0, 0.0], [1, [0.000001]]], [[1, 2.0, 0.0], [1, [0.000001]]], [[], []], [[], []]], "rhythms": [{"sum": 2.0, "hour": 472218, "count": 1, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null]}, {"sum": 2.0, "hour": 472218, "count": 1, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null]}]}');
INSERT INTO stored__orders._detector_history VALUES ('orders_odd', 4, '{"paid": false}', 1699990200000, '{"n": 1, "of": "auto", "slow": 4.0, "views": [[[1, 4.0, 0.0], [1, [0.000001]]], [[1, 4.0, 0.0], [1, [0.000001]]], [[], []], [[], []]], "rhythms": [{"sum": 4.0, "hour": 472219, "count": 1, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null]}, {"sum": 4.0, "hour": 472219, "count": 1, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null]}]}');
INSERT INTO stored__orders._detector_history VALUES ('orders_odd', 4, '{"paid": true}', 1699990200000, '{"n": 2, "of": "auto", "slow": 1.5, "views": [[[2, 1.5, 0.25], [2, [0.000001, 0.000001]]], [[2, 1.75, 0.0625], [2, [0.000001, 0.000001]]], [[], []], [[], []]], "rhythms": [{"sum": 1.0, "hour": 472219, "count": 1, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, [1, 2.0], null, null, null, null, null]}, {"sum": 1.5, "hour": 472219, "count": 1, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, [1, 2.0], null, null, null, null, null]}]}');
INSERT INTO stored__orders._detector_history VALUES ('orders_odd', 4, '{"paid": false}', 1699992000000, '{"n": 2, "of": "auto", "slow": 4.5, "views": [[[2, 4.5, 0.25], [2, [0.000001, 0.000001]]], [[2, 4.25, 0.0625], [2, [0.000001, 0.000001]]], [[], []], [[], []]], "rhythms": [{"sum": 9.0, "hour": 472219, "count": 2, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null]}, {"sum": 8.5, "hour": 472219, "count": 2, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null]}]}');
INSERT INTO stored__orders._detector_history VALUES ('orders_odd', 4, '{"paid": true}', 1699992000000, '{"n": 3, "of": "auto", "slow": 2.333333333333333, "views": [[[3, 2.333333333333333, 1.5555555555555556], [3, [0.000001, 0.000001, 0.000001]]], [[3, 1.9444444444444444, 0.11728395061728389], [3, [0.000001, 0.000001, 0.000001]]], [[], []], [[], []]], "rhythms": [{"sum": 5.0, "hour": 472219, "count": 2, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, [1, 2.0], null, null, null, null, null]}, {"sum": 3.833333333333333, "hour": 472219, "count": 2, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, [1, 2.0], null, null, null, null, null]}]}');
INSERT INTO stored__orders._detector_history VALUES ('orders_odd', 4, '{"paid": false}', 1699993800000, '{"n": 3, "of": "auto", "slow": 5.666666666666666, "views": [[[3, 5.666666666666666, 2.888888888888889], [3, [0.000001, 0.000001, 0.000001]]], [[3, 4.722222222222222, 0.48765432098765393], [3, [0.000001, 0.000001, 0.000001]]], [[], []], [[], []]], "rhythms": [{"sum": 8.0, "hour": 472220, "count": 1, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, [1, 4.5], null, null, null, null]}, {"sum": 5.666666666666666, "hour": 472220, "count": 1, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, [1, 4.25], null, null, null, null]}]}');
INSERT INTO stored__orders._detector_history VALUES ('orders_odd', 4, '{"paid": true}', 1699993800000, '{"n": 4, "of": "auto", "slow": 2.25, "views": [[[4, 2.25, 1.1875], [4, [0.000001, 0.000001, 0.000001, 0.000001]]], [[4, 2.0208333333333335, 0.10546874999999996], [4, [0.000001, 0.000001, 0.000001, 0.000001]]], [[], []], [[], []]], "rhythms": [{"sum": 2.0, "hour": 472220, "count": 1, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, [1, 2.0], [1, 2.5], null, null, null, null]}, {"sum": 2.25, "hour": 472220, "count": 1, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, [1, 2.0], [1, 1.91666667], null, null, null, null]}]}');
INSERT INTO stored__orders._detectors VALUES ('price_odd', -1, '{"shop": "b"}', '{"n": 3, "of": "mad", "field": "price", "quiet": {"n": 3, "at": 1700000700000}, "recent": [0.5, 0.5, 1.25]}', '{0,23}');
INSERT INTO stored__orders._detectors VALUES ('price_odd', -1, '{"shop": "a"}', '{"n": 6, "of": "mad", "field": "price", "quiet": {"n": 3, "at": 1699990967999}, "recent": [0.5, 9.99, 100.0, 1.25, 0.5, 100.0]}', '{0,19}');
INSERT INTO stored__orders._detectors VALUES ('price_odd', -1, '{"shop": "\u00fc"}', '{"n": 4, "of": "mad", "field": "price", "quiet": {"n": 3, "at": 1699993875511}, "recent": [1.25, 1.25, 9.99, 9.99]}', '{0,15}');
INSERT INTO stored__orders._detectors VALUES ('price_odd', -1, '{"shop": null}', '{"n": 6, "of": "mad", "field": "price", "quiet": {"n": 4, "at": 1699997698841}, "recent": [9.99, 1.25, 9.99, 100.0, 100.0, 100.0]}', '{0,22}');
INSERT INTO stored__orders._detectors VALUES ('price_odd', -2, '{"shop": "a"}', '{"n": 4, "of": "mad", "field": "price", "quiet": {"n": 4, "at": 1699999744475}, "recent": [0.5, 1.25, 1.25, 9.99]}', '{0,21}');
INSERT INTO stored__orders._detectors VALUES ('price_odd', -2, '{"shop": "\u00fc"}', '{"n": 2, "of": "mad", "field": "price", "recent": [0.5, 9.99]}', '{0,12}');
INSERT INTO stored__orders._detectors VALUES ('price_odd', -2, '{"shop": "b"}', '{"n": 7, "of": "mad", "field": "price", "quiet": {"n": 3, "at": 1699992022519}, "recent": [9.99, 9.99, 100.0, 100.0, 0.5, 9.99, 1.25]}', '{0,22}');
INSERT INTO stored__orders._detectors VALUES ('price_odd', -2, '{"shop": null}', '{"n": 3, "of": "mad", "field": "price", "quiet": {"n": 3, "at": 1699998013882}, "recent": [0.5, 0.5, 9.99]}', '{0,18}');
INSERT INTO stored__orders._detectors VALUES ('units_odd', 1, '{"shop": "a"}', '{"n": 3, "of": "zscore", "moments": [3, 3.3333333333333335, 37.55555555555556]}', NULL);
INSERT INTO stored__orders._detectors VALUES ('units_odd', 1, '{"shop": "b"}', '{"n": 3, "of": "zscore", "moments": [3, -4.333333333333333, 46.22222222222222]}', NULL);
INSERT INTO stored__orders._detectors VALUES ('units_odd', 1, '{"shop": null}', '{"n": 2, "of": "zscore", "moments": [2, 5.0, 1.0]}', NULL);
INSERT INTO stored__orders._detectors VALUES ('units_odd', 1, '{"shop": "\u00fc"}', '{"n": 2, "of": "zscore", "moments": [2, 1649267441668.0, 302231454911353900000000]}', NULL);
INSERT INTO stored__orders._detectors VALUES ('orders_odd', 4, '{"paid": true}', '{"n": 5, "of": "auto", "slow": 2.2, "views": [[[5, 2.2, 0.96], [5, [0.000001, 0.000001, 0.000001, 0.000001, 0.000001]]], [[5, 2.0566666666666666, 0.08951111111111108], [5, [0.000001, 0.000001, 0.000001, 0.000001, 0.000001]]], [[], []], [[], []]], "rhythms": [{"sum": 4.0, "hour": 472220, "count": 2, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, [1, 2.0], [1, 2.5], null, null, null, null]}, {"sum": 4.45, "hour": 472220, "count": 2, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, [1, 2.0], [1, 1.91666667], null, null, null, null]}]}', NULL);
INSERT INTO stored__orders._detectors VALUES ('orders_odd', 4, '{"paid": false}', '{"n": 4, "of": "auto", "slow": 5.25, "views": [[[4, 5.25, 2.6875], [4, [0.000001, 0.000001, 0.000001, 0.000001]]], [[4, 4.854166666666667, 0.4179687499999997], [4, [0.000001, 0.000001, 0.000001, 0.000001]]], [[], []], [[], []]], "rhythms": [{"sum": 12.0, "hour": 472220, "count": 2, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, [1, 4.5], null, null, null, null]}, {"sum": 10.916666666666666, "hour": 472220, "count": 2, "usual": [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, [1, 4.25], null, null, null, null]}]}', NULL);
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 18:58:06.36+00', 0, 0, 0, '{"ts": 1699988286360, "home": 85.0, "paid": true, "sent": 1699988249360, "shop": "b", "price": 0.5, "amount": -7, "at_home": 18.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:18:10.179+00', 0, 0, 1, '{"ts": 1699989490179, "home": 10.0, "paid": false, "sent": 1699989474179, "shop": "a", "price": 0.5, "amount": 2, "at_home": 33.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:21:27.576+00', 0, 0, 2, '{"ts": 1699989687576, "home": 44.0, "paid": false, "sent": 1699989632576, "shop": "ü", "price": null, "amount": -7, "at_home": 76.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:18:09.877+00', 0, 0, 3, '{"ts": 1699989489877, "home": 58.0, "paid": false, "sent": 1699989467877, "shop": "ü", "price": 1.25, "amount": 2, "at_home": 33.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:37:36.96+00', 0, 0, 4, '{"ts": 1699990656960, "home": 49.0, "paid": false, "sent": 1699990640960, "shop": "a", "price": 9.99, "amount": 2, "at_home": 0.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:48:54.306+00', 0, 0, 5, '{"ts": 1699991334306, "home": 25.0, "paid": false, "sent": 1699991240306, "shop": "ü", "price": 1.25, "amount": 1099511627776, "at_home": 90.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:42:47.999+00', 0, 0, 6, '{"ts": 1699990967999, "home": 4.0, "paid": false, "sent": 1699990888999, "shop": "a", "price": 100.0, "amount": 3, "at_home": 45.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:40:50.01+00', 0, 0, 7, '{"ts": 1699990850010, "home": 82.0, "paid": true, "sent": 1699990796010, "shop": "a", "price": 1.25, "amount": 2, "at_home": 11.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:16:50.863+00', 0, 0, 8, '{"ts": 1699993010863, "home": 0.0, "paid": false, "sent": 1699992944863, "shop": "ü", "price": null, "amount": 1099511627776, "at_home": 40.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:27:02.926+00', 0, 0, 9, '{"ts": 1699993622926, "home": 33.0, "paid": true, "sent": 1699993531926, "shop": "b", "price": 0.5, "amount": -7, "at_home": 54.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:14:14.997+00', 0, 0, 10, '{"ts": 1699992854997, "home": 40.0, "paid": false, "sent": 1699992772997, "shop": "ü", "price": null, "amount": 2, "at_home": 50.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:21:18.716+00', 0, 0, 11, '{"ts": 1699993278716, "home": 42.0, "paid": false, "sent": 1699993221716, "shop": null, "price": 9.99, "amount": 3, "at_home": 7.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:31:15.511+00', 0, 0, 12, '{"ts": 1699993875511, "home": 37.0, "paid": false, "sent": 1699993836511, "shop": "ü", "price": 9.99, "amount": 3, "at_home": 4.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:27:02.768+00', 0, 0, 13, '{"ts": 1699993622768, "home": 41.0, "paid": true, "sent": 1699993578768, "shop": "ü", "price": null, "amount": 1, "at_home": 21.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:50:27.579+00', 0, 0, 14, '{"ts": 1699995027579, "home": 85.0, "paid": false, "sent": 1699995000579, "shop": "a", "price": 0.5, "amount": -7, "at_home": 30.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:49:35.297+00', 0, 0, 15, '{"ts": 1699994975297, "home": 38.0, "paid": false, "sent": 1699994907297, "shop": "ü", "price": 9.99, "amount": 3, "at_home": 19.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:55:29.437+00', 0, 0, 16, '{"ts": 1699995329437, "home": 42.0, "paid": false, "sent": 1699995262437, "shop": "ü", "price": null, "amount": 1099511627776, "at_home": 80.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 21:24:21.874+00', 0, 0, 17, '{"ts": 1699997061874, "home": 19.0, "paid": false, "sent": 1699997012874, "shop": null, "price": 1.25, "amount": 2, "at_home": 19.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 21:21:17.258+00', 0, 0, 18, '{"ts": 1699996877258, "home": 52.0, "paid": true, "sent": 1699996830258, "shop": null, "price": 9.99, "amount": 1, "at_home": 33.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 21:14:01.872+00', 0, 0, 19, '{"ts": 1699996441872, "home": 22.0, "paid": true, "sent": 1699996368872, "shop": "a", "price": 100.0, "amount": 2, "at_home": 16.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 21:34:58.841+00', 0, 0, 20, '{"ts": 1699997698841, "home": 2.0, "paid": true, "sent": 1699997608841, "shop": null, "price": 100.0, "amount": null, "at_home": 99.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 21:45:59.657+00', 0, 0, 21, '{"ts": 1699998359657, "home": 12.0, "paid": false, "sent": 1699998331657, "shop": null, "price": 100.0, "amount": null, "at_home": 31.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 21:39:33.182+00', 0, 0, 22, '{"ts": 1699997973182, "home": 94.0, "paid": true, "sent": 1699997906182, "shop": null, "price": 100.0, "amount": 1, "at_home": 1.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 22:25:00+00', 0, 0, 23, '{"ts": 1700000700000, "home": 17.0, "paid": false, "sent": 1700000653000, "shop": "b", "price": 1.25, "amount": 2, "at_home": 87.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 18:57:05.904+00', 0, 1, 0, '{"ts": 1699988225904, "home": 95.0, "paid": true, "sent": 1699988209904, "shop": "a", "price": 0.5, "amount": 3, "at_home": 37.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:22:31.925+00', 0, 1, 1, '{"ts": 1699989751925, "home": 62.0, "paid": false, "sent": 1699989734925, "shop": "ü", "price": 0.5, "amount": 2, "at_home": 96.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:31:20.631+00', 0, 1, 2, '{"ts": 1699990280631, "home": 68.0, "paid": false, "sent": 1699990210631, "shop": "b", "price": 9.99, "amount": 2, "at_home": 22.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:35:39.926+00', 0, 1, 3, '{"ts": 1699990539926, "home": 72.0, "paid": true, "sent": 1699990523926, "shop": null, "price": 0.5, "amount": 3, "at_home": 30.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:19:01.229+00', 0, 1, 4, '{"ts": 1699989541229, "home": 81.0, "paid": true, "sent": 1699989513229, "shop": "b", "price": 9.99, "amount": 2, "at_home": 32.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:00:22.519+00', 0, 1, 5, '{"ts": 1699992022519, "home": 30.0, "paid": false, "sent": 1699991931519, "shop": "b", "price": 100.0, "amount": -7, "at_home": 92.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:44:43.996+00', 0, 1, 6, '{"ts": 1699991083996, "home": 14.0, "paid": true, "sent": 1699991046996, "shop": "b", "price": 100.0, "amount": 1, "at_home": 28.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:48:50.514+00', 0, 1, 7, '{"ts": 1699991330514, "home": 34.0, "paid": true, "sent": 1699991291514, "shop": "a", "price": 1.25, "amount": 2, "at_home": 72.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 19:58:50.383+00', 0, 1, 8, '{"ts": 1699991930383, "home": 37.0, "paid": false, "sent": 1699991867383, "shop": null, "price": 0.5, "amount": 1, "at_home": 4.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:14:04.426+00', 0, 1, 9, '{"ts": 1699992844426, "home": 75.0, "paid": false, "sent": 1699992790426, "shop": "b", "price": 0.5, "amount": 2, "at_home": 36.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:10:03.885+00', 0, 1, 10, '{"ts": 1699992603885, "home": 83.0, "paid": false, "sent": 1699992595885, "shop": "a", "price": null, "amount": 3, "at_home": 99.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:48:54.832+00', 0, 1, 11, '{"ts": 1699994934832, "home": 14.0, "paid": true, "sent": 1699994879832, "shop": "b", "price": null, "amount": 1, "at_home": 47.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:28:58.019+00', 0, 1, 12, '{"ts": 1699993738019, "home": 74.0, "paid": false, "sent": 1699993726019, "shop": "ü", "price": 9.99, "amount": 2, "at_home": 74.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:28:20.715+00', 0, 1, 13, '{"ts": 1699993700715, "home": 47.0, "paid": false, "sent": 1699993669715, "shop": "b", "price": 9.99, "amount": null, "at_home": 9.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 20:49:38.094+00', 0, 1, 14, '{"ts": 1699994978094, "home": 70.0, "paid": true, "sent": 1699994905094, "shop": null, "price": null, "amount": 3, "at_home": 6.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 21:02:13.743+00', 0, 1, 15, '{"ts": 1699995733743, "home": 21.0, "paid": true, "sent": 1699995722743, "shop": "ü", "price": null, "amount": null, "at_home": 93.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 21:03:13.35+00', 0, 1, 16, '{"ts": 1699995793350, "home": 14.0, "paid": false, "sent": 1699995714350, "shop": "ü", "price": null, "amount": 1099511627776, "at_home": 12.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 21:21:02.165+00', 0, 1, 17, '{"ts": 1699996862165, "home": 35.0, "paid": true, "sent": 1699996862165, "shop": "a", "price": 1.25, "amount": 3, "at_home": 42.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 21:40:13.882+00', 0, 1, 18, '{"ts": 1699998013882, "home": 91.0, "paid": true, "sent": 1699997939882, "shop": null, "price": 9.99, "amount": 1, "at_home": 60.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 21:16:23.099+00', 0, 1, 19, '{"ts": 1699996583099, "home": 63.0, "paid": true, "sent": 1699996508099, "shop": "b", "price": null, "amount": 2, "at_home": 73.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 21:44:50.557+00', 0, 1, 20, '{"ts": 1699998290557, "home": 93.0, "paid": false, "sent": 1699998211557, "shop": "b", "price": null, "amount": -7, "at_home": 64.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 22:09:04.475+00', 0, 1, 21, '{"ts": 1699999744475, "home": 97.0, "paid": true, "sent": 1699999680475, "shop": "a", "price": 9.99, "amount": 3, "at_home": 43.0}');
INSERT INTO stored__orders._events_p20231113 VALUES ('2023-11-14 22:25:00.001+00', 0, 1, 22, '{"ts": 1700000700001, "home": 75.0, "paid": false, "sent": 1700000608001, "shop": "b", "price": 1.25, "amount": -7, "at_home": 11.0}');
INSERT INTO stored__orders._generation VALUES (true, 3, '{"api": {"cacheTtl": "0s"}, "auth": {"required": false}, "events": {"store": true, "retention": "3650d"}, "source": {"topic": {"partitions": 2}, "fields": [{"name": "ts", "type": "timestamp", "required": true}, {"name": "shop", "type": "string"}, {"name": "amount", "type": "integer"}, {"name": "price", "type": "number"}, {"name": "home", "type": "number"}, {"name": "at_home", "type": "number"}, {"name": "paid", "type": "boolean"}, {"name": "sent", "type": "timestamp"}], "eventTime": {"field": "ts", "idleTimeout": "1h", "maxDisorder": "1h"}}, "anomalies": [{"name": "units_odd", "metric": "units", "detector": {"type": "zscore", "warmup": 2}, "aggregation": "by_shop"}, {"name": "orders_odd", "metric": "orders", "detector": {"type": "auto", "warmup": 2}, "aggregation": "again"}, {"name": "price_odd", "field": "price", "groupBy": ["shop"], "detector": {"type": "mad", "warmup": 2}}], "processor": {"flushInterval": "100ms"}, "transform": {"derive": [{"name": "gross", "expression": "price * 2"}]}, "aggregations": [{"name": "by_shop", "window": {"size": "1h", "type": "tumbling"}, "groupBy": ["shop"], "metrics": [{"name": "orders", "function": "count"}, {"name": "priced", "field": "price", "function": "count"}, {"name": "units", "field": "amount", "function": "sum"}, {"name": "sales", "field": "gross", "function": "sum"}, {"name": "mean_price", "field": "price", "function": "avg"}, {"name": "least", "field": "price", "function": "min"}, {"name": "latest_sent", "field": "sent", "function": "max"}, {"name": "opening", "field": "home", "function": "first"}, {"name": "closing", "field": "amount", "function": "last"}, {"name": "spread", "field": "price", "function": "variance"}, {"name": "deviation", "field": "amount", "function": "stddev"}, {"q": 0.5, "name": "median", "field": "price", "function": "quantile"}, {"name": "prices", "field": "amount", "function": "distinct"}, {"k": 5, "name": "often", "field": "amount", "function": "topk"}, {"name": "paid_first", "field": "paid", "function": "first"}], "retention": "3650d"}, {"name": "hops", "window": {"hop": "1h", "size": "3h", "type": "hopping"}, "groupBy": ["paid"], "metrics": [{"name": "orders", "function": "count"}, {"name": "priced", "field": "price", "function": "count"}, {"name": "units", "field": "amount", "function": "sum"}, {"name": "sales", "field": "gross", "function": "sum"}, {"name": "mean_price", "field": "price", "function": "avg"}, {"name": "least", "field": "price", "function": "min"}, {"name": "latest_sent", "field": "sent", "function": "max"}, {"name": "opening", "field": "home", "function": "first"}, {"name": "closing", "field": "amount", "function": "last"}, {"name": "spread", "field": "price", "function": "variance"}, {"name": "deviation", "field": "amount", "function": "stddev"}, {"q": 0.5, "name": "median", "field": "price", "function": "quantile"}, {"name": "prices", "field": "amount", "function": "distinct"}, {"k": 5, "name": "often", "field": "amount", "function": "topk"}, {"name": "paid_first", "field": "paid", "function": "first"}], "retention": "3650d"}, {"name": "visits", "window": {"gap": "10m", "type": "session"}, "groupBy": ["shop"], "metrics": [{"name": "orders", "function": "count"}, {"name": "units", "field": "amount", "function": "sum"}, {"name": "at_first", "field": "at_home", "function": "first"}, {"name": "shops", "field": "price", "function": "distinct"}], "retention": "3650d"}, {"name": "again", "window": {"size": "30m", "type": "tumbling"}, "groupBy": ["paid"], "metrics": [{"name": "orders", "function": "count"}, {"name": "top", "field": "price", "function": "max"}, {"name": "at_last", "field": "at_home", "function": "last"}, {"name": "often", "field": "shop", "function": "topk"}, {"name": "spread", "field": "price", "function": "variance"}], "retention": "3650d", "latePolicy": "reopen"}, {"name": "clash_value", "window": {"size": "1h", "type": "tumbling"}, "metrics": [{"name": "at_last", "field": "at_home", "function": "last"}, {"name": "at", "field": "home", "function": "last"}], "retention": "3650d"}, {"name": "clash_order", "window": {"size": "1h", "type": "tumbling"}, "metrics": [{"name": "at", "field": "home", "function": "last"}, {"name": "at_last", "field": "at_home", "function": "last"}], "retention": "3650d"}]}');
INSERT INTO stored__orders._offsets VALUES ('live', 0, 'N66HFnK3Rhy55fSOCuSI8g', 0, 24, 1700000700000, '{}', '2026-11-28 17:45:02.162743+00', '2026-11-28 17:45:02.577053+00', 1126, 24, 0, 0, '{}');
INSERT INTO stored__orders._offsets VALUES ('live', 1, 'N66HFnK3Rhy55fSOCuSI8g', 0, 23, 1700000700001, '{}', '2026-11-28 17:45:02.162788+00', '2026-11-28 17:45:02.577082+00', 1150, 23, 0, 0, '{}');
INSERT INTO stored__orders._readers VALUES ('live', 1699997100000, NULL, NULL, '2026-11-28 17:45:02.163+00', NULL, NULL, NULL);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (false, '2023-11-14 19:00:00+00', 1, 0, 4, 1.25, 96, '{1699989751925,0,1,1}', '\x0000003b04010a09030000000200000000000000040000000000000000000000000000000300000000000000010000000000000002000000c3bc0100000061', 3, 0.75, 0.375, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (false, '2023-11-14 19:30:00+00', 1, 0, 5, 100, 4, '{1699991930383,0,1,8}', '\x0000004804010a090300000003000000000000000400000000000000000000000000000001000000000000000200000000000000010000000000000002000000c3bc01000000610100000062', 5, 24.346, 7237.77412, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (false, '2023-11-14 20:00:00+00', 1, 0, 8, 100, 74, '{1699993738019,0,1,12}', '\x0000004804010a090300000003000000000000000700000000000000000000000000000003000000000000000100000000000000030000000000000002000000c3bc01000000610100000062', 5, 26.094, 6895.166120000002, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (false, '2023-11-14 20:30:00+00', 1, 0, 4, 9.99, 80, '{1699995329437,0,0,16}', '\x0000003b04010a09030000000200000000000000040000000000000000000000000000000300000000000000010000000000000002000000c3bc0100000061', 3, 6.826666666666667, 60.04006666666666, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (false, '2023-11-14 21:00:00+00', 1, 0, 2, 1.25, 19, '{1699997061874,0,0,17}', '\x0000002e04010a0903000000010000000000000001000000000000000000000000000000010000000000000002000000c3bc', 1, 1.25, 0, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (false, '2023-11-14 21:30:00+00', 1, 0, 2, 100, 31, '{1699998359657,0,0,21}', '\x0000002d04010a090300000001000000000000000100000000000000000000000000000001000000000000000100000062', 1, 100, 0, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (false, '2023-11-14 22:00:00+00', 1, 0, 2, 1.25, 11, '{1700000700001,0,1,22}', '\x0000002d04010a090300000001000000000000000200000000000000000000000000000002000000000000000100000062', 2, 1.25, 0, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (true, '2023-11-14 18:30:00+00', 1, 0, 2, 0.5, 18, '{1699988286360,0,0,0}', '\x0000003a04010a09030000000200000000000000020000000000000000000000000000000100000000000000010000000000000001000000620100000061', 2, 0.5, 0, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (true, '2023-11-14 19:00:00+00', 1, 0, 1, 9.99, 32, '{1699989541229,0,1,4}', '\x0000002d04010a090300000001000000000000000100000000000000000000000000000001000000000000000100000062', 1, 9.99, 0, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (true, '2023-11-14 19:30:00+00', 1, 0, 4, 100, 72, '{1699991330514,0,1,7}', '\x0000003a04010a09030000000200000000000000030000000000000000000000000000000100000000000000020000000000000001000000620100000061', 4, 25.75, 7351.125000000001, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (true, '2023-11-14 20:00:00+00', 1, 0, 2, 0.5, 54, '{1699993622926,0,0,9}', '\x0000003b04010a09030000000200000000000000020000000000000000000000000000000100000000000000010000000000000002000000c3bc0100000062', 1, 0.5, 0, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (true, '2023-11-14 20:30:00+00', 1, 0, 2, NULL, 6, '{1699994978094,0,1,14}', '\x0000002d04010a090300000001000000000000000100000000000000000000000000000001000000000000000100000062', 0, NULL, NULL, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (true, '2023-11-14 21:00:00+00', 1, 0, 5, 100, 33, '{1699996877258,0,0,18}', '\x0000004804010a090300000003000000000000000400000000000000000000000000000001000000000000000200000000000000010000000000000002000000c3bc01000000610100000062', 3, 37.08, 5976.5833999999995, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (true, '2023-11-14 21:30:00+00', 1, 0, 3, 100, 60, '{1699998013882,0,1,18}', NULL, 3, 69.99666666666667, 5401.200066666667, 0);
INSERT INTO stored__orders.again_v1_p20231113 VALUES (true, '2023-11-14 22:00:00+00', 1, 0, 1, 9.99, 43, '{1699999744475,0,1,21}', '\x0000002d04010a090300000001000000000000000100000000000000000000000000000001000000000000000100000061', 1, 9.99, 0, 0);
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES (NULL, '2023-11-14 19:00:00+00', 1, 0, 2, 2, 4, 2, 1, 0.5, '2023-11-14 19:57:47.383+00', 72, '{1699990539926,0,1,3}', 1, '{1699991930383,0,1,8}', 0.5, 0, 2, 2, 2, '\x0000003805010f00900108000200000000000000900101008e010000000000000000e03f000000000000e03f000000000000e03f000000000000e03f', '\x000000100201070d03080200758166072bf2fb06', '\x0000003a04010a09030000000200000000000000020000000000000000000000000000000100000000000000010000000000000001000000310100000033', true, '{1699990539926,0,1,3}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES (NULL, '2023-11-14 20:00:00+00', 1, 0, 2, 1, 6, 19.98, 9.99, 9.99, '2023-11-14 20:48:25.094+00', 42, '{1699993278716,0,0,11}', 3, '{1699994978094,0,1,14}', 9.99, 0, 2, 3, 0, '\x0000001002020f04900108007b14ae47e1fa2340', '\x0000000c0201070d0308010075816607', '\x0000002d04010a090300000001000000000000000200000000000000000000000000000002000000000000000100000033', false, '{1699993278716,0,0,11}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES (NULL, '2023-11-14 21:00:00+00', 1, 0, 6, 6, 5, 642.46, 321.23, 1.25, '2023-11-14 21:45:31.657+00', 52, '{1699996877258,0,0,18}', 1, '{1699998013882,0,1,18}', 53.538333333333334, 13003.043883333332, 4, 1.25, 0.75, '\x0000005805010f00900108000600000000000000900101008a010000000000000000f43f000000000000594000000000000059407b14ae47e1fa234000000000000059400000000000005940000000000000f43f7b14ae47e1fa2340', '\x000000100201070d030802002bf2fb06862ff90d', '\x0000003a04010a09030000000200000000000000040000000000000000000000000000000300000000000000010000000000000001000000310100000032', true, '{1699996877258,0,0,18}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('a', '2023-11-14 18:00:00+00', 1, 0, 1, 1, 3, 1, 0.5, 0.5, '2023-11-14 18:56:49.904+00', 95, '{1699988225904,0,1,0}', 3, '{1699988225904,0,1,0}', 0.5, 0, 1, 3, 0, '\x0000001002020f0490010800000000000000e03f', '\x0000000c0201070d0308010075816607', '\x0000002d04010a090300000001000000000000000100000000000000000000000000000001000000000000000100000033', true, '{1699988225904,0,1,0}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('a', '2023-11-14 19:00:00+00', 1, 0, 5, 5, 11, 225.98, 112.99, 0.5, '2023-11-14 19:48:11.514+00', 10, '{1699989490179,0,0,1}', 2, '{1699991330514,0,1,7}', 22.598, 7549.82708, 5, 2.2, 0.8, '\x0000005005010f00900108000500000000000000900101008b010000000000000000e03f0000000000005940000000000000f43f0000000000005940000000000000f43f7b14ae47e1fa2340000000000000e03f', '\x000000100201070d03080200862ff90d75816607', '\x0000003a04010a09030000000200000000000000050000000000000000000000000000000100000000000000040000000000000001000000330100000032', false, '{1699989490179,0,0,1}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('a', '2023-11-14 20:00:00+00', 1, 0, 2, 1, -4, 1, 0.5, 0.5, '2023-11-14 20:50:00.579+00', 83, '{1699992603885,0,1,10}', -7, '{1699995027579,0,0,14}', 0.5, 0, 2, -2, 50, '\x0000001002020f0490010800000000000000e03f', '\x000000100201070d0308020075816607f16b9505', '\x0000003b04010a0903000000020000000000000002000000000000000000000000000000010000000000000001000000000000000100000033020000002d37', false, '{1699992603885,0,1,10}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('a', '2023-11-14 21:00:00+00', 1, 0, 2, 2, 5, 202.5, 101.25, 1.25, '2023-11-14 21:21:02.165+00', 22, '{1699996441872,0,0,19}', 3, '{1699996862165,0,1,17}', 50.625, 4875.78125, 2, 2.5, 0.5, '\x0000003805010f00900108000200000000000000900101008e010000000000000000f43f0000000000005940000000000000f43f0000000000005940', '\x000000100201070d03080200862ff90d75816607', '\x0000003a04010a09030000000200000000000000020000000000000000000000000000000100000000000000010000000000000001000000330100000032', true, '{1699996441872,0,0,19}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('a', '2023-11-14 22:00:00+00', 1, 0, 1, 1, 3, 19.98, 9.99, 9.99, '2023-11-14 22:08:00.475+00', 97, '{1699999744475,0,1,21}', 3, '{1699999744475,0,1,21}', 9.99, 0, 1, 3, 0, '\x0000001002020f04900108007b14ae47e1fa2340', '\x0000000c0201070d0308010075816607', '\x0000002d04010a090300000001000000000000000100000000000000000000000000000001000000000000000100000033', true, '{1699999744475,0,1,21}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('b', '2023-11-14 18:00:00+00', 1, 0, 1, 1, -7, 1, 0.5, 0.5, '2023-11-14 18:57:29.36+00', 85, '{1699988286360,0,0,0}', -7, '{1699988286360,0,0,0}', 0.5, 0, 1, -7, 0, '\x0000001002020f0490010800000000000000e03f', '\x0000000c0201070d03080100f16b9505', '\x0000002e04010a09030000000100000000000000010000000000000000000000000000000100000000000000020000002d37', true, '{1699988286360,0,0,0}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('b', '2023-11-14 19:00:00+00', 1, 0, 3, 3, 5, 239.96, 119.98, 9.99, '2023-11-14 19:44:06.996+00', 81, '{1699989541229,0,1,4}', 1, '{1699991083996,0,1,6}', 39.99333333333333, 5401.200066666667, 3, 1.6666666666666667, 0.6666666666666667, '\x0000004005010f00900108000300000000000000900101008d0100007b14ae47e1fa2340000000000000594000000000000059407b14ae47e1fa23407b14ae47e1fa2340', '\x000000100201070d03080200862ff90d2bf2fb06', '\x0000003a04010a09030000000200000000000000030000000000000000000000000000000100000000000000020000000000000001000000310100000032', true, '{1699989541229,0,1,4}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('b', '2023-11-14 20:00:00+00', 1, 0, 5, 4, -11, 221.98, 110.99, 0.5, '2023-11-14 20:47:59.832+00', 30, '{1699992022519,0,1,5}', 1, '{1699994934832,0,1,11}', 27.7475, 7020.605075, 4, -2.75, 72.75, '\x0000004805010f00900108000400000000000000900101008c010000000000000000e03f00000000000059407b14ae47e1fa2340000000000000e03f000000000000e03f0000000000005940', '\x000000140201070d03080300f16b9505862ff90d2bf2fb06', '\x0000004804010a090300000003000000000000000400000000000000000000000000000001000000000000000100000000000000020000000000000001000000310100000032020000002d37', false, '{1699992022519,0,1,5}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('b', '2023-11-14 21:00:00+00', 1, 0, 2, 0, -5, NULL, NULL, NULL, '2023-11-14 21:43:31.557+00', 63, '{1699996583099,0,1,19}', -7, '{1699998290557,0,1,20}', NULL, NULL, 2, -2.5, 40.5, NULL, '\x000000100201070d03080200862ff90df16b9505', '\x0000003b04010a0903000000020000000000000002000000000000000000000000000000010000000000000001000000000000000100000032020000002d37', true, '{1699996583099,0,1,19}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('b', '2023-11-14 22:00:00+00', 1, 0, 2, 2, -5, 5, 2.5, 1.25, '2023-11-14 22:24:13+00', 17, '{1700000700000,0,0,23}', -7, '{1700000700001,0,1,22}', 1.25, 0, 2, -2.5, 40.5, '\x0000003805010f00900108000200000000000000900101008e010000000000000000f43f000000000000f43f000000000000f43f000000000000f43f', '\x000000100201070d03080200862ff90df16b9505', '\x0000003b04010a0903000000020000000000000002000000000000000000000000000000010000000000000001000000000000000100000032020000002d37', false, '{1700000700000,0,0,23}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('ü', '2023-11-14 19:00:00+00', 1, 0, 4, 3, 1099511627773, 6, 3, 0.5, '2023-11-14 19:47:20.306+00', 58, '{1699989489877,0,0,3}', 1099511627776, '{1699991334306,0,0,5}', 1, 0.375, 4, 274877906943.25, 9.066943647126211e+23, '\x0000004005010f00900108000300000000000000900101008d010000000000000000e03f000000000000f43f000000000000f43f000000000000e03f000000000000f43f', '\x000000140201070d03080300862ff90df16b950541f4570f', '\x0000005404010a09030000000300000000000000040000000000000000000000000000000100000000000000010000000000000002000000000000000d00000031303939353131363237373736020000002d370100000032', false, '{1699989489877,0,0,3}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('ü', '2023-11-14 20:00:00+00', 1, 0, 7, 3, 2199023255563, 59.94, 29.97, 9.99, '2023-11-14 20:54:22.437+00', 40, '{1699992854997,0,0,10}', 1099511627776, '{1699995329437,0,0,16}', 9.99, 0, 7, 314146179366.1429, 1.7270368851568449e+24, '\x0000004005010f00900108000300000000000000900101008d0100007b14ae47e1fa23407b14ae47e1fa23407b14ae47e1fa23407b14ae47e1fa23407b14ae47e1fa2340', '\x000000180201070d03080400862ff90d41f4570f2bf2fb0675816607', '\x0000006004010a09030000000400000000000000070000000000000000000000000000000100000000000000020000000000000002000000000000000200000000000000010000003101000000320d000000313039393531313632373737360100000033', false, '{1699992854997,0,0,10}');
INSERT INTO stored__orders.by_shop_v1_p20231113 VALUES ('ü', '2023-11-14 21:00:00+00', 1, 0, 2, 0, 1099511627776, NULL, NULL, NULL, '2023-11-14 21:02:02.743+00', 21, '{1699995733743,0,1,15}', 1099511627776, '{1699995793350,0,1,16}', NULL, NULL, 1, 1099511627776, 0, NULL, '\x0000000c0201070d0308010041f4570f', '\x0000003904010a090300000001000000000000000100000000000000000000000000000001000000000000000d00000031303939353131363237373736', true, '{1699995733743,0,1,15}');
INSERT INTO stored__orders.clash_order_v1_p20231113 VALUES ('2023-11-14 18:00:00+00', 1, 0, 2, 85, '{1699988286360,0,0,0}', '{1699988286360,0,0,0}');
INSERT INTO stored__orders.clash_order_v1_p20231113 VALUES ('2023-11-14 19:00:00+00', 1, 0, 14, 37, '{1699991930383,0,1,8}', '{1699991930383,0,1,8}');
INSERT INTO stored__orders.clash_order_v1_p20231113 VALUES ('2023-11-14 20:00:00+00', 1, 0, 16, 42, '{1699995329437,0,0,16}', '{1699995329437,0,0,16}');
INSERT INTO stored__orders.clash_order_v1_p20231113 VALUES ('2023-11-14 21:00:00+00', 1, 0, 12, 12, '{1699998359657,0,0,21}', '{1699998359657,0,0,21}');
INSERT INTO stored__orders.clash_order_v1_p20231113 VALUES ('2023-11-14 22:00:00+00', 1, 0, 3, 75, '{1700000700001,0,1,22}', '{1700000700001,0,1,22}');
INSERT INTO stored__orders.clash_value_v1_p20231113 VALUES ('2023-11-14 18:00:00+00', 1, 0, 2, 18, '{1699988286360,0,0,0}', 85);
INSERT INTO stored__orders.clash_value_v1_p20231113 VALUES ('2023-11-14 19:00:00+00', 1, 0, 14, 4, '{1699991930383,0,1,8}', 37);
INSERT INTO stored__orders.clash_value_v1_p20231113 VALUES ('2023-11-14 20:00:00+00', 1, 0, 16, 80, '{1699995329437,0,0,16}', 42);
INSERT INTO stored__orders.clash_value_v1_p20231113 VALUES ('2023-11-14 21:00:00+00', 1, 0, 12, 31, '{1699998359657,0,0,21}', 12);
INSERT INTO stored__orders.clash_value_v1_p20231113 VALUES ('2023-11-14 22:00:00+00', 1, 0, 3, 11, '{1700000700001,0,1,22}', 75);
INSERT INTO stored__orders.hops_v1_p20231113 VALUES (false, '2023-11-14 19:00:00+00', '-infinity', 1, 0, 9, 8, 1099511627783, 247.96, 123.98, 0.5, '2023-11-14 19:57:47.383+00', 58, '{1699989489877,0,0,3}', 1, '{1699991930383,0,1,8}', 15.4975, 8282.09515, 9, 122167958642.55556, 1.0746007285446266e+24, '\x0000006805010f009001080008000000000000009001010088010000000000000000e03f0000000000005940000000000000e03f000000000000f43f00000000000059407b14ae47e1fa23407b14ae47e1fa2340000000000000e03f000000000000e03f000000000000f43f', '\x0000001c0201070d03080500862ff90df16b95057581660741f4570f2bf2fb06', '\x0000006e04010a0903000000050000000000000009000000000000000000000000000000010000000000000001000000000000000100000000000000010000000000000005000000000000000d00000031303939353131363237373736020000002d37010000003301000000310100000032', false, '{1699989489877,0,0,3}');
INSERT INTO stored__orders.hops_v1_p20231113 VALUES (false, '2023-11-14 20:00:00+00', '-infinity', 1, 0, 12, 8, 2199023255556, 301.9, 150.95, 0.5, '2023-11-14 20:54:22.437+00', 30, '{1699992022519,0,1,5}', 1099511627776, '{1699995329437,0,0,16}', 18.86875, 7651.2626875000005, 11, 199911205050.54544, 1.9782422502768852e+24, '\x0000006805010f009001080008000000000000009001010088010000000000000000e03f0000000000005940000000000000e03f7b14ae47e1fa23407b14ae47e1fa23407b14ae47e1fa23407b14ae47e1fa23407b14ae47e1fa2340000000000000e03f0000000000005940', '\x000000180201070d03080400f16b950575816607862ff90d41f4570f', '\x0000006104010a090300000004000000000000000b00000000000000000000000000000002000000000000000200000000000000040000000000000003000000000000000d00000031303939353131363237373736020000002d3701000000330100000032', false, '{1699992022519,0,1,5}');
INSERT INTO stored__orders.hops_v1_p20231113 VALUES (false, '2023-11-14 21:00:00+00', '-infinity', 1, 0, 4, 2, 1099511627771, 202.5, 101.25, 1.25, '2023-11-14 21:45:31.657+00', 14, '{1699995793350,0,1,16}', -7, '{1699998290557,0,1,20}', 50.625, 4875.78125, 3, 366503875923.6667, 8.059505464134178e+23, '\x0000003805010f00900108000200000000000000900101008e010000000000000000f43f00000000000059400000000000005940000000000000f43f', '\x000000140201070d0308030041f4570f862ff90df16b9505', '\x0000005404010a0903000000030000000000000003000000000000000000000000000000010000000000000001000000000000000100000000000000020000002d370d000000313039393531313632373737360100000032', false, '{1699995793350,0,1,16}');
INSERT INTO stored__orders.hops_v1_p20231113 VALUES (false, '2023-11-14 22:00:00+00', '-infinity', 1, 0, 2, 2, -5, 5, 2.5, 1.25, '2023-11-14 22:24:13+00', 17, '{1700000700000,0,0,23}', -7, '{1700000700001,0,1,22}', 1.25, 0, 2, -2.5, 40.5, '\x0000003805010f00900108000200000000000000900101008e010000000000000000f43f000000000000f43f000000000000f43f000000000000f43f', '\x000000100201070d03080200862ff90df16b9505', '\x0000003b04010a0903000000020000000000000002000000000000000000000000000000010000000000000001000000000000000100000032020000002d37', false, '{1700000700000,0,0,23}');
INSERT INTO stored__orders.hops_v1_p20231113 VALUES (true, '2023-11-14 18:00:00+00', '-infinity', 1, 0, 2, 2, -4, 2, 1, 0.5, '2023-11-14 18:57:29.36+00', 95, '{1699988225904,0,1,0}', -7, '{1699988286360,0,0,0}', 0.5, 0, 2, -2, 50, '\x0000003805010f00900108000200000000000000900101008e010000000000000000e03f000000000000e03f000000000000e03f000000000000e03f', '\x000000100201070d0308020075816607f16b9505', '\x0000003b04010a0903000000020000000000000002000000000000000000000000000000010000000000000001000000000000000100000033020000002d37', true, '{1699988225904,0,1,0}');
INSERT INTO stored__orders.hops_v1_p20231113 VALUES (true, '2023-11-14 19:00:00+00', '-infinity', 1, 0, 5, 5, 10, 225.98, 112.99, 0.5, '2023-11-14 19:48:11.514+00', 81, '{1699989541229,0,1,4}', 2, '{1699991330514,0,1,7}', 22.598, 7549.82708, 5, 2, 2, '\x0000005005010f00900108000500000000000000900101008b010000000000000000e03f0000000000005940000000000000f43f0000000000005940000000000000f43f000000000000e03f7b14ae47e1fa2340', '\x000000140201070d03080300862ff90d758166072bf2fb06', '\x0000004704010a0903000000030000000000000005000000000000000000000000000000010000000000000003000000000000000100000000000000010000003101000000320100000033', true, '{1699989541229,0,1,4}');
INSERT INTO stored__orders.hops_v1_p20231113 VALUES (true, '2023-11-14 20:00:00+00', '-infinity', 1, 0, 4, 1, -2, 1, 0.5, 0.5, '2023-11-14 20:48:25.094+00', 41, '{1699993622768,0,0,13}', 3, '{1699994978094,0,1,14}', 0.5, 0, 4, -0.5, 59.00000000000001, '\x0000001002020f0490010800000000000000e03f', '\x000000140201070d030803002bf2fb06f16b950575816607', '\x0000004804010a09030000000300000000000000040000000000000000000000000000000200000000000000010000000000000001000000000000000100000031020000002d370100000033', true, '{1699993622768,0,0,13}');
INSERT INTO stored__orders.hops_v1_p20231113 VALUES (true, '2023-11-14 21:00:00+00', '-infinity', 1, 0, 8, 6, 10, 642.46, 321.23, 1.25, '2023-11-14 21:38:59.882+00', 21, '{1699995733743,0,1,15}', 1, '{1699998013882,0,1,18}', 53.538333333333334, 13003.043883333332, 6, 1.6666666666666667, 3.333333333333333, '\x0000005805010f00900108000600000000000000900101008a010000000000000000f43f00000000000059407b14ae47e1fa2340000000000000594000000000000059407b14ae47e1fa2340000000000000f43f0000000000005940', '\x000000140201070d03080300862ff90d758166072bf2fb06', '\x0000004704010a0903000000030000000000000006000000000000000000000000000000030000000000000002000000000000000100000000000000010000003101000000320100000033', true, '{1699995733743,0,1,15}');
INSERT INTO stored__orders.hops_v1_p20231113 VALUES (true, '2023-11-14 22:00:00+00', '-infinity', 1, 0, 1, 1, 3, 19.98, 9.99, 9.99, '2023-11-14 22:08:00.475+00', 97, '{1699999744475,0,1,21}', 3, '{1699999744475,0,1,21}', 9.99, 0, 1, 3, 0, '\x0000001002020f04900108007b14ae47e1fa2340', '\x0000000c0201070d0308010075816607', '\x0000002d04010a090300000001000000000000000100000000000000000000000000000001000000000000000100000033', true, '{1699999744475,0,1,21}');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('a', '2023-11-14 18:57:05.904+00', '2023-11-14 19:07:05.904+00', 1, 0, 1, 3, 37, '{1699988225904,0,1,0}', '\x0000000c0201070d03080100731c001b');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('a', '2023-11-14 19:18:10.179+00', '2023-11-14 19:28:10.179+00', 1, 0, 1, 2, 33, '{1699989490179,0,0,1}', '\x0000000c0201070d03080100731c001b');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('a', '2023-11-14 19:37:36.96+00', '2023-11-14 19:58:50.514+00', 1, 0, 4, 9, 0, '{1699990656960,0,0,4}', '\x000000140201070d030803001784690a95a38e0d8b9c2713');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('a', '2023-11-14 20:10:03.885+00', '2023-11-14 20:20:03.885+00', 1, 0, 1, 3, 99, '{1699992603885,0,1,10}', NULL);
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('a', '2023-11-14 20:50:27.579+00', '2023-11-14 21:00:27.579+00', 1, 0, 1, -7, 30, '{1699995027579,0,0,14}', '\x0000000c0201070d03080100731c001b');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('a', '2023-11-14 21:14:01.872+00', '2023-11-14 21:31:02.165+00', 1, 0, 2, 5, 16, '{1699996441872,0,0,19}', '\x000000100201070d030802008b9c271395a38e0d');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('a', '2023-11-14 22:09:04.475+00', '2023-11-14 22:19:04.475+00', 1, 0, 1, 3, 43, '{1699999744475,0,1,21}', '\x0000000c0201070d030801001784690a');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('b', '2023-11-14 18:58:06.36+00', '2023-11-14 19:08:06.36+00', 1, 0, 1, -7, 18, '{1699988286360,0,0,0}', '\x0000000c0201070d03080100731c001b');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('b', '2023-11-14 19:19:01.229+00', '2023-11-14 19:29:01.229+00', 1, 0, 1, 2, 32, '{1699989541229,0,1,4}', '\x0000000c0201070d030801001784690a');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('b', '2023-11-14 19:31:20.631+00', '2023-11-14 19:41:20.631+00', 1, 0, 1, 2, 22, '{1699990280631,0,1,2}', '\x0000000c0201070d030801001784690a');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('b', '2023-11-14 19:44:43.996+00', '2023-11-14 19:54:43.996+00', 1, 0, 1, 1, 28, '{1699991083996,0,1,6}', '\x0000000c0201070d030801008b9c2713');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('b', '2023-11-14 20:00:22.519+00', '2023-11-14 20:10:22.519+00', 1, 0, 1, -7, 92, '{1699992022519,0,1,5}', '\x0000000c0201070d030801008b9c2713');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('b', '2023-11-14 20:14:04.426+00', '2023-11-14 20:24:04.426+00', 1, 0, 1, 2, 36, '{1699992844426,0,1,9}', '\x0000000c0201070d03080100731c001b');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('b', '2023-11-14 20:27:02.926+00', '2023-11-14 20:38:20.715+00', 1, 0, 2, -7, 54, '{1699993622926,0,0,9}', '\x000000100201070d03080200731c001b1784690a');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('b', '2023-11-14 20:48:54.832+00', '2023-11-14 20:58:54.832+00', 1, 0, 1, 1, 47, '{1699994934832,0,1,11}', NULL);
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('b', '2023-11-14 21:16:23.099+00', '2023-11-14 21:26:23.099+00', 1, 0, 1, 2, 73, '{1699996583099,0,1,19}', NULL);
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('b', '2023-11-14 21:44:50.557+00', '2023-11-14 21:54:50.557+00', 1, 0, 1, -7, 64, '{1699998290557,0,1,20}', NULL);
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('b', '2023-11-14 22:25:00+00', '2023-11-14 22:35:00.001+00', 1, 0, 2, -5, 87, '{1700000700000,0,0,23}', '\x0000000c0201070d0308010095a38e0d');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('ü', '2023-11-14 19:18:09.877+00', '2023-11-14 19:32:31.925+00', 1, 0, 3, -3, 33, '{1699989489877,0,0,3}', '\x000000100201070d0308020095a38e0d731c001b');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('ü', '2023-11-14 19:48:54.306+00', '2023-11-14 19:58:54.306+00', 1, 0, 1, 1099511627776, 90, '{1699991334306,0,0,5}', '\x0000000c0201070d0308010095a38e0d');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('ü', '2023-11-14 20:14:14.997+00', '2023-11-14 20:26:50.863+00', 1, 0, 2, 1099511627778, 50, '{1699992854997,0,0,10}', NULL);
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('ü', '2023-11-14 20:27:02.768+00', '2023-11-14 20:41:15.511+00', 1, 0, 3, 6, 21, '{1699993622768,0,0,13}', '\x0000000c0201070d030801001784690a');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES ('ü', '2023-11-14 20:49:35.297+00', '2023-11-14 21:13:13.35+00', 1, 0, 4, 2199023255555, 19, '{1699994975297,0,0,15}', '\x0000000c0201070d030801001784690a');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES (NULL, '2023-11-14 19:35:39.926+00', '2023-11-14 19:45:39.926+00', 1, 0, 1, 3, 30, '{1699990539926,0,1,3}', '\x0000000c0201070d03080100731c001b');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES (NULL, '2023-11-14 19:58:50.383+00', '2023-11-14 20:08:50.383+00', 1, 0, 1, 1, 4, '{1699991930383,0,1,8}', '\x0000000c0201070d03080100731c001b');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES (NULL, '2023-11-14 20:21:18.716+00', '2023-11-14 20:31:18.716+00', 1, 0, 1, 3, 7, '{1699993278716,0,0,11}', '\x0000000c0201070d030801001784690a');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES (NULL, '2023-11-14 20:49:38.094+00', '2023-11-14 20:59:38.094+00', 1, 0, 1, 3, 6, '{1699994978094,0,1,14}', NULL);
INSERT INTO stored__orders.visits_v1_p20231113 VALUES (NULL, '2023-11-14 21:21:17.258+00', '2023-11-14 21:34:21.874+00', 1, 0, 2, 3, 33, '{1699996877258,0,0,18}', '\x000000100201070d030802001784690a95a38e0d');
INSERT INTO stored__orders.visits_v1_p20231113 VALUES (NULL, '2023-11-14 21:34:58.841+00', '2023-11-14 21:55:59.657+00', 1, 0, 4, 2, 99, '{1699997698841,0,0,20}', '\x000000100201070d030802008b9c27131784690a');
SELECT pg_catalog.setval('stored__orders._aggregations_id_seq', 6, true);
SELECT pg_catalog.setval('stored__orders._anomalies_id_seq', 7, true);
ALTER TABLE ONLY stored__orders._aggregations
    ADD CONSTRAINT _aggregations_name_version_key UNIQUE (name, version);
ALTER TABLE ONLY stored__orders._aggregations
    ADD CONSTRAINT _aggregations_pkey PRIMARY KEY (id);
ALTER TABLE ONLY stored__orders._anomalies
    ADD CONSTRAINT _anomalies_anomaly_aggregation_version_group_key_window_sta_key UNIQUE NULLS NOT DISTINCT (anomaly, aggregation, version, group_key, window_start, revision, epoch, partition, "offset");
ALTER TABLE ONLY stored__orders._anomalies
    ADD CONSTRAINT _anomalies_pkey PRIMARY KEY (id);
ALTER TABLE ONLY stored__orders._corrections
    ADD CONSTRAINT _corrections_pkey PRIMARY KEY (aggregation_id, rev);
ALTER TABLE ONLY stored__orders._dead_letters
    ADD CONSTRAINT _dead_letters_pkey PRIMARY KEY (epoch, partition, "offset", aggregation);
ALTER TABLE ONLY stored__orders._detector_history
    ADD CONSTRAINT _detector_history_pkey PRIMARY KEY (anomaly, aggregation_id, group_key, window_start);
ALTER TABLE ONLY stored__orders._detectors
    ADD CONSTRAINT _detectors_pkey PRIMARY KEY (anomaly, aggregation_id, group_key);
ALTER TABLE ONLY stored__orders._events
    ADD CONSTRAINT _events_pkey PRIMARY KEY (event_time, epoch, partition, "offset");
ALTER TABLE ONLY stored__orders._events_p20231113
    ADD CONSTRAINT _events_p20231113_pkey PRIMARY KEY (event_time, epoch, partition, "offset");
ALTER TABLE ONLY stored__orders._generation
    ADD CONSTRAINT _generation_pkey PRIMARY KEY ("only");
ALTER TABLE ONLY stored__orders._lost
    ADD CONSTRAINT _lost_pkey PRIMARY KEY (reader, partition, epoch, from_offset);
ALTER TABLE ONLY stored__orders._offsets
    ADD CONSTRAINT _offsets_pkey PRIMARY KEY (reader, partition);
ALTER TABLE ONLY stored__orders._readers
    ADD CONSTRAINT _readers_pkey PRIMARY KEY (reader);
ALTER TABLE ONLY stored__orders.again_v1
    ADD CONSTRAINT again_v1_paid_window_start_key UNIQUE NULLS NOT DISTINCT (paid, window_start);
ALTER TABLE ONLY stored__orders.again_v1_p20231113
    ADD CONSTRAINT again_v1_p20231113_paid_window_start_key UNIQUE NULLS NOT DISTINCT (paid, window_start);
ALTER TABLE ONLY stored__orders.by_shop_v1
    ADD CONSTRAINT by_shop_v1_shop_window_start_key UNIQUE NULLS NOT DISTINCT (shop, window_start);
ALTER TABLE ONLY stored__orders.by_shop_v1_p20231113
    ADD CONSTRAINT by_shop_v1_p20231113_shop_window_start_key UNIQUE NULLS NOT DISTINCT (shop, window_start);
ALTER TABLE ONLY stored__orders.clash_order_v1
    ADD CONSTRAINT clash_order_v1_window_start_key UNIQUE NULLS NOT DISTINCT (window_start);
ALTER TABLE ONLY stored__orders.clash_order_v1_p20231113
    ADD CONSTRAINT clash_order_v1_p20231113_window_start_key UNIQUE NULLS NOT DISTINCT (window_start);
ALTER TABLE ONLY stored__orders.clash_value_v1
    ADD CONSTRAINT clash_value_v1_window_start_key UNIQUE NULLS NOT DISTINCT (window_start);
ALTER TABLE ONLY stored__orders.clash_value_v1_p20231113
    ADD CONSTRAINT clash_value_v1_p20231113_window_start_key UNIQUE NULLS NOT DISTINCT (window_start);
ALTER TABLE ONLY stored__orders.hops_v1
    ADD CONSTRAINT hops_v1_paid_window_start__after_key UNIQUE NULLS NOT DISTINCT (paid, window_start, _after);
ALTER TABLE ONLY stored__orders.hops_v1_p20231113
    ADD CONSTRAINT hops_v1_p20231113_paid_window_start__after_key UNIQUE NULLS NOT DISTINCT (paid, window_start, _after);
ALTER TABLE ONLY stored__orders.visits_v1
    ADD CONSTRAINT visits_v1_shop_window_start_key UNIQUE NULLS NOT DISTINCT (shop, window_start);
ALTER TABLE ONLY stored__orders.visits_v1_p20231113
    ADD CONSTRAINT visits_v1_p20231113_shop_window_start_key UNIQUE NULLS NOT DISTINCT (shop, window_start);
CREATE INDEX _anomalies_by_time ON stored__orders._anomalies USING btree (window_start, id);
CREATE INDEX _anomalies_unpublished ON stored__orders._anomalies USING btree (id) WHERE (NOT published);
CREATE INDEX _dead_letters_by_time ON stored__orders._dead_letters USING btree (created_at, epoch, partition, "offset", aggregation);
CREATE INDEX _dead_letters_unpublished ON stored__orders._dead_letters USING btree (epoch, partition, "offset") WHERE (NOT published);
CREATE INDEX _detector_history_by_time ON stored__orders._detector_history USING btree (aggregation_id, window_start);
CREATE INDEX again_v1_by_time ON ONLY stored__orders.again_v1 USING btree (window_start);
CREATE INDEX again_v1_p20231113_window_start_idx ON stored__orders.again_v1_p20231113 USING btree (window_start);
CREATE INDEX by_shop_v1_by_time ON ONLY stored__orders.by_shop_v1 USING btree (window_start);
CREATE INDEX by_shop_v1_p20231113_window_start_idx ON stored__orders.by_shop_v1_p20231113 USING btree (window_start);
CREATE INDEX clash_order_v1_by_time ON ONLY stored__orders.clash_order_v1 USING btree (window_start);
CREATE INDEX clash_order_v1_p20231113_window_start_idx ON stored__orders.clash_order_v1_p20231113 USING btree (window_start);
CREATE INDEX clash_value_v1_by_time ON ONLY stored__orders.clash_value_v1 USING btree (window_start);
CREATE INDEX clash_value_v1_p20231113_window_start_idx ON stored__orders.clash_value_v1_p20231113 USING btree (window_start);
CREATE INDEX hops_v1_by_time ON ONLY stored__orders.hops_v1 USING btree (window_start);
CREATE INDEX hops_v1_p20231113_window_start_idx ON stored__orders.hops_v1_p20231113 USING btree (window_start);
CREATE INDEX visits_v1_by_end ON ONLY stored__orders.visits_v1 USING btree (window_end);
CREATE INDEX visits_v1_by_time ON ONLY stored__orders.visits_v1 USING btree (window_start);
CREATE INDEX visits_v1_open ON ONLY stored__orders.visits_v1 USING btree (shop, window_end);
CREATE INDEX visits_v1_p20231113_shop_window_end_idx ON stored__orders.visits_v1_p20231113 USING btree (shop, window_end);
CREATE INDEX visits_v1_p20231113_window_end_idx ON stored__orders.visits_v1_p20231113 USING btree (window_end);
CREATE INDEX visits_v1_p20231113_window_start_idx ON stored__orders.visits_v1_p20231113 USING btree (window_start);
ALTER INDEX stored__orders._events_pkey ATTACH PARTITION stored__orders._events_p20231113_pkey;
ALTER INDEX stored__orders.again_v1_paid_window_start_key ATTACH PARTITION stored__orders.again_v1_p20231113_paid_window_start_key;
ALTER INDEX stored__orders.again_v1_by_time ATTACH PARTITION stored__orders.again_v1_p20231113_window_start_idx;
ALTER INDEX stored__orders.by_shop_v1_shop_window_start_key ATTACH PARTITION stored__orders.by_shop_v1_p20231113_shop_window_start_key;
ALTER INDEX stored__orders.by_shop_v1_by_time ATTACH PARTITION stored__orders.by_shop_v1_p20231113_window_start_idx;
ALTER INDEX stored__orders.clash_order_v1_by_time ATTACH PARTITION stored__orders.clash_order_v1_p20231113_window_start_idx;
ALTER INDEX stored__orders.clash_order_v1_window_start_key ATTACH PARTITION stored__orders.clash_order_v1_p20231113_window_start_key;
ALTER INDEX stored__orders.clash_value_v1_by_time ATTACH PARTITION stored__orders.clash_value_v1_p20231113_window_start_idx;
ALTER INDEX stored__orders.clash_value_v1_window_start_key ATTACH PARTITION stored__orders.clash_value_v1_p20231113_window_start_key;
ALTER INDEX stored__orders.hops_v1_paid_window_start__after_key ATTACH PARTITION stored__orders.hops_v1_p20231113_paid_window_start__after_key;
ALTER INDEX stored__orders.hops_v1_by_time ATTACH PARTITION stored__orders.hops_v1_p20231113_window_start_idx;
ALTER INDEX stored__orders.visits_v1_open ATTACH PARTITION stored__orders.visits_v1_p20231113_shop_window_end_idx;
ALTER INDEX stored__orders.visits_v1_shop_window_start_key ATTACH PARTITION stored__orders.visits_v1_p20231113_shop_window_start_key;
ALTER INDEX stored__orders.visits_v1_by_end ATTACH PARTITION stored__orders.visits_v1_p20231113_window_end_idx;
ALTER INDEX stored__orders.visits_v1_by_time ATTACH PARTITION stored__orders.visits_v1_p20231113_window_start_idx;
GRANT USAGE ON SCHEMA stored__orders TO stored__orders_reader;
GRANT USAGE ON SCHEMA stored__orders TO stored__orders_writer;
REVOKE ALL ON FUNCTION stored__orders.ensure_partition(table_name text, day integer, days integer) FROM PUBLIC;
GRANT ALL ON FUNCTION stored__orders.ensure_partition(table_name text, day integer, days integer) TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders._aggregations TO stored__orders_reader;
GRANT SELECT ON TABLE stored__orders._aggregations TO stored__orders_writer;
GRANT UPDATE(closed_until) ON TABLE stored__orders._aggregations TO stored__orders_writer;
GRANT UPDATE(rev) ON TABLE stored__orders._aggregations TO stored__orders_writer;
GRANT UPDATE(scanned_until) ON TABLE stored__orders._aggregations TO stored__orders_writer;
GRANT UPDATE(published_until) ON TABLE stored__orders._aggregations TO stored__orders_writer;
GRANT UPDATE(late_dead) ON TABLE stored__orders._aggregations TO stored__orders_writer;
GRANT UPDATE(late_dropped) ON TABLE stored__orders._aggregations TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders._anomalies TO stored__orders_reader;
GRANT SELECT,INSERT ON TABLE stored__orders._anomalies TO stored__orders_writer;
GRANT UPDATE(published) ON TABLE stored__orders._anomalies TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders._corrections TO stored__orders_reader;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE stored__orders._corrections TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders._dead_letters TO stored__orders_reader;
GRANT SELECT,INSERT ON TABLE stored__orders._dead_letters TO stored__orders_writer;
GRANT UPDATE(published) ON TABLE stored__orders._dead_letters TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders._detector_history TO stored__orders_reader;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE stored__orders._detector_history TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders._detectors TO stored__orders_reader;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE stored__orders._detectors TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders._events TO stored__orders_reader;
GRANT SELECT,INSERT ON TABLE stored__orders._events TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders._generation TO stored__orders_reader;
GRANT SELECT ON TABLE stored__orders._generation TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders._lost TO stored__orders_reader;
GRANT SELECT,INSERT ON TABLE stored__orders._lost TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders._offsets TO stored__orders_reader;
GRANT SELECT,UPDATE ON TABLE stored__orders._offsets TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders._readers TO stored__orders_reader;
GRANT SELECT,UPDATE ON TABLE stored__orders._readers TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders.again_v1 TO stored__orders_reader;
GRANT SELECT,INSERT,UPDATE ON TABLE stored__orders.again_v1 TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders.by_shop_v1 TO stored__orders_reader;
GRANT SELECT,INSERT,UPDATE ON TABLE stored__orders.by_shop_v1 TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders.clash_order_v1 TO stored__orders_reader;
GRANT SELECT,INSERT,UPDATE ON TABLE stored__orders.clash_order_v1 TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders.clash_value_v1 TO stored__orders_reader;
GRANT SELECT,INSERT,UPDATE ON TABLE stored__orders.clash_value_v1 TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders.hops_v1 TO stored__orders_reader;
GRANT SELECT,INSERT,UPDATE ON TABLE stored__orders.hops_v1 TO stored__orders_writer;
GRANT SELECT ON TABLE stored__orders.visits_v1 TO stored__orders_reader;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE stored__orders.visits_v1 TO stored__orders_writer;
