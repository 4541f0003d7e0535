"""The SQL functions with which writers create time partitions."""

from __future__ import annotations

from tidemill_contract.functions.partials import quote


def ensure_partitions_sql(schema_name: str) -> str:
    """Return the SQL of `ensure_partitions(table_name, days, widths)`, which creates missing time partitions.

    `days` are days since the epoch. The SQL function returns the number of new tables. Writers may call the SQL
    function although they do not own the tables.
    """
    schema = quote(schema_name)
    return f"""
CREATE OR REPLACE FUNCTION {schema}.ensure_partitions(table_name text, days integer[], widths integer[]) RETURNS integer
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
   WHERE n.nspname = '{schema_name}' AND c.relname = table_name AND c.relkind = 'p';
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
      EXECUTE format('CREATE TABLE IF NOT EXISTS {schema}.%I (LIKE {schema}.%I INCLUDING DEFAULTS INCLUDING STORAGE)'
                     ' WITH (fillfactor = 80)', part, table_name);
      EXECUTE format('ALTER TABLE {schema}.%I ATTACH PARTITION {schema}.%I FOR VALUES FROM (%L) TO (%L)',
                     table_name, part, first_day::text || ' 00:00:00+00', end_day::text || ' 00:00:00+00');
      lows := lows || first_day;
      highs := highs || end_day;
      made := made + 1;
    END LOOP;
  END LOOP;
  RETURN made;
END $body$
"""


def ensure_partition_sql(schema_name: str) -> str:
    """Return the SQL of `ensure_partition(table_name, day, days)` for processors of earlier versions."""
    schema = quote(schema_name)
    return f"""
CREATE OR REPLACE FUNCTION {schema}.ensure_partition(table_name text, day integer, days integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
  RETURN {schema}.ensure_partitions(table_name, ARRAY[day], ARRAY[days]) > 0;
END $body$
"""
