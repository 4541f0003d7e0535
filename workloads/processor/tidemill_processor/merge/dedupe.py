"""Leaves out duplicate events (`spec.source.dedupe`), and remembers the ids of all other events.

A duplicate has the same id as an earlier event. Their event times differ by at most the dedupe window.

Before the batch's transaction, the process reads which ids are remembered, and finds the duplicates. In the
transaction, the process locks the remembered ids, and stores the ids of the new events. Meanwhile, another processor
may have stored some of these ids. If so, the transaction is rolled back (`Overtaken`). The batch is then processed
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
from tidemill_processor.database import AggregationStore, Database, names_literal
from tidemill_processor.time.watermark import PartitionTime

ID = "_id"
LONGEST = 63
"""The maximum size in bytes of an id that is stored unchanged. For a longer id, the SHA-256 is stored in hex. The hash
has 64 characters, so no id that is stored unchanged equals the hash."""


class Overtaken(Exception):
    """Raised if another processor has stored events with the same ids. The transaction is rolled back."""


@dataclass(frozen=True)
class Memory:
    """The ids of a batch that are already stored under one name. These ids identify duplicates.

    Attributes:
        name: the name under which the ids are stored (see `ids` in `_aggregations`).
        partitions: the partitions in which these ids identify duplicates, or None for all partitions.
        remembered: the stored ids, with the stored event times.
    """

    name: str
    partitions: frozenset[int] | None
    remembered: pl.DataFrame


@dataclass(frozen=True)
class Judge:
    """Decides which events of a batch are duplicates.

    Attributes:
        field: the name of the field with the id.
        numbered: whether all events of a record have the same id. If so, the array index is put before the id.
        window_ms: the maximum difference between the event times of duplicates.
    """

    field: str
    numbered: bool
    window_ms: int

    def ids(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the events that have an id, in the order of consumption. Columns: `_i`, `_p`, `_t`, `_id`."""
        events = frame.filter(pl.col(self.field).is_not_null())
        if not events[INDEX].is_sorted():
            events = events.sort(INDEX)
        ids = events[self.field].cast(pl.String).alias(ID)
        long = ids.str.len_bytes() > LONGEST
        if long.any():
            stored = [_digest(text) if is_long else text for text, is_long in zip(ids, long, strict=True)]
            ids = pl.Series(ID, stored, dtype=pl.String)
        events = events.with_columns(ids)
        if self.numbered:
            events = events.with_columns(pl.concat_str(ELEMENT, ID, separator=" ").alias(ID))
        return events.select(INDEX, PARTITION, TIME, ID)

    def judge(self, batch: Batch, memories: Sequence[Memory]) -> Firsts:
        """Find the duplicates in a batch. `Firsts.batch` is without the duplicates that `memories[0]` identifies."""
        ids = self.ids(batch.frame)
        frames, new, duplicates = {}, {}, Counter[int]()
        for memory in memories:
            own = ids if memory.partitions is None else ids.filter(pl.col(PARTITION).is_in(memory.partitions))
            repeated = _repeated(own, memory.remembered, self.window_ms)
            gone = own.filter(pl.Series(repeated, dtype=pl.Boolean)) if any(repeated) else own.clear()
            left = pl.col(INDEX).is_in(gone[INDEX].implode())
            frames[memory.name] = batch.frame.filter(~left) if gone.height else batch.frame
            new[memory.name] = own.filter(~left) if gone.height else own
            if memory is memories[0]:
                duplicates = Counter(gone[PARTITION].to_list())
        counted = replace(batch, frame=frames[memories[0].name])
        return Firsts(counted, frames, new, duplicates, self, tuple(memories))


@dataclass(frozen=True)
class Firsts:
    """The events of a batch that are not duplicates.

    Attributes:
        batch: the batch without duplicates.
        frames: the events that are not duplicates, by `Memory.name`. Empty without dedupe.
        new: the ids to store, by `Memory.name`.
        duplicates: the number of duplicates in each partition.
        judge: the judge that found the duplicates, or None without dedupe.
        memories: the stored ids that identified the duplicates.
    """

    batch: Batch
    frames: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    new: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    duplicates: Counter[int] = field(default_factory=Counter)
    judge: Judge | None = None
    memories: tuple[Memory, ...] = ()

    @property
    def left_out(self) -> int:
        """The number of duplicates, which were left out."""
        return self.duplicates.total()

    def frame(self, name: str) -> pl.DataFrame:
        """Return the events that are not duplicates for the `Memory` with this name."""
        return self.frames.get(name, self.batch.frame)

    def cut(self, batch: Batch) -> Firsts:
        """Find the duplicates in a part of the original batch, from which no duplicates were removed."""
        return Firsts(batch) if self.judge is None else self.judge.judge(batch, self.memories)


class Ids:
    """The remembered ids of one pipeline. Without `spec.source.dedupe`, no ids are remembered."""

    def __init__(self, database: Database, config: PipelineConfig) -> None:
        self._database, self._schema = database, database.schema
        self._schema_name = names_literal(config.schema_name)
        source, self._judge = config.spec.source, None
        self._keeps = config.spec.events.store or any(rule.field is not None for rule in config.spec.anomalies)
        if source.dedupe is not None:
            id_field = next(f for f in source.fields if f.name == source.dedupe.field)
            numbered = source.array is not None and id_field.array is None
            self._judge = Judge(id_field.name, numbered, source.dedupe.window_ms)
            place = f"{id_field.place} per element" if numbered else id_field.place
            self._place = place if len(place.encode()) <= LONGEST else _digest(place)

    def look(
        self,
        connection: psycopg.Connection[Any],
        batch: Batch,
        stores: Iterable[AggregationStore],
        further: Mapping[str, Collection[int]],
    ) -> Firsts:
        """Find the duplicates in a batch. Call this method before the batch's transaction.

        Args:
            connection: the connection to Postgres.
            batch: the batch.
            stores: the aggregation versions that count the events of all partitions.
            further: the partitions that other aggregation versions count, by the `ids` of these versions.
        """
        if self._judge is None:
            return Firsts(batch)
        own = sorted({store.ids for store in stores})
        # Raw events need the live reader's ids to detect duplicates. Anomaly rules with `field` need these ids too.
        if self._database.reader == LIVE and (self._keeps or not own):
            own = sorted({LIVE, *own})
        others = {name: frozenset(partitions) for name, partitions in further.items() if name not in own}
        counted: dict[str, frozenset[int] | None] = dict.fromkeys(own) | others
        ids = self._judge.ids(batch.frame)
        memories = [Memory(name, only, self._known(connection, ids, name)) for name, only in counted.items()]
        return self._judge.judge(batch, memories)

    def remember(self, connection: psycopg.Connection[Any], firsts: Firsts, times: Mapping[int, PartitionTime]) -> None:
        """Store the ids of the new events. Call this in the batch's transaction, before aggregations are locked.

        An id is deleted after the watermark has passed the id's expiry time. The expiry time is the dedupe window plus
        the latest of these times:

        - the event's time
        - the greatest accepted event time (`maximum`) of each partition in `times`
        - the current watermark (not in a replay)

        Args:
            connection: the connection to Postgres.
            firsts: the events that are not duplicates.
            times: the progress of each partition of the batch, after the batch.

        Raises:
            Overtaken: another processor has stored some of the ids.
        """
        if firsts.judge is None:
            return
        # `maximum` ignores a single event far in the future. So such an event does not delay the expiry of other ids.
        newest = max((time.maximum for time in times.values() if time.maximum is not None), default=0)
        for name, new in sorted(firsts.new.items()):
            if not new.height:
                continue
            new = new.sort(ID)  # inserting in the order of the index is faster
            values = {
                "reader": name,
                "place": self._place,
                "ids": _texts(new[ID]),
                "times": f"{{{new[TIME].cast(pl.String).str.join(',').item()}}}",
                "window": firsts.judge.window_ms,
                "reached": newest,
                # The live watermark is far ahead of a replay's events. With the live watermark, the ids of a
                # replay would expire only after the replay.
                "follows": LIVE if self._database.reader == LIVE else None,
            }
            connection.execute(dedupe.lock(self._schema_name), (name,))
            # Do not prepare the statement. Postgres would keep the plan of a small table after the table has grown.
            if connection.execute(dedupe.remember(self._schema), values, prepare=False).rowcount != new.height:
                raise Overtaken

    def _known(self, connection: psycopg.Connection[Any], ids: pl.DataFrame, name: str) -> pl.DataFrame:
        rows: list[tuple[str, int]] = []
        if ids.height and self._judge is not None:
            values = {
                "reader": name,
                "place": self._place,
                "ids": _texts(ids[ID].unique()),
                "first": int(ids[TIME].min()) - self._judge.window_ms,  # type: ignore[arg-type]
                "last": int(ids[TIME].max()) + self._judge.window_ms,  # type: ignore[arg-type]
            }
            rows = connection.execute(dedupe.known(self._schema), values, prepare=False).fetchall()
        return pl.DataFrame(rows, {ID: pl.String, TIME: pl.Int64}, orient="row")


def _repeated(ids: pl.DataFrame, remembered: pl.DataFrame, window_ms: int) -> list[bool]:
    contested = ids[ID].is_duplicated() | ids[ID].is_in(remembered[ID].implode())
    repeated = [False] * ids.height
    if not contested.any():
        return repeated
    counted: dict[str, list[int]] = defaultdict(list)
    for id_, time in remembered.sort(TIME).iter_rows():
        counted[id_].append(time)
    places = contested.arg_true()
    for place, id_, time in zip(places, ids[ID].gather(places), ids[TIME].gather(places), strict=True):
        times = counted[id_]
        at = bisect_left(times, time - window_ms)
        if at < len(times) and times[at] <= time + window_ms:
            repeated[place] = True
        else:
            insort(times, time)
    return repeated


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _texts(values: pl.Series) -> str:
    """Return texts as one literal of a Postgres array, which is faster to send than a list."""
    if values.str.contains_any(['"', "\\"]).any():
        values = values.str.replace_all("\\", "\\\\", literal=True).str.replace_all('"', '\\"', literal=True)
    joined = values.str.join('","').item()
    return f'{{"{joined}"}}'
