"""Tests of retention and quotas of windows, events, dead letters and anomalies, on a real Postgres."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.owned_schema import OwnedSchema

pytestmark = pytest.mark.integration


def _partitions(bench: OwnedSchema) -> list[str]:
    rows = bench.query(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = '{s}.by_shop_v1'::regclass ORDER BY 1"
    )
    return [name for (name,) in rows]


WIDTHS: list[tuple[list[tuple[int, int]], tuple[int, int], list[tuple[int, int]], str]] = [
    ([], (0, 7), [(0, 7)], "no partition exists"),
    ([(0, 7)], (3, 1), [], "a wider partition has the day"),
    ([(0, 1)], (0, 7), [(1, 7)], "a partition has the first day"),
    ([(6, 1)], (0, 7), [(0, 6)], "a partition has the last day"),
    ([(2, 1), (4, 1)], (0, 7), [(0, 2), (3, 4), (5, 7)], "partitions have days in between"),
    ([(-3, 5)], (0, 7), [(2, 7)], "a partition begins before the range"),
    ([(5, 5)], (0, 7), [(0, 5)], "a partition ends after the range"),
    ([(0, 3), (3, 3), (6, 3)], (0, 7), [], "several partitions have all days"),
]


@pytest.mark.parametrize(("existing", "requested", "created", "reason"), WIDTHS, ids=[row[-1] for row in WIDTHS])
def test_partitions_are_created_only_for_days_that_no_partition_has(
    bench: OwnedSchema,
    existing: list[tuple[int, int]],
    requested: tuple[int, int],
    created: list[tuple[int, int]],
    reason: str,
) -> None:
    """A changed retention changes how many days a new partition has. Existing partitions stay."""
    bench.ensure()
    day = 19_000

    def ensure_partition(first: int, days: int) -> bool:
        ((answer,),) = bench.query(f"SELECT {{s}}.ensure_partition('by_shop_v1', {day + first}, {days})")
        return bool(answer)

    def bounds() -> list[tuple[int, int]]:
        rows = bench.query(
            "SELECT (regexp_match(b, 'FROM .''([^'']+)'))[1]::date - date '1970-01-01',"
            " (regexp_match(b, 'TO .''([^'']+)'))[1]::date - date '1970-01-01' FROM pg_inherits i"
            " JOIN pg_class c ON c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) b"
            " WHERE i.inhparent = '{s}.by_shop_v1'::regclass ORDER BY 1"
        )
        return [(first - day, end - day) for first, end in rows]

    for first, days in existing:
        assert ensure_partition(first, days)
    bench.admin.execute("SET timezone = 'America/New_York'; SET datestyle = 'SQL, DMY'")
    assert (ensure_partition(*requested), ensure_partition(*requested)) == (bool(created), False), reason
    bench.admin.execute("RESET timezone; RESET datestyle")
    assert bounds() == sorted([*((first, first + days) for first, days in existing), *created]), reason
    for minute in range(requested[0] * 1440, (requested[0] + requested[1]) * 1440, 1440):
        moment = f"timestamptz 'epoch' + interval '{day} days {minute} minutes'"
        bench.run(f"INSERT INTO {{s}}.by_shop_v1 (window_start, _rev) VALUES ({moment}, 1)")


def test_stored_events_expire_by_their_own_retention(bench: OwnedSchema) -> None:
    """A pipeline that stores no events has none to expire."""
    bench.document["spec"]["events"] = {"store": True, "retention": "2d"}
    bench.ensure()
    for day in (19_000, 19_001):
        bench.run(f"SELECT {{s}}.ensure_partition('_events', {day}, 1)")
    bench.run(f"UPDATE {{s}}._readers SET watermark = {19_003 * 86_400_000}")
    (marked,) = bench.actuator.expire(bench.plan.schema)
    assert marked.changed == 1
    mark = json.dumps({"tidemill.expiredSince": "2020-01-01T00:00:00+00:00"}).replace("{", "{{").replace("}", "}}")
    bench.run(f"COMMENT ON TABLE {{s}}._events_p20220108 IS '{mark}'")
    bench.actuator.expire(bench.plan.schema)
    left = bench.query(
        "SELECT relname FROM pg_class WHERE relname LIKE '\\_events\\_p%' AND relkind = 'r'"
        " AND relnamespace = '{s}'::regnamespace"
    )
    assert left == [("_events_p20220109",)]
    del bench.document["spec"]["events"]
    (kept,) = bench.actuator.expire(bench.plan.schema)
    assert kept.changed == 0


def test_windows_are_dropped_a_day_after_the_watermark_passed_their_retention(bench: OwnedSchema) -> None:
    """The first pass marks a partition, and a pass a day later drops it. One pass drops at most a few."""
    bench.ensure()
    for day in range(6):
        bench.run(f"SELECT {{s}}.ensure_partition('by_shop_v1', {19_000 + day}, 1)")
    # The retention is 10 days, so the watermark is past the retention of the first five days.
    bench.run(f"UPDATE {{s}}._readers SET watermark = {(19_005 + 10) * 86_400_000}")
    (marked,) = bench.actuator.expire(bench.plan.schema)
    assert (marked.changed, len(_partitions(bench))) == (5, 6)
    (waits,) = bench.actuator.expire(bench.plan.schema)
    assert (waits.changed, len(_partitions(bench))) == (0, 6)
    for name in _partitions(bench)[:5]:
        mark = json.dumps({"tidemill.expiredSince": "2020-01-01T00:00:00+00:00"})
        bench.run(f"COMMENT ON TABLE {{s}}.{name} IS '{mark}'".replace('{"', '{{"').replace('"}', '"}}'))
    bench.actuator.expire(bench.plan.schema)
    assert _partitions(bench) == ["by_shop_v1_p20220112", "by_shop_v1_p20220113"]
    bench.actuator.expire(bench.plan.schema)
    assert _partitions(bench) == ["by_shop_v1_p20220113"]


LETTER = (
    'INSERT INTO {{s}}._dead_letters (epoch, partition, "offset", reason, value, bytes, created_at, published)'
    " SELECT 0, 0, n, 'not_json', 'x', {size}, now() - interval '{age}', {published}"
    " FROM generate_series({first}, {last}) n"
)


def _totals(bench: OwnedSchema, kind: str) -> tuple[Any, ...]:
    sums = ", ".join(f"coalesce(sum({name}), 0)::int" for name in ("rows", "bytes", "expired", "evicted"))
    return bench.query(f"SELECT {sums} FROM {{s}}._kept WHERE kind = '{kind}'")[0]


def test_published_dead_letters_expire_by_the_wall_clock_and_are_counted(bench: OwnedSchema) -> None:
    """Rows of an earlier version, which have no size, expire, too."""
    bench.document["spec"]["deadLetters"] = {"retention": "2d"}
    bench.ensure()
    bench.run(LETTER.format(size=100, age="3 days", published=True, first=1, last=6_000))
    bench.run(LETTER.format(size="NULL", age="3 days", published=True, first=7_001, last=7_003))
    bench.run(LETTER.format(size=100, age="3 days", published=False, first=8_001, last=8_002))
    bench.run(LETTER.format(size=100, age="1 day", published=True, first=9_001, last=9_004))
    bench.run("INSERT INTO {s}._kept (kind, place, rows, bytes) VALUES ('_dead_letters', 0, 6006, 600600)")
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 6_003
    assert bench.query('SELECT count(*), min("offset") FROM {s}._dead_letters') == [(6, 8_001)]
    assert _totals(bench, "_dead_letters") == (6, 600, 6_003, 0)
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 0


def test_the_oldest_published_dead_letters_are_evicted_when_the_quota_is_full(bench: OwnedSchema) -> None:
    """Eviction ends an eighth below the quota. The observed schema has the number of evicted rows."""
    bench.document["spec"]["deadLetters"] = {"quota": "1Mi"}
    bench.ensure()
    bench.run(LETTER.format(size=1_024, age="2 hours", published=False, first=1, last=10))
    bench.run(LETTER.format(size=1_024, age="1 hour", published=True, first=11, last=1_024))
    bench.run("INSERT INTO {s}._kept (kind, place, rows, bytes) VALUES ('_dead_letters', 0, 1024, 1048576)")
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 128
    assert bench.query(
        'SELECT count(*) FILTER (WHERE "offset" <= 10), min("offset") FILTER (WHERE published) FROM {s}._dead_letters'
    ) == [(10, 139)]
    assert _totals(bench, "_dead_letters") == (896, 896 * 1_024, 0, 128)
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 0
    live = bench.actuator.observe(bench.plan.schema.name)
    assert live is not None
    assert [(k.kind, k.evicted, k.full) for k in live.stored_totals] == [("_dead_letters", 128, True)]


def test_anomalies_expire_by_the_time_of_their_detection_and_are_counted(bench: OwnedSchema) -> None:
    """The time of the window has no effect, so anomalies of a replayed history are kept as long as others."""
    bench.document["spec"]["anomalyHistory"] = {"retention": "30d", "quota": "1Mi"}
    bench.ensure()
    for age, day in (("31 days", "2026-01-01"), ("1 day", "1999-01-01")):
        bench.run(
            "INSERT INTO {s}._anomalies (anomaly, aggregation, version, metric, group_key, window_start, window_end,"
            " value, score, detected_at, published, bytes)"
            f" VALUES ('a', 'b', 1, 'm', '{{{{}}}}', '{day}', '{day}', 1, 1, now() - interval '{age}', true, 500)"
        )
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 1
    assert bench.query("SELECT extract(year FROM window_start)::int FROM {s}._anomalies") == [(1999,)]
    assert _totals(bench, "_anomalies") == (-1, -500, 1, 0)


def test_detector_states_of_inactive_groups_are_deleted(bench: OwnedSchema) -> None:
    """A group is inactive when its last window is older than the retention and 90 days.

    A row of an earlier version has no time of its last window, and gets the current one.
    """
    bench.ensure()
    now = 20_000 * 86_400_000
    bench.run(f"UPDATE {{s}}._aggregations SET scanned_until = {now}")
    for group, seen in (("old", f"ARRAY[0, {now - 91 * 86_400_000}]"), ("new", f"ARRAY[0, {now}]"), ("unsaid", "NULL")):
        bench.run(
            "INSERT INTO {s}._detectors (anomaly, aggregation_id, group_key, state, seen)"
            f" SELECT 'spike', id, '{group}', '{{{{}}}}', {seen} FROM {{s}}._aggregations"
        )
    bench.run("INSERT INTO {s}._detectors VALUES ('single', -1, 'old', '{{}}', ARRAY[0, 1])")
    bench.actuator.expire(bench.plan.schema)
    states = "SELECT anomaly, group_key, seen[2] FROM {s}._detectors ORDER BY 1, 2"
    assert bench.query(states) == [("single", "old", 1), ("spike", "new", now), ("spike", "unsaid", now)]


def test_a_longer_retention_removes_the_marks_of_partitions(bench: OwnedSchema) -> None:
    """When the partition is due again, a pass marks it first, and it is kept for another day."""
    bench.ensure()
    bench.run("SELECT {s}.ensure_partition('by_shop_v1', 19000, 1)")
    bench.run(f"UPDATE {{s}}._readers SET watermark = {(19_001 + 10) * 86_400_000}")
    comment = "SELECT obj_description('{s}.by_shop_v1_p20220108'::regclass, 'pg_class')"
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 1
    assert "tidemill.expiredSince" in bench.query(comment)[0][0]
    bench.document["spec"]["aggregations"][0]["retention"] = "20d"
    bench.ensure()
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 1
    assert bench.query(comment) == [(None,)]
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 0
    bench.document["spec"]["aggregations"][0]["retention"] = "10d"
    bench.ensure()
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 1
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 0
    assert _partitions(bench) == ["by_shop_v1_p20220108"]


def test_the_next_pass_drops_a_partition_that_was_only_detached(bench: OwnedSchema) -> None:
    """The operator may be killed after it detaches a partition."""
    bench.ensure()
    bench.run("SELECT {s}.ensure_partition('by_shop_v1', 19000, 1)")
    bench.run('COMMENT ON TABLE {s}.by_shop_v1_p20220108 IS \'{{"tidemill.expiredSince": "2020-01-01T00:00:00Z"}}\'')
    bench.run("ALTER TABLE {s}.by_shop_v1 DETACH PARTITION {s}.by_shop_v1_p20220108")
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 1
    assert bench.query("SELECT count(*) FROM pg_class WHERE relname = 'by_shop_v1_p20220108'") == [(0,)]
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 0


def test_the_next_pass_drops_a_partition_that_was_in_use(bench: OwnedSchema) -> None:
    """A pass waits for a reader in a long transaction only until the lock timeout."""
    bench.ensure()
    bench.run("SELECT {s}.ensure_partition('by_shop_v1', 19000, 1)")
    bench.run(f"UPDATE {{s}}._readers SET watermark = {20_000 * 86_400_000}")
    bench.run('COMMENT ON TABLE {s}.by_shop_v1_p20220108 IS \'{{"tidemill.expiredSince": "2020-01-01T00:00:00Z"}}\'')
    with bench.login("reader") as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM pgtest__orders.by_shop_v1")
        bench.actuator.expire(bench.plan.schema)
        assert bench.query("SELECT count(*) FROM pg_class WHERE relname = 'by_shop_v1_p20220108'") == [(1,)]
    bench.actuator.expire(bench.plan.schema)
    assert bench.query("SELECT count(*) FROM pg_class WHERE relname = 'by_shop_v1_p20220108'") == [(0,)]
