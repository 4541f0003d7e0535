"""Tests of the ledger of revisions, with a model of processors that are late, out of order, or stop unpublished."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tidemill_api.live.change import Change, Key, Row, RowFilter, keyed, read_entry
from tidemill_api.live.ledger import Ledger
from tidemill_api.live.progress import Mark

BASE = 5
KEYS = "ab"
PROCESSORS = 2


def rows(versions: dict[str, int]) -> dict[Key, Row]:
    """Return rows by key. The metric of each row is its revision."""
    return keyed([{"k": key, "window_start": "t", "n": version} for key, version in versions.items()])


@dataclass
class World:
    """Postgres, processors that commit and publish, the ledger, and a client that receives its changes."""

    rev: int = BASE
    stored: dict[str, int] = field(default_factory=dict)
    noted: dict[int, list[int]] = field(default_factory=lambda: {p: [] for p in range(PROCESSORS)})
    read: dict[int, list[tuple[list[int], dict[str, int]]]] = field(
        default_factory=lambda: {p: [] for p in range(PROCESSORS)}
    )
    ledger: Ledger = field(default_factory=lambda: Ledger("a", 1, BASE, None))
    client: dict[str, int] = field(default_factory=dict)
    client_rev: int = 0

    def commit(self, processor: int, keys: str) -> None:
        self.rev += 1
        for key in keys:
            self.stored[key] = self.rev
        self.noted[processor].append(self.rev)

    def prepare(self, processor: int) -> None:
        """Let a processor read the rows that it will publish."""
        revs, self.noted[processor] = self.noted[processor], []
        if revs:
            self.read[processor].append((revs, {k: v for k, v in self.stored.items() if v in revs}))

    def publish(self, processor: int) -> None:
        """Let a processor publish the rows that it read earliest."""
        if self.read[processor]:
            revs, versions = self.read[processor].pop(0)
            self.receive(self.ledger.take(revs, rows(versions)))

    def die(self, processor: int) -> None:
        """Discard everything that a processor has not published."""
        self.noted[processor], self.read[processor] = [], []

    def look(self, *, urgent: bool) -> None:
        """Read missing rows from the database, as the upstream does."""
        ledger = self.ledger
        if ledger.complete < (self.rev if urgent else ledger.expected):
            missing = {k: v for k, v in self.stored.items() if v > ledger.complete and v not in ledger.seen}
            self.receive(ledger.fill(self.rev, rows(missing)))
        ledger.look(self.rev, None)

    def receive(self, change: Change | None) -> None:
        """Let the client apply a change, and check that its revision and its rows never become older."""
        if change is None:
            return
        assert change.label >= self.client_rev, "the revision of messages became older"
        self.client_rev = change.label
        for row in change.rows.values():
            assert row["n"] >= self.client.get(row["k"], 0), "a row became older"
            self.client[row["k"]] = row["n"]

    def check_mark(self) -> None:
        """Check that the client has all rows up to the mark, as it resumes with the rows after the mark."""
        mark = self.ledger.mark.rev
        settled = {key: version for key, version in self.stored.items() if version <= mark}
        assert {key: self.client.get(key, 0) for key in settled} == settled


_steps = st.one_of(
    st.tuples(st.just("commit"), st.integers(0, PROCESSORS - 1), st.text(KEYS, min_size=1, max_size=2)),
    st.tuples(st.sampled_from(["prepare", "publish", "die"]), st.integers(0, PROCESSORS - 1)),
    st.tuples(st.just("look"), st.booleans()),
)


_CROSSED = [
    ("commit", 0, "a"), ("prepare", 0), ("commit", 1, "a"), ("prepare", 1), ("publish", 1),
]  # fmt: skip


@given(st.lists(_steps, max_size=40))
@example([*_CROSSED, ("publish", 0)])
@example([*_CROSSED, ("look", True), ("publish", 0)])
@example([("commit", 0, "a"), ("commit", 1, "a"), ("prepare", 0), ("publish", 0)])  # The row has a later revision.
@example([("commit", 0, "a"), ("prepare", 0), ("commit", 1, "b"), ("prepare", 1), ("publish", 1), ("publish", 0)])
@settings(max_examples=300, deadline=None)
def test_clients_finally_have_the_stored_rows(steps: list[tuple[object, ...]]) -> None:
    """Changes may be late, lost or out of order. Two looks at the database complete the rows."""
    world = World()
    for name, *arguments in steps:
        if name == "look":
            world.look(urgent=bool(arguments[0]))
        else:
            getattr(world, str(name))(*arguments)
        world.check_mark()
    world.look(urgent=False)
    world.look(urgent=False)
    assert world.client == world.stored
    assert world.ledger.mark.rev == world.rev


def test_no_rows_are_read_from_the_database_if_the_stream_is_complete() -> None:
    world = World()
    for _ in range(3):
        world.commit(0, "ab")
        world.prepare(0)
        world.publish(0)
        world.look(urgent=False)
        assert world.ledger.complete == world.rev
        assert world.ledger.seen == []


def test_the_time_of_a_mark_advances_only_if_all_revisions_are_known() -> None:
    ledger = Ledger("a", 1, 3, 100)
    ledger.look(4, 200)
    assert ledger.mark == Mark(1, 3, 100)
    ledger.take([4], rows({"a": 4}))
    ledger.look(4, 300)
    assert ledger.mark == Mark(1, 4, 300)


def test_an_entry_without_revisions_counts_as_its_newest_revision() -> None:
    """The other revisions are read from the tables."""
    entry = read_entry(msgspec.json.encode({"aggregation": "a", "rev": 7, "rows": [{"k": 1, "window_start": "t"}]}))
    assert entry.revs == (7,)


def test_the_key_of_a_row_is_its_group_and_window_without_metrics() -> None:
    row = {"k": "x", "window_start": "t", "window_end": "u", "n": 1}
    assert list(keyed([row])) == list(keyed([{**row, "n": 2, "window_end": "v"}]))
    assert list(keyed([row])) != list(keyed([{**row, "k": None}]))


def test_a_change_is_encoded_once_for_equal_filters() -> None:
    change = Change("a", 1, 1, rows({"a": 1}))
    assert change.messages(RowFilter()) is change.messages(RowFilter())
    (text,) = change.messages(RowFilter())
    assert msgspec.json.decode(text) == {
        "type": "upsert", "aggregation": "a", "rev": 1, "rows": [{"k": "a", "window_start": "t", "n": 1}],
    }  # fmt: skip
