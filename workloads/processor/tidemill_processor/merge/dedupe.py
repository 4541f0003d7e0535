"""Leaves out duplicate events (`spec.source.dedupe`), and remembers the ids of all other events.

A duplicate has the same id as an earlier event. Their event times differ by at most the dedupe window.

Before the batch's transaction, the process reads which ids are remembered, and finds the duplicates. In the
transaction, the process locks the remembered ids, and stores the ids of the new events. Meanwhile, another processor
may have stored some of these ids. If so, the transaction is rolled back (`IdConflict`). The batch is then processed
again.

Ids and positions are stored in the same transaction, so a crash cannot separate them. A replay stores ids under a
separate `reader` (see `tables/inputs/dedupe`).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl
import psycopg

from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables.inputs import dedupe
from tidemill_contract.tables.readers import LIVE
from tidemill_processor.batches.batch import ELEMENT, INDEX, PARTITION, TIME, Batch
from tidemill_processor.database import AggregationStore, Database, checked_literal
from tidemill_processor.time.watermark import PartitionTime

ID = "_id"
MAX_ID_BYTES = 63
"""The maximum size in bytes of an id that is stored unchanged. For a longer id, the SHA-256 is stored in hex. The hash
has 64 characters, so no id that is stored unchanged equals the hash."""


class IdConflict(Exception):
    """Raised if another processor has stored events with the same ids. The transaction is rolled back."""


@dataclass(frozen=True)
class StoredIds:
    """The ids of a batch that are already stored under one name. These ids identify duplicates.

    Attributes:
        name: the name under which the ids are stored (see `ids` in `_aggregations`).
        partitions: the partitions in which these ids identify duplicates, or None for all partitions.
        ids: the stored ids, with the stored event times.
    """

    name: str
    partitions: frozenset[int] | None
    ids: pl.DataFrame


@dataclass(frozen=True)
class Deduplicator:
    """Decides which events of a batch are duplicates.

    Attributes:
        field: the name of the field with the id.
        per_element: whether all events of a record have the same id. If so, the array index is put before the id.
        window_ms: the maximum difference between the event times of duplicates.
    """

    field: str
    per_element: bool
    window_ms: int

    def ids(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the events that have an id, in the order of consumption. Columns: `_i`, `_p`, `_t`, `_id`."""
        events = frame.filter(pl.col(self.field).is_not_null())
        if not events[INDEX].is_sorted():
            events = events.sort(INDEX)
        ids = events[self.field].cast(pl.String).alias(ID)
        long = ids.str.len_bytes() > MAX_ID_BYTES
        if long.any():
            stored = [_digest(text) if is_long else text for text, is_long in zip(ids, long, strict=True)]
            ids = pl.Series(ID, stored, dtype=pl.String)
        events = events.with_columns(ids)
        if self.per_element:
            events = events.with_columns(pl.concat_str(ELEMENT, ID, separator=" ").alias(ID))
        return events.select(INDEX, PARTITION, TIME, ID)

    def drop_duplicates(self, batch: Batch, stored: Sequence[StoredIds]) -> DedupedBatch:
        """Find the duplicates in a batch. The result's `batch` lacks the duplicates that `stored[0]` identifies."""
        ids = self.ids(batch.frame)
        frames, new_ids, duplicates = {}, {}, Counter[int]()
        for stored_ids in stored:
            checked = (
                ids if stored_ids.partitions is None else ids.filter(pl.col(PARTITION).is_in(stored_ids.partitions))
            )
            flags = _flag_duplicates(checked, stored_ids.ids, self.window_ms)
            repeated = checked.filter(pl.Series(flags, dtype=pl.Boolean)) if any(flags) else checked.clear()
            is_duplicate = pl.col(INDEX).is_in(repeated[INDEX].implode())
            frames[stored_ids.name] = batch.frame.filter(~is_duplicate) if repeated.height else batch.frame
            new_ids[stored_ids.name] = checked.filter(~is_duplicate) if repeated.height else checked
            if stored_ids is stored[0]:
                duplicates = Counter(repeated[PARTITION].to_list())
        counted = replace(batch, frame=frames[stored[0].name])
        return DedupedBatch(counted, frames, new_ids, duplicates, self, tuple(stored))


@dataclass(frozen=True)
class DedupedBatch:
    """The events of a batch that are not duplicates.

    Attributes:
        batch: the batch without duplicates.
        frames: the events that are not duplicates, by `StoredIds.name`. Empty without dedupe.
        new_ids: the ids to store, by `StoredIds.name`.
        duplicates: the number of duplicates in each partition.
        deduplicator: leaves out the duplicates, or None without dedupe.
        stored: the stored ids that identified the duplicates.
    """

    batch: Batch
    frames: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    new_ids: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    duplicates: Counter[int] = field(default_factory=Counter)
    deduplicator: Deduplicator | None = None
    stored: tuple[StoredIds, ...] = ()

    @property
    def duplicate_count(self) -> int:
        """The number of duplicates, which were left out."""
        return self.duplicates.total()

    def frame(self, name: str) -> pl.DataFrame:
        """Return the events that are not duplicates for the `StoredIds` with this name."""
        return self.frames.get(name, self.batch.frame)

    def for_part(self, batch: Batch) -> DedupedBatch:
        """Find the duplicates in a part of the original batch, from which no duplicates were removed."""
        if self.deduplicator is None:
            return DedupedBatch(batch)
        return self.deduplicator.drop_duplicates(batch, self.stored)


class IdStore:
    """The remembered ids of one pipeline. Without `spec.source.dedupe`, no ids are remembered."""

    def __init__(self, database: Database, config: PipelineConfig) -> None:
        self._database, self._schema = database, database.schema
        self._schema_name = checked_literal(config.schema_name)
        source, self._deduplicator = config.spec.source, None
        self._needs_live_ids = config.spec.events.store or any(rule.field is not None for rule in config.spec.anomalies)
        if source.dedupe is not None:
            id_field = next(f for f in source.fields if f.name == source.dedupe.field)
            per_element = source.array is not None and id_field.array is None
            self._deduplicator = Deduplicator(id_field.name, per_element, source.dedupe.window_ms)
            place = f"{id_field.place} per element" if per_element else id_field.place
            self._place = place if len(place.encode()) <= MAX_ID_BYTES else _digest(place)

    def drop_duplicates(
        self,
        connection: psycopg.Connection[Any],
        batch: Batch,
        stores: Iterable[AggregationStore],
        other_partitions: Mapping[str, Collection[int]],
    ) -> DedupedBatch:
        """Find the duplicates in a batch. Call this method before the batch's transaction.

        Args:
            connection: the connection to Postgres.
            batch: the batch.
            stores: the aggregation versions that count the events of all partitions.
            other_partitions: the partitions that other aggregation versions count, by the `ids` of these versions.
        """
        if self._deduplicator is None:
            return DedupedBatch(batch)
        names = sorted({store.dedupe_reader for store in stores})
        # Raw events need the live reader's ids to detect duplicates. Anomaly rules with `field` need these ids too.
        if self._database.reader == LIVE and (self._needs_live_ids or not names):
            names = sorted({LIVE, *names})
        others = {name: frozenset(partitions) for name, partitions in other_partitions.items() if name not in names}
        partitions_by_name: dict[str, frozenset[int] | None] = dict.fromkeys(names) | others
        ids = self._deduplicator.ids(batch.frame)
        stored = [
            StoredIds(name, partitions, self._read_stored(connection, ids, name))
            for name, partitions in partitions_by_name.items()
        ]
        return self._deduplicator.drop_duplicates(batch, stored)

    def store(
        self, connection: psycopg.Connection[Any], deduped: DedupedBatch, times: Mapping[int, PartitionTime]
    ) -> None:
        """Store the ids of the new events. Call this in the batch's transaction, before aggregations are locked.

        An id is deleted after the watermark has passed the id's expiry time. The expiry time is the dedupe window plus
        the latest of these times:

        - the event's time
        - the greatest accepted event time (`maximum`) of each partition in `times`
        - the current watermark (not in a replay)

        Args:
            connection: the connection to Postgres.
            deduped: the events that are not duplicates.
            times: the progress of each partition of the batch, after the batch.

        Raises:
            IdConflict: another processor has stored some of the ids.
        """
        if deduped.deduplicator is None:
            return
        # `maximum` ignores a single event far in the future. So such an event does not delay the expiry of other ids.
        newest = max((time.maximum for time in times.values() if time.maximum is not None), default=0)
        for name, new in sorted(deduped.new_ids.items()):
            if not new.height:
                continue
            new = new.sort(ID)  # inserting in the order of the index is faster
            values = {
                "reader": name,
                "place": self._place,
                "ids": _array_literal(new[ID]),
                "times": f"{{{new[TIME].cast(pl.String).str.join(',').item()}}}",
                "window": deduped.deduplicator.window_ms,
                "reached": newest,
                # The live watermark is far ahead of a replay's events. With the live watermark, the ids of a
                # replay would expire only after the replay.
                "follows": LIVE if self._database.reader == LIVE else None,
            }
            connection.execute(dedupe.lock(self._schema_name), (name,))
            # Do not prepare the statement. Postgres would keep the plan of a small table after the table has grown.
            if connection.execute(dedupe.insert_new(self._schema), values, prepare=False).rowcount != new.height:
                raise IdConflict

    def _read_stored(self, connection: psycopg.Connection[Any], ids: pl.DataFrame, name: str) -> pl.DataFrame:
        rows: list[tuple[str, int]] = []
        if ids.height and self._deduplicator is not None:
            values = {
                "reader": name,
                "place": self._place,
                "ids": _array_literal(ids[ID].unique()),
                "first": int(ids[TIME].min()) - self._deduplicator.window_ms,  # type: ignore[arg-type]
                "last": int(ids[TIME].max()) + self._deduplicator.window_ms,  # type: ignore[arg-type]
            }
            rows = connection.execute(dedupe.stored_ids(self._schema), values, prepare=False).fetchall()
        return pl.DataFrame(rows, {ID: pl.String, TIME: pl.Int64}, orient="row")


def _flag_duplicates(ids: pl.DataFrame, stored: pl.DataFrame, window_ms: int) -> list[bool]:
    candidates = ids[ID].is_duplicated() | ids[ID].is_in(stored[ID].implode())
    flags = [False] * ids.height
    if not candidates.any():
        return flags
    times_by_id: dict[str, list[int]] = defaultdict(list)
    for id_, time in stored.sort(TIME).iter_rows():
        times_by_id[id_].append(time)
    indexes = candidates.arg_true()
    for index, id_, time in zip(indexes, ids[ID].gather(indexes), ids[TIME].gather(indexes), strict=True):
        times = times_by_id[id_]
        position = bisect_left(times, time - window_ms)
        if position < len(times) and times[position] <= time + window_ms:
            flags[index] = True
        else:
            insort(times, time)
    return flags


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _array_literal(values: pl.Series) -> str:
    """Return texts as one literal of a Postgres array, which is faster to send than a list."""
    if values.str.contains_any(['"', "\\"]).any():
        values = values.str.replace_all("\\", "\\\\", literal=True).str.replace_all('"', '\\"', literal=True)
    joined = values.str.join('","').item()
    return f'{{"{joined}"}}'
