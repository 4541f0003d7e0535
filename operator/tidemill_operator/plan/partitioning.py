"""The function by which writers make time partitions, as text. Nothing here talks to a database."""

from __future__ import annotations

from tidemill_contract.partials import quote


def ensure_partition_sql(schema_name: str) -> str:
    """`ensure_partition(table_name, day, days)`: makes one time partition of a window or event table, if absent.

    `day` is days since the epoch; the partition holds what of [day, day + days) no other one holds: a changed retention
    may have changed the width. True: something was missing. Made as a table of its own and attached, because ATTACH
    makes nobody wait. SECURITY DEFINER: writers own no table. It touches partitioned tables of this schema only.
    """
    schema = quote(schema_name)
    return f"""
CREATE OR REPLACE FUNCTION {schema}.ensure_partition(table_name text, day integer, days integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO' SET timezone = 'UTC'
AS $body$
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
   WHERE n.nspname = '{schema_name}' AND c.relname = table_name AND c.relkind = 'p';
  IF parent IS NULL THEN
    RAISE EXCEPTION 'no partitioned table % here', table_name USING ERRCODE = 'undefined_table';
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext(parent::text), -1);
  -- Mostly it is there just so, and a look at all of them takes long.
  IF EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
              WHERE i.inhparent = parent
                AND c.oid = to_regclass(format('{schema}.%I', prefix || to_char(first_day, 'YYYYMMDD') || suffix))
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
    EXECUTE format('CREATE TABLE IF NOT EXISTS {schema}.%I (LIKE {schema}.%I INCLUDING DEFAULTS INCLUDING STORAGE)'
                   ' WITH (fillfactor = 80)', part, table_name);
    EXECUTE format('ALTER TABLE {schema}.%I ATTACH PARTITION {schema}.%I FOR VALUES FROM (%L) TO (%L)',
                   table_name, part, first_day::text || ' 00:00:00+00', end_day::text || ' 00:00:00+00');
    made := true;
  END LOOP;
  RETURN made;
END $body$
"""
