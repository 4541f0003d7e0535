"""Leaves out events whose id has counted already (`spec.source.dedupe`), and remembers the ids of the others.

1. Before the batch's transaction, read which ids of the batch are remembered, and find the events that count. The first
   event with an id counts. An event is a duplicate if an event with its id has counted whose event time differs by at
   most the window.
2. In the transaction, lock the memory and store the ids of the events that count. If another processor has stored such
   an id since step 1, roll back and begin again (`Overtaken`).

Ids are stored in the transaction that stores the positions, so after a crash, both or neither are there. Each reader
has a separate memory, because a replay counts earlier events again, for other versions (see `tables/inputs/dedupe`).
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

ID = "_id"
LONGEST = 63
"""The maximum number of bytes of an id that is stored as it was sent. Of longer ids, the SHA-256 is stored, which has
more characters, so it differs from all ids."""


class Overtaken(Exception):
    """Raised if another processor has counted events with ids of the batch. Nothing was written."""


@dataclass(frozen=True)
class Memory:
    """What a reader remembers about a batch.

    Attributes:
        reader: the reader.
        partitions: the partitions whose events count for its versions, or None for all partitions.
        known: the remembered ids of the batch, with their event times.
    """

    reader: str
    partitions: frozenset[int] | None
    known: pl.DataFrame


@dataclass(frozen=True)
class Judge:
    """Decides which events of a batch are duplicates.

    Attributes:
        field: the field with the id.
        numbered: whether the index in the exploded array belongs to the id. It does if the field is outside of the
            array, and thus equal in all events of a record.
        window_ms: the maximum difference of event times.
    """

    field: str
    numbered: bool
    window_ms: int

    def ids(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the events that have an id, in the order of consumption. Columns: `_i`, `_p`, `_t`, `_id`."""
        found = frame.filter(pl.col(self.field).is_not_null())
        if not found[INDEX].is_sorted():
            found = found.sort(INDEX)
        ids = found[self.field].cast(pl.String).alias(ID)
        long = ids.str.len_bytes() > LONGEST
        if long.any():
            stored = [_digest(text) if is_long else text for text, is_long in zip(ids, long, strict=True)]
            ids = pl.Series(ID, stored, dtype=pl.String)
        found = found.with_columns(ids)
        if self.numbered:
            found = found.with_columns(pl.concat_str(ELEMENT, ID, separator=" ").alias(ID))
        return found.select(INDEX, PARTITION, TIME, ID)

    def judge(self, batch: Batch, memories: Sequence[Memory]) -> Firsts:
        """Return the events of a batch that count. The first memory is the one of the process itself."""
        ids = self.ids(batch.frame)
        frames, new, duplicates = {}, {}, Counter[int]()
        for memory in memories:
            own = ids if memory.partitions is None else ids.filter(pl.col(PARTITION).is_in(memory.partitions))
            repeated = _repeated(own, memory.known, self.window_ms)
            gone = own.filter(pl.Series(repeated, dtype=pl.Boolean)) if any(repeated) else own.clear()
            left = pl.col(INDEX).is_in(gone[INDEX].implode())
            frames[memory.reader] = batch.frame.filter(~left) if gone.height else batch.frame
            new[memory.reader] = own.filter(~left) if gone.height else own
            if memory is memories[0]:
                duplicates = Counter(gone[PARTITION].to_list())
        counted = replace(batch, frame=frames[memories[0].reader])
        return Firsts(counted, frames, new, duplicates, self, tuple(memories))


@dataclass(frozen=True)
class Firsts:
    """The events of a batch that count.

    Attributes:
        batch: the batch with these events.
        frames: by reader, the events that count for its versions. Empty without dedupe.
        new: by reader, the ids to remember.
        duplicates: by partition, the number of events that were left out.
        judge: what has decided, or None without dedupe.
        memories: by what it has decided.
    """

    batch: Batch
    frames: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    new: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    duplicates: Counter[int] = field(default_factory=Counter)
    judge: Judge | None = None
    memories: tuple[Memory, ...] = ()

    @property
    def left_out(self) -> int:
        """The number of events that were left out."""
        return self.duplicates.total()

    def frame(self, reader: str) -> pl.DataFrame:
        """Return the events that count for the versions of a reader."""
        return self.frames.get(reader, self.batch.frame)

    def cut(self, batch: Batch) -> Firsts:
        """Return the events that count of a part of the batch. The part must be of the whole batch, with duplicates."""
        return Firsts(batch) if self.judge is None else self.judge.judge(batch, self.memories)


class Ids:
    """The remembered ids of one pipeline. Without `spec.source.dedupe`, it leaves out and remembers nothing."""

    def __init__(self, database: Database, config: PipelineConfig) -> None:
        self._database, self._schema = database, database.schema
        self._schema_name = names_literal(config.schema_name)
        source, self._judge = config.spec.source, None
        self._keeps = config.spec.events.store or any(rule.field is not None for rule in config.spec.anomalies)
        if source.dedupe is not None:
            found = next(f for f in source.fields if f.name == source.dedupe.field)
            numbered = source.array is not None and found.array is None
            self._judge = Judge(found.name, numbered, source.dedupe.window_ms)
            place = f"{found.place} per element" if numbered else found.place
            self._place = place if len(place.encode()) <= LONGEST else _digest(place)

    def look(
        self,
        connection: psycopg.Connection[Any],
        batch: Batch,
        stores: Iterable[AggregationStore],
        further: Mapping[str, Collection[int]],
    ) -> Firsts:
        """Return the events of a batch that count. Call this outside of the batch's transaction.

        Args:
            connection: a connection.
            batch: the batch.
            stores: the versions for which all events of the batch count.
            further: by reader of further versions, the partitions whose events count for them.
        """
        if self._judge is None:
            return Firsts(batch)
        readers: dict[str, frozenset[int] | None] = {r: frozenset(partitions) for r, partitions in further.items()}
        own = sorted({store.reader for store in stores})
        # Stored events and rules about single events belong to the live reader, even if no version does.
        if self._database.reader == LIVE and (self._keeps or not own):
            own = sorted({LIVE, *own})
        readers = dict.fromkeys(own) | {r: found for r, found in readers.items() if r not in own}
        ids = self._judge.ids(batch.frame)
        memories = [Memory(r, only, self._known(connection, ids, r)) for r, only in readers.items()]
        return self._judge.judge(batch, memories)

    def remember(self, connection: psycopg.Connection[Any], firsts: Firsts, reached: Iterable[int | None]) -> None:
        """Store the ids of events that count, in the batch's transaction.

        An id is remembered until the watermark has passed both its event time and `reached` by the window.

        Args:
            connection: the connection, in the transaction. It must not hold the lock of an aggregation.
            firsts: the events that count.
            reached: the event times that the batch's partitions have reached before the batch.

        Raises:
            Overtaken: another processor has stored some of the ids.
        """
        if firsts.judge is None:
            return
        newest = max([*(at for at in reached if at is not None), *firsts.batch.latest_times().values()], default=0)
        for reader, new in sorted(firsts.new.items()):
            if not new.height:
                continue
            new = new.sort(ID)  # the order of the index, in which Postgres inserts faster
            values = {
                "reader": reader,
                "place": self._place,
                "ids": _texts(new[ID]),
                "times": f"{{{new[TIME].cast(pl.String).str.join(',').item()}}}",
                "window": firsts.judge.window_ms,
                "reached": newest,
            }
            connection.execute(dedupe.lock(self._schema_name), (reader,))
            # A prepared statement would keep a plan that was made when the table was still small.
            if connection.execute(dedupe.remember(self._schema), values, prepare=False).rowcount != new.height:
                raise Overtaken

    def _known(self, connection: psycopg.Connection[Any], ids: pl.DataFrame, reader: str) -> pl.DataFrame:
        found: list[tuple[str, int]] = []
        if ids.height and self._judge is not None:
            values = {
                "reader": reader,
                "place": self._place,
                "ids": _texts(ids[ID].unique()),
                "first": int(ids[TIME].min()) - self._judge.window_ms,  # type: ignore[arg-type]
                "last": int(ids[TIME].max()) + self._judge.window_ms,  # type: ignore[arg-type]
            }
            found = connection.execute(dedupe.known(self._schema), values, prepare=False).fetchall()
        return pl.DataFrame(found, {ID: pl.String, TIME: pl.Int64}, orient="row")


def _repeated(ids: pl.DataFrame, known: pl.DataFrame, window_ms: int) -> list[bool]:
    """Return for each event, in the order of consumption, whether it is a duplicate."""
    contested = ids[ID].is_duplicated() | ids[ID].is_in(known[ID].implode())
    repeated = [False] * ids.height
    if not contested.any():
        return repeated
    counted: dict[str, list[int]] = defaultdict(list)
    for id_, time in known.sort(TIME).iter_rows():
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
    """Return one or more texts as the text of a Postgres array, which is sent faster than a list."""
    if values.str.contains_any(['"', "\\"]).any():
        values = values.str.replace_all("\\", "\\\\", literal=True).str.replace_all('"', '\\"', literal=True)
    joined = values.str.join('","').item()
    return f'{{"{joined}"}}'
