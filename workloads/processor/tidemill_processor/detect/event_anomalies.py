"""Anomaly rules over single events. Each partition has its own detectors.

The transaction that stores a batch also stores the detector states.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any

import polars as pl
import psycopg

from tidemill_contract.decimals import scale_of, scaled_text
from tidemill_contract.expressions.compiler import derived_types
from tidemill_contract.expressions.values import as_number, column
from tidemill_contract.functions.partials import field_types
from tidemill_contract.resource.spec import AnomalySpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables.readers import LIVE
from tidemill_contract.times import rfc3339, rfc3339_ms
from tidemill_processor.batches.batch import INDEX, PARTITION, TIME, Batch
from tidemill_processor.database import Database
from tidemill_processor.detect.anomalies import (
    Anomaly,
    Known,
    forget_states,
    insert_anomalies,
    known_groups,
    read_states,
    save_states,
)
from tidemill_processor.detect.detectors import State, judge

MOST_GROUPS = 10_000
"""Each rule stores the states of at most this many groups for each partition."""
HELD_STATES = 5_000
"""The maximum number of detector states in memory between batches."""

Groups = OrderedDict[str, State | None]
"""The detector states of a rule in a partition, by group. If a state is only in Postgres, the value is None."""

_VALUE = "_v"


@dataclass
class Judged:
    """The anomalies in a batch, and the detector states after the batch.

    Attributes:
        groups: the detector states after the batch, by partition and rule.
        changed: the rows of `_detectors` to write.
        gone: the rows of `_detectors` to delete, as tuples of rule, `aggregation_id` and groups.
        anomalies: the anomalies in the batch.
    """

    groups: dict[int, dict[str, Groups]] = field(default_factory=dict)
    changed: list[Known] = field(default_factory=list)
    gone: list[tuple[str, int, list[str]]] = field(default_factory=list)
    anomalies: list[Anomaly] = field(default_factory=list)


class Watcher:
    """Finds anomalies in single events of one pipeline."""

    def __init__(self, database: Database, config: PipelineConfig) -> None:
        self._database, self._schema = database, database.schema
        live = database.reader == LIVE
        self._rules = [rule for rule in config.spec.anomalies if rule.field is not None and live]
        self._types = field_types(config.spec, derived_types(config.spec))
        # Maps each partition to its position, and to the detector states at that position.
        self._held: dict[int, tuple[object, dict[str, Groups]]] = {}

    def judge(
        self,
        connection: psycopg.Connection[Any],
        batch: Batch,
        positions: Mapping[int, object],
        epochs: Mapping[int, int],
    ) -> Judged:
        """Judge the events of a batch that starts at `positions`. Call this before the batch's transaction."""
        judged = Judged()
        if not self._rules:
            return judged
        for partition in batch.next_offsets:
            position, by_rule = self._held.pop(partition, (None, {}))
            judged.groups[partition] = by_rule if position == positions.get(partition) else {}
        for rule in self._rules:
            valued = _valued(rule, batch.frame, self._types)
            for (partition,), events in valued.partition_by(PARTITION, as_dict=True).items():
                keys = _keys(rule, events, self._types)
                groups = self._known(connection, rule, partition, judged.groups[partition], set(keys))
                _judge_events(rule, events, keys, groups, (epochs.get(partition, 0), batch), judged)
        return judged

    def store(self, connection: psycopg.Connection[Any], judged: Judged) -> None:
        """Write states and anomalies in the batch's transaction, after the positions were checked."""
        if judged.changed:
            save_states(connection, self._schema, judged.changed)
        for rule, place, groups in judged.gone:
            forget_states(connection, self._schema, rule, place, groups)
        for partition in sorted({anomaly.record[1] or 0 for anomaly in judged.anomalies}):
            of_it = [anomaly for anomaly in judged.anomalies if anomaly.record[1] == partition]
            insert_anomalies(connection, self._database, of_it, partition)

    def keep(self, judged: Judged, positions: Mapping[int, object]) -> None:
        """Keep the detector states in memory for the batch that starts at `positions`."""
        for partition, by_rule in judged.groups.items():
            self._held[partition] = (positions[partition], by_rule)
        share = HELD_STATES // max(1, sum(len(by_rule) for _, by_rule in self._held.values()))
        for by_rule in judged.groups.values():
            for groups in by_rule.values():
                for group in list(islice(reversed(groups), share, None)):
                    groups[group] = None

    def _known(
        self,
        connection: psycopg.Connection[Any],
        rule: AnomalySpec,
        partition: int,
        by_rule: dict[str, Groups],
        wanted: Iterable[str],
    ) -> Groups:
        place = _place(partition)
        if (groups := by_rule.get(rule.name)) is None:
            stored = known_groups(connection, self._schema, rule.name, place)
            groups = by_rule[rule.name] = OrderedDict.fromkeys(stored)
        missing = [group for group in wanted if group in groups and groups[group] is None]
        if missing:
            states = read_states(connection, self._schema, [rule.name], place, missing)
            # Ignore a state that was stored while the rule watched another field.
            groups.update((g, s if s.get("field") == rule.field else {}) for (_, g), s in states.items())
        return groups


def _judge_events(
    rule: AnomalySpec,
    events: pl.DataFrame,
    keys: list[str],
    groups: Groups,
    source: tuple[int, Batch],
    judged: Judged,
) -> None:
    epoch, batch = source
    partition = int(events[PARTITION][0])
    place, last, gone = _place(partition), dict[str, int](), set[str]()
    for group, at, value, index in zip(keys, *(events[name].to_list() for name in (TIME, _VALUE, INDEX)), strict=True):
        state = groups.pop(group, None)
        if state is None:
            state = {}
            if len(groups) >= MOST_GROUPS:
                gone.add(groups.popitem(last=False)[0])
        verdict, groups[group] = judge(rule.detector, state, at, value)
        last[group] = index
        if verdict is not None:
            time, record = rfc3339_ms(at), (epoch, partition, batch.message(index).offset(), batch.element(index))
            judged.anomalies.append(Anomaly(rule.name, "", 0, rule.watched, group, time, time, verdict, record=record))
    for group, index in last.items():
        if state := groups.get(group):
            element = batch.element(index)
            seen = (epoch, batch.message(index).offset(), *(() if element is None else (element,)))
            judged.changed.append(Known(rule.name, place, group, {**state, "field": rule.field}, seen))
    if gone := gone - groups.keys():
        judged.gone.append((rule.name, place, sorted(gone)))


def _place(partition: int) -> int:
    return -1 - partition


def _valued(rule: AnomalySpec, frame: pl.DataFrame, types: Mapping[str, str]) -> pl.DataFrame:
    value = column(rule.watched, types[rule.watched])
    number = as_number(rule.name, value).alias(_VALUE)
    return frame.filter(value.expression.is_not_null()).select(PARTITION, TIME, INDEX, number, *rule.group_by)


def _keys(rule: AnomalySpec, events: pl.DataFrame, types: Mapping[str, str]) -> list[str]:
    scales = [scale_of(types[name]) for name in rule.group_by]
    texts: dict[tuple[Any, ...], str] = {}
    rows: Iterable[tuple[Any, ...]] = repeat((), events.height)
    if rule.group_by:
        rows = events.select(rule.group_by).rows()
    keys = []
    for row in rows:
        if (text := texts.get(row)) is None:
            named = zip(rule.group_by, map(_plain, row, scales), strict=True)
            text = texts[row] = json.dumps(dict(named), sort_keys=True)
        keys.append(text)
    return keys


def _plain(value: Any, scale: int | None) -> Any:
    if scale is not None and value is not None:
        return scaled_text(value, scale)
    if isinstance(value, dt.datetime):
        return rfc3339(value)
    return value + 0.0 if isinstance(value, float) else value
