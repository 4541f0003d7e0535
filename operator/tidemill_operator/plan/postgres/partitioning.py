"""The functions by which writers make time partitions, as text. Nothing here talks to a database."""

from __future__ import annotations

from tidemill_contract.functions.partials import quote


def ensure_partitions_sql(schema_name: str) -> str:
    """`ensure_partitions(table_name, days, widths)`: makes time partitions of a window or event table, where absent.

    `days` are days since the epoch; each partition holds what of [day, day + width) no other one holds: a changed
    retention may have changed the width, and another replica may have been faster. The number of tables made. They are
    made as tables of their own and attached, because ATTACH makes nobody wait, and together, because a look at all that
    there are takes long. SECURITY DEFINER: writers own no table. It touches partitioned tables of this schema only.
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
    """`ensure_partition(table_name, day, days)`: one such partition. True: something was missing.

    For processors of versions that make them one by one, while they are being replaced.
    """
    schema = quote(schema_name)
    return f"""
CREATE OR REPLACE FUNCTION {schema}.ensure_partition(table_name text, day integer, days integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
  RETURN {schema}.ensure_partitions(table_name, ARRAY[day], ARRAY[days]) > 0;
END $body$
"""
