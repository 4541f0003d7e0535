"""Tests of the revision tracker, with a model of processors that are late, out of order, or crash unpublished."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tidemill_api.live.change import Change, Key, Row, RowFilter, read_entry, rows_by_key
from tidemill_api.live.progress import Position
from tidemill_api.live.revision_tracker import RevisionTracker

BASE = 5
KEYS = "ab"
PROCESSORS = 2


def rows(versions: dict[str, int]) -> dict[Key, Row]:
    """Return rows by key. The metric of each row is its revision."""
    return rows_by_key([{"k": key, "window_start": "t", "n": version} for key, version in versions.items()])


@dataclass
class World:
    """Postgres, processors that commit and publish, the tracker, and a client that receives its changes."""

    rev: int = BASE
    stored: dict[str, int] = field(default_factory=dict)
    unread_revs: dict[int, list[int]] = field(default_factory=lambda: {p: [] for p in range(PROCESSORS)})
    unpublished: dict[int, list[tuple[list[int], dict[str, int]]]] = field(
        default_factory=lambda: {p: [] for p in range(PROCESSORS)}
    )
    tracker: RevisionTracker = field(default_factory=lambda: RevisionTracker("a", 1, BASE, None))
    client: dict[str, int] = field(default_factory=dict)
    client_rev: int = 0

    def commit(self, processor: int, keys: str) -> None:
        self.rev += 1
        for key in keys:
            self.stored[key] = self.rev
        self.unread_revs[processor].append(self.rev)

    def prepare(self, processor: int) -> None:
        """Let a processor read the rows that it will publish."""
        revs, self.unread_revs[processor] = self.unread_revs[processor], []
        if revs:
            self.unpublished[processor].append((revs, {k: v for k, v in self.stored.items() if v in revs}))

    def publish(self, processor: int) -> None:
        """Let a processor publish the rows that it read earliest."""
        if self.unpublished[processor]:
            revs, versions = self.unpublished[processor].pop(0)
            self.receive(self.tracker.add_streamed(revs, rows(versions)))

    def crash(self, processor: int) -> None:
        """Discard everything that a processor has not published."""
        self.unread_revs[processor], self.unpublished[processor] = [], []

    def poll(self, *, may_miss_changes: bool) -> None:
        """Read missing rows from the database, as the broadcaster does."""
        tracker = self.tracker
        if tracker.complete_rev < (self.rev if may_miss_changes else tracker.database_rev):
            missing = {
                k: v for k, v in self.stored.items() if v > tracker.complete_rev and v not in tracker.revs_beyond_gap
            }
            self.receive(tracker.add_from_database(self.rev, rows(missing)))
        tracker.update_database_rev(self.rev, None)

    def receive(self, change: Change | None) -> None:
        """Let the client apply a change, and check that its revision and its rows never become older."""
        if change is None:
            return
        assert change.max_rev >= self.client_rev, "the revision of messages became older"
        self.client_rev = change.max_rev
        for row in change.rows.values():
            assert row["n"] >= self.client.get(row["k"], 0), "a row became older"
            self.client[row["k"]] = row["n"]

    def check_position(self) -> None:
        """Check that the client has all rows up to the position, as it resumes with the rows after the position."""
        position = self.tracker.position.rev
        settled = {key: version for key, version in self.stored.items() if version <= position}
        assert {key: self.client.get(key, 0) for key in settled} == settled


_steps = st.one_of(
    st.tuples(st.just("commit"), st.integers(0, PROCESSORS - 1), st.text(KEYS, min_size=1, max_size=2)),
    st.tuples(st.sampled_from(["prepare", "publish", "crash"]), st.integers(0, PROCESSORS - 1)),
    st.tuples(st.just("poll"), st.booleans()),
)


_CROSSED = [
    ("commit", 0, "a"), ("prepare", 0), ("commit", 1, "a"), ("prepare", 1), ("publish", 1),
]  # fmt: skip


@given(st.lists(_steps, max_size=40))
@example([*_CROSSED, ("publish", 0)])
@example([*_CROSSED, ("poll", True), ("publish", 0)])
@example([("commit", 0, "a"), ("commit", 1, "a"), ("prepare", 0), ("publish", 0)])  # The row has a later revision.
@example([("commit", 0, "a"), ("prepare", 0), ("commit", 1, "b"), ("prepare", 1), ("publish", 1), ("publish", 0)])
@settings(max_examples=300, deadline=None)
def test_clients_finally_have_the_stored_rows(steps: list[tuple[object, ...]]) -> None:
    """Changes may be late, lost or out of order. Two polls of the database complete the rows."""
    world = World()
    for name, *arguments in steps:
        if name == "poll":
            world.poll(may_miss_changes=bool(arguments[0]))
        else:
            getattr(world, str(name))(*arguments)
        world.check_position()
    world.poll(may_miss_changes=False)
    world.poll(may_miss_changes=False)
    assert world.client == world.stored
    assert world.tracker.position.rev == world.rev


def test_no_rows_are_read_from_the_database_if_the_stream_is_complete() -> None:
    world = World()
    for _ in range(3):
        world.commit(0, "ab")
        world.prepare(0)
        world.publish(0)
        world.poll(may_miss_changes=False)
        assert world.tracker.complete_rev == world.rev
        assert world.tracker.revs_beyond_gap == []


def test_the_time_of_a_position_advances_only_if_all_revisions_are_known() -> None:
    tracker = RevisionTracker("a", 1, 3, 100)
    tracker.update_database_rev(4, 200)
    assert tracker.position == Position(1, 3, 100)
    tracker.add_streamed([4], rows({"a": 4}))
    tracker.update_database_rev(4, 300)
    assert tracker.position == Position(1, 4, 300)


def test_an_entry_without_revisions_counts_as_its_newest_revision() -> None:
    """The other revisions are read from the tables."""
    entry = read_entry(msgspec.json.encode({"aggregation": "a", "rev": 7, "rows": [{"k": 1, "window_start": "t"}]}))
    assert entry.revs == (7,)


def test_the_key_of_a_row_is_its_group_and_window_without_metrics() -> None:
    row = {"k": "x", "window_start": "t", "window_end": "u", "n": 1}
    assert list(rows_by_key([row])) == list(rows_by_key([{**row, "n": 2, "window_end": "v"}]))
    assert list(rows_by_key([row])) != list(rows_by_key([{**row, "k": None}]))


def test_a_change_is_encoded_once_for_equal_filters() -> None:
    change = Change("a", 1, 1, rows({"a": 1}))
    assert change.messages(RowFilter()) is change.messages(RowFilter())
    (text,) = change.messages(RowFilter())
    assert msgspec.json.decode(text) == {
        "type": "upsert", "aggregation": "a", "rev": 1, "rows": [{"k": "a", "window_start": "t", "n": 1}],
    }  # fmt: skip
