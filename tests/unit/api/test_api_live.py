"""Tests of live connections without servers: filters, tokens, conflation, and clients that do not read."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill_api.catalog import PipelineModel
from tidemill_api.formats.rows import RowEncoder
from tidemill_api.live.broadcaster import STOPPING, CloseReason, has_other_version
from tidemill_api.live.change import MESSAGE_BYTES, Change, Entry, PartAssembler, RowFilter, rows_by_key, split_rows
from tidemill_api.live.delivery import ClientTimeouts, Disconnected, serve
from tidemill_api.live.events import encode_event
from tidemill_api.live.listener import Listener, Message, Pending
from tidemill_api.live.progress import Position, Progress, read_token, write_token
from tidemill_api.live.query import parse_live_query
from tidemill_api.live.snapshot import Snapshot
from tidemill_api.live.socket import is_origin_allowed
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Column, Filter
from tidemill_api.query.values import parse_value
from tidemill_chassis.web.problems import Problem
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig


def model() -> PipelineModel:
    """Return two aggregations that share a group column."""
    aggregations = [
        {"name": name, "groupBy": groups, "window": {"type": "tumbling", "size": "1m"},
         "metrics": [{"name": "n", "function": "count"}]}
        for name, groups in (("by_both", ["country", "device"]), ("by_country", ["country"]))
    ]  # fmt: skip
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "country", "type": "string"},
                    {"name": "device", "type": "integer"},
                ],
                "eventTime": {"field": "ts"},
            },
            "aggregations": aggregations,
        }
    )
    refs = tuple(AggregationRef(name=a.name) for a in spec.aggregations)
    return PipelineModel(PipelineConfig(namespace="n", name="p", generation=1, spec=spec, aggregations=refs))


def parse(query: str, last_event_id: str | None = None) -> Any:
    return parse_live_query(model(), Parameters.from_query(query.encode()), last_event_id)


def test_all_aggregations_are_sent_unless_the_request_names_some() -> None:
    assert list(parse("").row_filters) == ["by_both", "by_country"]
    assert list(parse("aggregations=by_country,by_country").row_filters) == ["by_country"]


def test_a_filter_applies_to_the_aggregations_that_have_its_column() -> None:
    row_filters = parse("device__in=1,2&country=NO").row_filters
    country = Filter("country", "string", "eq", ("NO",))
    assert row_filters["by_both"] == RowFilter((Filter("device", "integer", "in", (1, 2)), country))
    assert row_filters["by_country"] == RowFilter((country,))


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("aggregations=by_city", "invalid_parameter"),
        ("aggregations=", "invalid_parameter"),
        ("city=Oslo", "unknown_parameter"),
        ("device=two", "invalid_parameter"),
        ("aggregations=by_country&device=1", "unknown_parameter"),  # No chosen aggregation has the column.
        ("n__gte=3", "unknown_parameter"),  # Metrics change, and rows would appear and disappear.
    ],
)
def test_an_invalid_live_query_is_refused(query: str, code: str) -> None:
    with pytest.raises(Problem) as refused:
        parse(query)
    assert refused.value.code == code


def test_the_last_event_id_takes_precedence_over_the_resume_parameter() -> None:
    old, new = write_token({"by_country": Position(1, 1)}), write_token({"by_country": Position(1, 2)})
    assert parse("").resume is None
    assert parse(f"resume={old}").resume == {"by_country": Position(1, 1)}
    assert parse(f"resume={old}", new).resume == {"by_country": Position(1, 2)}


_positions = st.builds(Position, st.integers(0, 2**32), st.integers(0, 2**62), st.none() | st.integers(-(2**50), 2**50))


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), _positions, max_size=5))
def test_tokens_are_read_as_they_were_written(positions: dict[str, Position]) -> None:
    assert read_token(write_token(positions)) == positions


@pytest.mark.parametrize("text", ["", "x", "æ", "A" * 9_000, "1700-0", write_token({})[:-1] + "!", "kgKA"])
def test_an_invalid_token_is_read_as_a_token_without_positions(text: str) -> None:
    """A client that repeats its token must be able to continue."""
    assert read_token(text) == {}


_T = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("operator", "kind", "wanted", "value", "fits"),
    [
        ("eq", "string", ["NO"], "NO", True),
        ("eq", "string", ["NO"], None, False),  # A null is equal to no value.
        ("ne", "string", ["NO"], None, True),  # A null is unequal to every value.
        ("ne", "string", ["NO"], "NO", False),
        ("in", "integer", ["1", "2"], 2, True),
        ("in", "integer", ["1", "2"], None, False),
        ("gte", "integer", ["2"], 2, True),
        ("gt", "integer", ["2"], 2, False),
        ("lt", "number", ["0.5"], 0.25, True),
        ("lte", "string", ["Z"], "a", False),  # Texts are compared by code point, as in the database.
        ("gt", "integer", ["2"], None, False),
        ("eq", "timestamp", ["1767225600000"], _T, True),
        ("lt", "timestamp", [_T], "2025-12-31T23:59:59.999Z", True),
        ("eq", "boolean", ["true"], True, True),
        ("isnull", "boolean", ["true"], None, True),
        ("isnull", "boolean", ["false"], None, False),
        ("isnull", "boolean", ["false"], "x", True),
    ],
)
def test_filters_match_the_same_rows_as_in_the_database(
    operator: str, kind: str, wanted: list[str], value: Any, *, fits: bool
) -> None:
    values = tuple(parse_value(text, kind) for text in wanted)
    assert RowFilter((Filter("c", kind, operator, values),)).matches({"c": value}) is fits


def change(rev: int, versions: dict[str, int], *, max_rev: int | None = None) -> Change:
    rows = [{"k": key, "window_start": "t", "n": n} for key, n in versions.items()]
    return Change("a", rev, max_rev or rev, rows_by_key(rows))


def sent(pending: Pending, row_filter: RowFilter) -> dict[str, int]:
    """Return the rows of the messages, as a client stores them."""
    client_rows = {}
    for text in pending.messages("a", row_filter):
        message = msgspec.json.decode(text)
        assert message["rev"] == pending.max_rev
        client_rows.update({row["k"]: row["n"] for row in message["rows"]})
    return client_rows


_versions = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 99), max_size=4)


@settings(deadline=None)
@given(offered=st.lists(_versions, min_size=1, max_size=12), snapshot=st.integers(0, 12), filtered=st.booleans())
def test_pending_changes_are_conflated_to_the_newest_row_of_each_window(
    *, offered: list[dict[str, int]], snapshot: int, filtered: bool
) -> None:
    """Rows that a snapshot contains are not sent again."""
    row_filter = RowFilter((Filter("k", "string", "in", ("a", "b")),) if filtered else ())
    pending, expected = Pending(), {}
    for rev, versions in enumerate(offered, start=1):
        pending.add(change(rev, versions), row_filter)
        expected |= {k: (rev, n) for k, n in versions.items() if not filtered or k in "ab"}
    if snapshot:
        pending.drop(snapshot, row_filter)
        expected = {k: (rev, n) for k, (rev, n) in expected.items() if rev > snapshot}
    assert sent(pending, row_filter) == {k: n for k, (_, n) in expected.items()}


def test_listeners_share_the_encoded_messages_of_a_change() -> None:
    single, pending, other = change(1, {"a": 1}), Pending(), Pending()
    pending.add(single, RowFilter())
    other.add(single, RowFilter())
    assert pending.messages("a", RowFilter()) is other.messages("a", RowFilter())


def test_rows_are_split_into_messages_of_bounded_size() -> None:
    """Many clients refuse messages of more than 1 MiB."""
    rows = [b"x" * 1_000] * 1_000
    messages = split_rows(rows)
    assert [row for piece in messages for row in piece] == rows
    assert len(messages) > 1
    assert all(sum(map(len, piece)) <= MESSAGE_BYTES for piece in messages)
    assert split_rows([b"x" * (MESSAGE_BYTES + 1)] * 2) == [[b"x" * (MESSAGE_BYTES + 1)]] * 2
    assert split_rows([]) == []


def test_a_server_sent_event_contains_the_kind_of_message_and_the_resume_token() -> None:
    progress = Progress(1_000, {"a": None}, {"a": Position(1, 2)}, degraded=True)
    text = encode_event(Message("progress", progress.message, progress.resume)).decode()
    head, identity, data, *end = text.split("\n")
    assert (head, identity, end) == ("event: progress", f"id: {progress.resume}", ["", ""])
    assert msgspec.json.decode(data.removeprefix("data: ")) == {
        "type": "progress", "watermark": "1970-01-01T00:00:01Z", "closed_until": {"a": None},
        "resume": progress.resume, "degraded": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "expected"),
    [
        (None, "a.example", (), True),  # The client is not a page in a browser.
        ("https://a.example", "a.example", (), True),
        ("http://a.example:8081", "A.example:8081", (), True),
        ("https://a.example:444", "a.example", (), False),
        ("https://evil.example", "a.example", (), False),
        ("https://a.example.evil.example", "a.example", (), False),
        ("null", "a.example", (), False),
        ("https://b.example", "a.example", ("https://b.example",), True),
        ("https://b.example", "a.example", ("*",), True),
        ("https://b.example", None, (), False),
    ],
)
def test_only_pages_of_an_allowed_origin_may_connect(
    origin: str | None, host: str | None, allowed: tuple[str, ...], *, expected: bool
) -> None:
    assert is_origin_allowed(origin, host, allowed) is expected


class FakeListener:
    """A listener that always has a message until `end` is called."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.close_reason: CloseReason | None = None

    def end(self, close_reason: CloseReason) -> None:
        self.close_reason = close_reason
        self.ended.set()

    async def next(self) -> list[Message]:
        await asyncio.sleep(0)
        return [Message("progress", b"{}")]


class Client:
    """A connection that reads this number of messages, then none, and disconnects when the test says."""

    def __init__(self, reads: int, *, breaks: bool = False) -> None:
        self.reads, self.breaks, self.messages_read = reads, breaks, 0
        self.disconnects = asyncio.Event()

    async def send(self, message: Message) -> None:
        if self.messages_read >= self.reads:
            if self.breaks:
                raise Disconnected
            await asyncio.Event().wait()
        self.messages_read += 1

    async def wait_disconnected(self) -> None:
        await self.disconnects.wait()


QUICK = ClientTimeouts(read_seconds=0.05, last_read_seconds=0.05, auth_seconds=0.05, access_check_seconds=0.0)


def served(
    listener: FakeListener, client: Client, *, refused: CloseReason | None = None, timeouts: ClientTimeouts = QUICK
) -> CloseReason | None:
    async def run() -> CloseReason | None:
        async with asyncio.timeout(10):
            return await serve(cast(Any, listener), client, lambda: refused, timeouts)

    return asyncio.run(run())


def test_a_client_that_does_not_read_is_disconnected() -> None:
    close_reason = served(FakeListener(), client := Client(reads=3))
    assert close_reason is not None
    assert (close_reason.code, close_reason.close_code, client.messages_read) == ("slow_client", 1013, 3)


def test_a_client_that_has_disconnected_is_no_error() -> None:
    assert served(FakeListener(), Client(reads=3, breaks=True)) is None


def test_the_end_of_a_connection_is_detected_while_the_client_does_not_read() -> None:
    client = Client(reads=0)
    client.disconnects.set()
    assert served(FakeListener(), client, timeouts=ClientTimeouts(read_seconds=60)) is None


def test_a_process_that_stops_does_not_wait_for_clients() -> None:
    listener = FakeListener()
    listener.end(STOPPING)
    timeouts = ClientTimeouts(read_seconds=60, last_read_seconds=0.05)
    assert served(listener, Client(reads=0), timeouts=timeouts) == STOPPING


def test_a_connection_ends_if_its_key_is_no_longer_allowed() -> None:
    refused = CloseReason("forbidden", "not any more", 4403)
    assert served(FakeListener(), Client(reads=10**9), refused=refused) == refused


@pytest.mark.parametrize(("version", "other"), [(1, False), (2, True), (None, False)])
def test_entries_of_another_version_of_the_table_are_recognized(version: int | None, other: bool) -> None:
    """During a rollout, some processors still publish the former version. Older releases publish no version."""
    entry = Entry(aggregation="by_country", rev=3, version=version)
    assert has_other_version(entry, model()) is other


def test_an_entry_in_parts_is_joined() -> None:
    """Entries of two processors may be interleaved. An entry whose part was missed is truncated."""
    parts = PartAssembler()
    first = [Entry(part_of="a", version=1, rev=rev, rows=({"k": rev},)) for rev in (7, 8)]
    last = [
        Entry(aggregation="a", version=1, rev=rev, revs=(rev,), rows=({"k": -rev},), truncated=True, parts=1)
        for rev in (8, 7)
    ]
    assert [parts.add(entry) for entry in first] == [None, None]
    assert [parts.add(entry) for entry in last] == [
        msgspec.structs.replace(entry, rows=({"k": entry.rev}, *entry.rows), truncated=False) for entry in last
    ]
    assert parts.add(last[0]) == last[0]
    whole = Entry(aggregation="a", rev=9, revs=(9,))
    assert parts.add(whole) == whole


def test_the_number_of_incomplete_entries_is_bounded() -> None:
    parts = PartAssembler()
    for rev in range(1_000):
        assert parts.add(Entry(part_of="a", version=1, rev=rev, rows=({"k": 1},))) is None
    assert len(parts._waiting) <= 16


class Snapshots:
    """Snapshots that exist for one aggregation and raise an error for the other."""

    def __init__(self) -> None:
        self.error: Exception | None = psycopg.DataError("timestamp too large (after year 10K)")

    async def get(self, _: object, name: str, __: object, *, rev: int) -> Snapshot:
        if name == "by_both" and self.error is not None:
            raise self.error
        return Snapshot(rev, [("snapshot", b"{}")])


class FakeBroadcaster:
    """A broadcaster without changes."""

    def __init__(self) -> None:
        self.snapshots = Snapshots()
        self.progress = Progress(positions={"by_both": Position(1, 5), "by_country": Position(2, 6)})

    async def wait_ready(self) -> bool:
        return True

    def delivered_rev(self, _: str) -> int:
        return 3


def test_an_aggregation_that_cannot_be_read_does_not_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is sent once. The token omits the aggregation until it can be read again."""
    broadcaster = FakeBroadcaster()
    listener = Listener(cast(Any, broadcaster), cast(Any, None), model(), parse(""))

    async def next_messages() -> list[dict[str, Any]]:
        listener.advance(broadcaster.progress)
        messages = await listener.next()
        assert listener.close_reason is None
        tokens.extend(set(read_token(message.resume)) for message in messages if message.kind == "progress")
        return [{"kind": message.kind, **msgspec.json.decode(message.data)} for message in messages]

    async def run() -> None:
        first = await next_messages()
        assert [message["kind"] for message in first] == ["hello", "error", "snapshot", "progress"]
        assert (first[1]["aggregation"], first[1]["code"]) == ("by_both", "value_refused")
        assert "other aggregations can" in first[1]["detail"]
        assert [message["kind"] for message in await next_messages()] == ["progress"]  # The error is not repeated.
        broadcaster.snapshots.error = None
        assert [message["kind"] for message in await next_messages()] == ["reset", "snapshot", "progress"]

    tokens: list[set[str]] = []
    monkeypatch.setattr("tidemill_api.live.listener.UNREADABLE_RETRY_SECONDS", 0.0)
    asyncio.run(run())
    assert tokens == [{"by_country"}, {"by_country"}, {"by_both", "by_country"}]


def test_a_value_that_cannot_be_decoded_is_null_in_the_row() -> None:
    decode = {b"good": 3}.__getitem__
    encoder = RowEncoder([Column("k", "string"), Column("people", "integer", decode=decode)])
    assert encoder.record(("a", b"good")) == {"k": "a", "people": 3}
    assert encoder.record(("b", b"damaged")) == {"k": "b", "people": None}


def test_zeros_of_both_signs_are_the_same_group() -> None:
    positive, negative = ({"v": zero, "window_start": "2026-03-01T00:00:00Z", "n": 1} for zero in (0.0, -0.0))
    assert rows_by_key([positive]).keys() == rows_by_key([negative]).keys() == rows_by_key([positive, negative]).keys()
    assert rows_by_key([positive]).keys() != rows_by_key([{**positive, "v": None}]).keys()
