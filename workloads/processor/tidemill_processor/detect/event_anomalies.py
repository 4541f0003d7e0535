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
    DetectorState,
    delete_states,
    insert_anomalies,
    read_groups,
    read_states,
    save_states,
)
from tidemill_processor.detect.detectors import State, judge

MAX_GROUPS = 10_000
"""Each rule stores the states of at most this many groups for each partition."""
MAX_CACHED_STATES = 5_000
"""The maximum number of detector states in memory between batches."""

StatesByGroup = OrderedDict[str, State | None]
"""The detector states of a rule in a partition, by group. If a state is only in Postgres, the value is None."""

_VALUE = "_v"


@dataclass
class JudgedBatch:
    """The anomalies in a batch, and the detector states after the batch.

    Attributes:
        groups: the detector states after the batch, by partition and rule.
        changed: the rows of `_detectors` to write.
        deleted: the rows of `_detectors` to delete, as tuples of rule, `aggregation_id` and groups.
        anomalies: the anomalies in the batch.
    """

    groups: dict[int, dict[str, StatesByGroup]] = field(default_factory=dict)
    changed: list[DetectorState] = field(default_factory=list)
    deleted: list[tuple[str, int, list[str]]] = field(default_factory=list)
    anomalies: list[Anomaly] = field(default_factory=list)


class EventJudge:
    """Finds anomalies in single events of one pipeline."""

    def __init__(self, database: Database, config: PipelineConfig) -> None:
        self._database, self._schema = database, database.schema
        live = database.reader == LIVE
        self._rules = [rule for rule in config.spec.anomalies if rule.field is not None and live]
        self._types = field_types(config.spec, derived_types(config.spec))
        # Maps each partition to its position, and to the detector states at that position.
        self._cached_states: dict[int, tuple[object, dict[str, StatesByGroup]]] = {}

    def judge(
        self,
        connection: psycopg.Connection[Any],
        batch: Batch,
        positions: Mapping[int, object],
        epochs: Mapping[int, int],
    ) -> JudgedBatch:
        """Judge the events of a batch that starts at `positions`. Call this before the batch's transaction."""
        judged = JudgedBatch()
        if not self._rules:
            return judged
        for partition in batch.next_offsets:
            position, by_rule = self._cached_states.pop(partition, (None, {}))
            judged.groups[partition] = by_rule if position == positions.get(partition) else {}
        for rule in self._rules:
            with_values = _with_values(rule, batch.frame, self._types)
            for (partition,), events in with_values.partition_by(PARTITION, as_dict=True).items():
                keys = _keys(rule, events, self._types)
                groups = self._load_states(connection, rule, partition, judged.groups[partition], set(keys))
                _judge_events(rule, events, keys, groups, (epochs.get(partition, 0), batch), judged)
        return judged

    def store(self, connection: psycopg.Connection[Any], judged: JudgedBatch) -> None:
        """Write states and anomalies in the batch's transaction, after the positions were checked."""
        if judged.changed:
            save_states(connection, self._schema, judged.changed)
        for rule, aggregation_id, groups in judged.deleted:
            delete_states(connection, self._schema, rule, aggregation_id, groups)
        for partition in sorted({anomaly.record[1] or 0 for anomaly in judged.anomalies}):
            of_partition = [anomaly for anomaly in judged.anomalies if anomaly.record[1] == partition]
            insert_anomalies(connection, self._database, of_partition, partition)

    def cache_states(self, judged: JudgedBatch, positions: Mapping[int, object]) -> None:
        """Keep the detector states in memory for the batch that starts at `positions`."""
        for partition, by_rule in judged.groups.items():
            self._cached_states[partition] = (positions[partition], by_rule)
        share = MAX_CACHED_STATES // max(1, sum(len(by_rule) for _, by_rule in self._cached_states.values()))
        for by_rule in judged.groups.values():
            for groups in by_rule.values():
                for group in list(islice(reversed(groups), share, None)):
                    groups[group] = None

    def _load_states(
        self,
        connection: psycopg.Connection[Any],
        rule: AnomalySpec,
        partition: int,
        by_rule: dict[str, StatesByGroup],
        wanted: Iterable[str],
    ) -> StatesByGroup:
        aggregation_id = _aggregation_id(partition)
        if (groups := by_rule.get(rule.name)) is None:
            stored = read_groups(connection, self._schema, rule.name, aggregation_id)
            groups = by_rule[rule.name] = OrderedDict.fromkeys(stored)
        missing = [group for group in wanted if group in groups and groups[group] is None]
        if missing:
            states = read_states(connection, self._schema, [rule.name], aggregation_id, missing)
            # Ignore a state that was stored while the rule watched another field.
            groups.update((g, s if s.get("field") == rule.field else {}) for (_, g), s in states.items())
        return groups


def _judge_events(
    rule: AnomalySpec,
    events: pl.DataFrame,
    keys: list[str],
    groups: StatesByGroup,
    source: tuple[int, Batch],
    judged: JudgedBatch,
) -> None:
    epoch, batch = source
    partition = int(events[PARTITION][0])
    aggregation_id, last_indexes, deleted = _aggregation_id(partition), dict[str, int](), set[str]()
    for group, at, value, index in zip(keys, *(events[name].to_list() for name in (TIME, _VALUE, INDEX)), strict=True):
        state = groups.pop(group, None)
        if state is None:
            state = {}
            if len(groups) >= MAX_GROUPS:
                deleted.add(groups.popitem(last=False)[0])
        verdict, groups[group] = judge(rule.detector, state, at, value)
        last_indexes[group] = index
        if verdict is not None:
            time, record = (
                rfc3339_ms(at),
                (epoch, partition, batch.message(index).offset(), batch.element_index(index)),
            )
            judged.anomalies.append(Anomaly(rule.name, "", 0, rule.watched, group, time, time, verdict, record=record))
    for group, index in last_indexes.items():
        if state := groups.get(group):
            element = batch.element_index(index)
            seen = (epoch, batch.message(index).offset(), *(() if element is None else (element,)))
            judged.changed.append(DetectorState(rule.name, aggregation_id, group, {**state, "field": rule.field}, seen))
    if deleted := deleted - groups.keys():
        judged.deleted.append((rule.name, aggregation_id, sorted(deleted)))


def _aggregation_id(partition: int) -> int:
    return -1 - partition


def _with_values(rule: AnomalySpec, frame: pl.DataFrame, types: Mapping[str, str]) -> pl.DataFrame:
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
            named = zip(rule.group_by, map(_json_value, row, scales), strict=True)
            text = texts[row] = json.dumps(dict(named), sort_keys=True)
        keys.append(text)
    return keys


def _json_value(value: Any, scale: int | None) -> Any:
    if scale is not None and value is not None:
        return scaled_text(value, scale)
    if isinstance(value, dt.datetime):
        return rfc3339(value)
    return value + 0.0 if isinstance(value, float) else value
