"""Live connections without servers: filters, tokens, conflation, and clients that do not read."""

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
from tidemill_api.live.change import MESSAGE_BYTES, Change, Entry, Parts, RowFilter, keyed, pieces
from tidemill_api.live.events import event
from tidemill_api.live.listener import Listener, Message, Pending
from tidemill_api.live.progress import Mark, Progress, read_token, write_token
from tidemill_api.live.pump import Left, Patience, serve
from tidemill_api.live.query import take_live
from tidemill_api.live.snapshot import Snapshot
from tidemill_api.live.socket import origin_allowed
from tidemill_api.live.upstream import STOPPING, Ending, of_another_version
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Column, Filter
from tidemill_api.query.values import parse_value
from tidemill_chassis.web.problems import Problem
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig


def model() -> PipelineModel:
    """Two aggregations that share one group column."""
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


def take(query: str, last_event_id: str | None = None) -> Any:
    return take_live(model(), Parameters.from_query(query.encode()), last_event_id)


def test_all_aggregations_unless_some_are_named() -> None:
    assert list(take("").wanted) == ["by_both", "by_country"]
    assert list(take("aggregations=by_country,by_country").wanted) == ["by_country"]


def test_a_filter_goes_where_its_column_is() -> None:
    wanted = take("device__in=1,2&country=NO").wanted
    country = Filter("country", "string", "eq", ("NO",))
    assert wanted["by_both"] == RowFilter((Filter("device", "integer", "in", (1, 2)), country))
    assert wanted["by_country"] == RowFilter((country,))


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("aggregations=by_city", "invalid_parameter"),
        ("aggregations=", "invalid_parameter"),
        ("city=Oslo", "unknown_parameter"),
        ("device=two", "invalid_parameter"),
        ("aggregations=by_country&device=1", "unknown_parameter"),  # no chosen aggregation has it
        ("n__gte=3", "unknown_parameter"),  # metrics change, rows would come and go
    ],
)
def test_what_cannot_be_meant_is_refused(query: str, code: str) -> None:
    with pytest.raises(Problem) as refused:
        take(query)
    assert refused.value.code == code


def test_the_last_event_id_is_newer_than_the_address() -> None:
    old, new = write_token({"by_country": Mark(1, 1)}), write_token({"by_country": Mark(1, 2)})
    assert take("").resume is None
    assert take(f"resume={old}").resume == {"by_country": Mark(1, 1)}
    assert take(f"resume={old}", new).resume == {"by_country": Mark(1, 2)}


_marks = st.builds(Mark, st.integers(0, 2**32), st.integers(0, 2**62), st.none() | st.integers(-(2**50), 2**50))


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), _marks, max_size=5))
def test_tokens_are_read_as_they_were_written(marks: dict[str, Mark]) -> None:
    assert read_token(write_token(marks)) == marks


@pytest.mark.parametrize("text", ["", "x", "æ", "A" * 9_000, "1700-0", write_token({})[:-1] + "!", "kgKA"])
def test_what_is_no_token_is_a_gap(text: str) -> None:
    """A client that repeats it must get on nevertheless."""
    assert read_token(text) == {}


_T = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("operator", "kind", "wanted", "value", "fits"),
    [
        ("eq", "string", ["NO"], "NO", True),
        ("eq", "string", ["NO"], None, False),  # a null is equal to nothing
        ("ne", "string", ["NO"], None, True),  # and unequal to everything
        ("ne", "string", ["NO"], "NO", False),
        ("in", "integer", ["1", "2"], 2, True),
        ("in", "integer", ["1", "2"], None, False),
        ("gte", "integer", ["2"], 2, True),
        ("gt", "integer", ["2"], 2, False),
        ("lt", "number", ["0.5"], 0.25, True),
        ("lte", "string", ["Z"], "a", False),  # by code point, as the database compares
        ("gt", "integer", ["2"], None, False),
        ("eq", "timestamp", ["1767225600000"], _T, True),
        ("lt", "timestamp", [_T], "2025-12-31T23:59:59.999Z", True),
        ("eq", "boolean", ["true"], True, True),
        ("isnull", "boolean", ["true"], None, True),
        ("isnull", "boolean", ["false"], None, False),
        ("isnull", "boolean", ["false"], "x", True),
    ],
)
def test_filters_decide_as_the_database_does(
    operator: str, kind: str, wanted: list[str], value: Any, *, fits: bool
) -> None:
    values = tuple(parse_value(text, kind) for text in wanted)
    assert RowFilter((Filter("c", kind, operator, values),)).fits({"c": value}) is fits


def change(rev: int, versions: dict[str, int], *, label: int | None = None) -> Change:
    rows = [{"k": key, "window_start": "t", "n": n} for key, n in versions.items()]
    return Change("a", rev, label or rev, keyed(rows))


def sent(pending: Pending, wanted: RowFilter) -> dict[str, int]:
    """The rows of the messages, as a client keeps them."""
    found = {}
    for text in pending.messages("a", wanted):
        message = msgspec.json.decode(text)
        assert message["rev"] == pending.label
        found.update({row["k"]: row["n"] for row in message["rows"]})
    return found


_versions = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 99), max_size=4)


@settings(deadline=None)
@given(offered=st.lists(_versions, min_size=1, max_size=12), snapshot=st.integers(0, 12), filtered=st.booleans())
def test_conflation_keeps_the_newest_of_each_window(
    *, offered: list[dict[str, int]], snapshot: int, filtered: bool
) -> None:
    """However many changes wait, each window is sent once; what a snapshot holds is not sent again."""
    wanted = RowFilter((Filter("k", "string", "in", ("a", "b")),) if filtered else ())
    pending, expected = Pending(), {}
    for rev, versions in enumerate(offered, start=1):
        pending.add(change(rev, versions), wanted)
        expected |= {k: (rev, n) for k, n in versions.items() if not filtered or k in "ab"}
    if snapshot:
        pending.drop(snapshot, wanted)
        expected = {k: (rev, n) for k, (rev, n) in expected.items() if rev > snapshot}
    assert sent(pending, wanted) == {k: n for k, (_, n) in expected.items()}


def test_a_lone_change_is_not_encoded_for_each_listener() -> None:
    only, pending, other = change(1, {"a": 1}), Pending(), Pending()
    pending.add(only, RowFilter())
    other.add(only, RowFilter())
    assert pending.messages("a", RowFilter()) is other.messages("a", RowFilter())


def test_messages_stay_small() -> None:
    """Common clients refuse messages of more than 1 MiB."""
    rows = [b"x" * 1_000] * 1_000
    found = pieces(rows)
    assert [row for piece in found for row in piece] == rows
    assert len(found) > 1
    assert all(sum(map(len, piece)) <= MESSAGE_BYTES for piece in found)
    assert pieces([b"x" * (MESSAGE_BYTES + 1)] * 2) == [[b"x" * (MESSAGE_BYTES + 1)]] * 2
    assert pieces([]) == []


def test_an_event_names_its_message_and_where_it_leads() -> None:
    progress = Progress(1_000, {"a": None}, {"a": Mark(1, 2)}, degraded=True)
    found = event(Message("progress", progress.message, progress.resume)).decode()
    head, identity, data, *end = found.split("\n")
    assert (head, identity, end) == ("event: progress", f"id: {progress.resume}", ["", ""])
    assert msgspec.json.decode(data.removeprefix("data: ")) == {
        "type": "progress", "watermark": "1970-01-01T00:00:01Z", "closed_until": {"a": None},
        "resume": progress.resume, "degraded": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "expected"),
    [
        (None, "a.example", (), True),  # no browser's page
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
def test_only_pages_of_an_allowed_origin_may_listen(
    origin: str | None, host: str | None, allowed: tuple[str, ...], *, expected: bool
) -> None:
    assert origin_allowed(origin, host, allowed) is expected


class Talker:
    """In place of a listener: always has something to say, until it is ended."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.ending: Ending | None = None

    def end(self, ending: Ending) -> None:
        self.ending = ending
        self.ended.set()

    async def next(self) -> list[Message]:
        await asyncio.sleep(0)
        return [Message("progress", b"{}")]


class Client:
    """In place of a connection: reads so many messages, then nothing; leaves when told."""

    def __init__(self, reads: int, *, breaks: bool = False) -> None:
        self.reads, self.breaks, self.got = reads, breaks, 0
        self.leaves = asyncio.Event()

    async def put(self, message: Message) -> None:
        if self.got >= self.reads:
            if self.breaks:
                raise Left
            await asyncio.Event().wait()
        self.got += 1

    async def left(self) -> None:
        await self.leaves.wait()


QUICK = Patience(slow=0.05, last=0.05, auth=0.05, allowed=0.0)


def served(talker: Talker, client: Client, **options: Any) -> Ending | None:
    async def run() -> Ending | None:
        async with asyncio.timeout(10):
            return await serve(talker, client, options.get("allowed", lambda: None), options.get("patience", QUICK))  # type: ignore[arg-type]

    return asyncio.run(run())


def test_a_client_that_does_not_read_is_sent_away() -> None:
    ending = served(Talker(), client := Client(reads=3))
    assert ending is not None
    assert (ending.code, ending.close_code, client.got) == ("slow_client", 1013, 3)


def test_a_client_that_has_gone_is_no_fault() -> None:
    assert served(Talker(), Client(reads=3, breaks=True)) is None


def test_a_client_that_leaves_is_noticed_while_it_does_not_read() -> None:
    client = Client(reads=0)
    client.leaves.set()
    assert served(Talker(), client, patience=Patience(slow=60)) is None


def test_the_end_of_the_process_waits_for_no_client() -> None:
    talker = Talker()
    talker.end(STOPPING)
    assert served(talker, Client(reads=0), patience=Patience(slow=60, last=0.05)) == STOPPING


def test_a_key_that_is_not_good_any_more_ends_it() -> None:
    refused = Ending("forbidden", "not any more", 4403)
    assert served(Talker(), Client(reads=10**9), allowed=lambda: refused) == refused


@pytest.mark.parametrize(("version", "other"), [(1, False), (2, True), (None, False)])
def test_what_processors_say_of_another_version_is_not_handed_on(version: int | None, other: bool) -> None:
    """While a switch is rolled out, some still tell of the table of before; those of an older release do not say."""
    entry = Entry(aggregation="by_country", rev=3, version=version)
    assert of_another_version(entry, model()) is other


def test_entries_in_parts_are_put_together() -> None:
    """Also if those of two processors come in turns; one whose part was missed stays truncated."""
    parts = Parts()
    first = [Entry(part_of="a", version=1, rev=rev, rows=({"k": rev},)) for rev in (7, 8)]
    last = [
        Entry(aggregation="a", version=1, rev=rev, revs=(rev,), rows=({"k": -rev},), truncated=True, parts=1)
        for rev in (8, 7)
    ]
    assert [parts.take(entry) for entry in first] == [None, None]
    assert [parts.take(entry) for entry in last] == [
        msgspec.structs.replace(entry, rows=({"k": entry.rev}, *entry.rows), truncated=False) for entry in last
    ]
    assert parts.take(last[0]) == last[0]
    whole = Entry(aggregation="a", rev=9, revs=(9,))
    assert parts.take(whole) == whole


def test_parts_that_are_never_completed_are_forgotten() -> None:
    parts = Parts()
    for rev in range(1_000):
        assert parts.take(Entry(part_of="a", version=1, rev=rev, rows=({"k": 1},))) is None
    assert len(parts._waiting) <= 16


class Snapshots:
    """Answers for one aggregation, refuses the other."""

    def __init__(self) -> None:
        self.error: Exception | None = psycopg.DataError("timestamp too large (after year 10K)")

    async def get(self, _: object, name: str, __: object, *, rev: int) -> Snapshot:
        if name == "by_both" and self.error is not None:
            raise self.error
        return Snapshot(rev, [("snapshot", b"{}")])


class Upstream:
    """An upstream at rest."""

    def __init__(self) -> None:
        self.snapshots = Snapshots()
        self.progress = Progress(marks={"by_both": Mark(1, 5), "by_country": Mark(2, 6)})

    async def ready(self) -> bool:
        return True

    def delivered(self, _: str) -> int:
        return 3


def test_an_aggregation_that_cannot_be_read_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told once, is not in the token, and comes with a reset and a snapshot once it can be read."""
    upstream = Upstream()
    listener = Listener(cast(Any, upstream), cast(Any, None), model(), take(""))

    async def told() -> list[dict[str, Any]]:
        listener.advance(upstream.progress)
        messages = await listener.next()
        assert listener.ending is None
        tokens.extend(set(read_token(message.resume)) for message in messages if message.kind == "progress")
        return [{"kind": message.kind, **msgspec.json.decode(message.data)} for message in messages]

    async def run() -> None:
        begun = await told()
        assert [message["kind"] for message in begun] == ["hello", "error", "snapshot", "progress"]
        assert (begun[1]["aggregation"], begun[1]["code"]) == ("by_both", "value_refused")
        assert "other aggregations can" in begun[1]["detail"]
        assert [message["kind"] for message in await told()] == ["progress"]  # tried again, and not told again
        upstream.snapshots.error = None
        assert [message["kind"] for message in await told()] == ["reset", "snapshot", "progress"]

    tokens: list[set[str]] = []
    monkeypatch.setattr("tidemill_api.live.listener.UNREAD_SECONDS", 0.0)
    asyncio.run(run())
    assert tokens == [{"by_country"}, {"by_country"}, {"by_both", "by_country"}]


def test_a_value_that_cannot_be_decoded_is_null() -> None:
    """A damaged sketch costs one value, not the answer."""
    decode = {b"good": 3}.__getitem__
    encoder = RowEncoder([Column("k", "string"), Column("people", "integer", decode=decode)])
    assert encoder.record(("a", b"good")) == {"k": "a", "people": 3}
    assert encoder.record(("b", b"damaged")) == {"k": "b", "people": None}


def test_both_zeros_are_one_group() -> None:
    """A window that is told of with either is the same row."""
    positive, negative = ({"v": zero, "window_start": "2026-03-01T00:00:00Z", "n": 1} for zero in (0.0, -0.0))
    assert keyed([positive]).keys() == keyed([negative]).keys() == keyed([positive, negative]).keys()
    assert keyed([positive]).keys() != keyed([{**positive, "v": None}]).keys()
