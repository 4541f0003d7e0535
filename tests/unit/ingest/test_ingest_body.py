"""Tests of request bodies: media types, compression, damaged bodies, decompression bombs and limits."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import random
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from tidemill_chassis.web.problems import Problem
from tidemill_ingest.body import MAX_BODY_BYTES, MAX_EVENTS, Events, decompress, split_events
from tidemill_ingest.body_reader import MemoryBudget, read_body

MIB = 1024 * 1024
CHUNK = bytes(MIB)
NDJSON, JSON = {"content-type": "application/x-ndjson"}, {"content-type": "application/json"}
CLOUD = {"content-type": "application/cloudevents+json"}
CLOUDS = {"content-type": "application/cloudevents-batch+json"}
ENVELOPE = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
BINARY = {**JSON, "ce-specversion": "1.0", "ce-id": "7", "ce-source": "/s", "ce-type": "t"}


def encoded(**members: Any) -> bytes:
    return json.dumps({**ENVELOPE, **members}, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("headers", "body", "events"),
    [
        (NDJSON, b'{"a":1}\n{"b":2}\n', Events([b'{"a":1}', b'{"b":2}'])),
        (NDJSON, b'\r\n {"a": 1}\t\r\n\n{"b":2}', Events([b'{"a": 1}', b'{"b":2}'])),
        (NDJSON, b'\xef\xbb\xbf{"a":1}', Events([b'{"a":1}'])),
        (NDJSON, b"not JSON\n[1]", Events([b"not JSON", b"[1]"])),
        ({"content-type": "Application/NDJSON; charset=UTF8"}, b"{}", Events([b"{}"])),
        (JSON, b' [{"a": 1} , {"b":[1,2]},3, "x"]\n', Events([b'{"a": 1}', b'{"b":[1,2]}', b"3", b'"x"'])),
        (JSON, b'\n{"a": 1}\r\n', Events([b'{"a": 1}'])),
        (JSON, b'{"a": ', Events([b'{"a":'])),
        (CLOUD, encoded(data={"a": 1}), Events([b'{"a":1}'], ["1"])),
        (CLOUD, encoded(data_base64=base64.b64encode(b'{"a": 1}').decode()), Events([b'{"a": 1}'], ["1"])),
        (CLOUD, encoded(datacontenttype="application/vnd.x+json", data=[1]), Events([b"[1]"], ["1"])),
        (CLOUD, encoded(), Events([b"null"], ["1"])),
        (CLOUDS, b"[" + encoded(data=1) + b"," + encoded(id="2", data=2) + b"]", Events([b"1", b"2"], ["1", "2"])),
        (BINARY, b'{"a": 1}', Events([b'{"a": 1}'], ["7"])),
    ],
    ids=[
        "lines", "blank lines and white space around events", "a byte order mark", "invalid events are split off too",
        "the media type's letter case and charset", "an array's elements keep their bytes", "a single object",
        "an incomplete object is one event", "structured", "structured, base64", "structured, another JSON type",
        "structured, no data", "batch", "binary",
    ],
)  # fmt: skip
def test_a_body_is_split_into_events_whose_bytes_are_unchanged(
    headers: dict[str, str], body: bytes, events: Events
) -> None:
    assert split_events(body, headers) == events


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({}, b"{}", 415, "unsupported_media_type"),
        ({"content-type": "text/plain"}, b"{}", 415, "unsupported_media_type"),
        ({"content-type": "application/json; charset=latin-1"}, b"{}", 415, "unsupported_charset"),
        (NDJSON, b"", 400, "no_events"),
        (NDJSON, b"\n \r\n", 400, "no_events"),
        (JSON, b"[]", 400, "no_events"),
        (JSON, b"  ", 400, "no_events"),
        (JSON, b"[{}", 400, "malformed_body"),
        (JSON, b"[{}] x", 400, "malformed_body"),
        (JSON, b"[" * 100_000, 400, "malformed_body"),
        (JSON, b'["\xff"', 400, "malformed_body"),
        (JSON, b"[" + b",".join([b"{}"] * (MAX_EVENTS + 1)) + b"]", 413, "too_many_events"),
        (JSON, b"[" + b"0," * 3_000_000 + b"0]", 413, "too_many_events"),
        (NDJSON, b"{}\n" * (MAX_EVENTS + 1), 413, "too_many_events"),
        (NDJSON, b"\n" * 5_000_000, 413, "too_many_events"),
        (CLOUD, b"[]", 400, "malformed_body"),
        (CLOUD, b'{"specversion":"1.0"}', 400, "malformed_body"),
        (CLOUD, encoded(specversion="0.3"), 400, "unsupported_specversion"),
        (CLOUD, encoded(datacontenttype="text/xml", data="<a/>"), 415, "unsupported_media_type"),
        (CLOUD, encoded(data_base64="%%%"), 400, "malformed_body"),
        (CLOUD, encoded(data_base64="ø"), 400, "malformed_body"),
        (CLOUDS, b"[" + encoded() + b',{"id":"2"}]', 400, "malformed_body"),
        ({**BINARY, "content-type": "text/xml"}, b"<a/>", 415, "unsupported_media_type"),
        ({**BINARY, "ce-id": ""}, b"{}", 400, "malformed_body"),
        ({**BINARY, "ce-specversion": "2"}, b"{}", 400, "unsupported_specversion"),
    ],
)
def test_a_body_that_cannot_be_split_is_refused(headers: dict[str, str], body: bytes, status: int, code: str) -> None:
    with pytest.raises(Problem) as refused:
        split_events(body, headers)
    assert (refused.value.status, refused.value.code) == (status, code)


def test_a_body_may_have_the_maximum_number_of_events() -> None:
    assert len(split_events(b"{}\n" * MAX_EVENTS, NDJSON).values) == MAX_EVENTS
    assert len(split_events(b"[" + b",".join([b"{}"] * MAX_EVENTS) + b"]", JSON).values) == MAX_EVENTS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(json_values, min_size=1, max_size=8))
def test_an_array_and_lines_of_the_same_values_give_the_same_events(values: list[Any]) -> None:
    lines = [msgspec.json.encode(value) for value in values]
    assert split_events(b"[" + b",".join(lines) + b"]", JSON).values == lines
    assert split_events(b"\n".join(lines), NDJSON).values == lines


COMPRESS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "zstd": zstandard.compress, "": bytes, "identity": bytes}


@pytest.mark.parametrize("encoding", list(COMPRESS))
@given(st.lists(st.binary(max_size=5000), min_size=1, max_size=4))
def test_a_compressed_body_is_decompressed(encoding: str, parts: list[bytes]) -> None:
    """A body may have several gzip members or zstd frames."""
    assert decompress(b"".join(map(COMPRESS[encoding], parts)), encoding.upper()) == b"".join(parts)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@given(data=st.data())
def test_a_body_that_is_truncated_anywhere_is_refused(encoding: str, data: st.DataObject) -> None:
    whole = COMPRESS[encoding](random.Random(1).randbytes(3000))
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(Problem) as refused:
        decompress(whole[:cut], encoding)
    assert (refused.value.status, refused.value.code) == (400, "damaged_body")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@given(st.binary(min_size=1, max_size=200))
def test_random_bytes_are_decompressed_or_refused(encoding: str, noise: bytes) -> None:
    with contextlib.suppress(Problem):
        assert len(decompress(noise, encoding)) <= MAX_BODY_BYTES


def wide_window() -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(b"{}") + packer.flush()


@pytest.mark.parametrize(
    ("make", "encoding", "status"),
    [
        pytest.param(lambda: gzip.compress(bytes(64 * MIB), 9), "gzip", 413, id="gzip, 1 to 1000"),
        pytest.param(lambda: zstandard.compress(bytes(64 * MIB), 19), "zstd", 413, id="zstd, 1 to 30000"),
        pytest.param(lambda: gzip.compress(bytes(MAX_BODY_BYTES + 1)), "gzip", 413, id="gzip, one byte too much"),
        pytest.param(lambda: gzip.compress(b"") * 100_000, "gzip", 400, id="gzip, empty members"),
        pytest.param(lambda: zstandard.compress(b"") * 100_000, "zstd", 400, id="zstd, empty frames"),
        pytest.param(wide_window, "zstd", 400, id="zstd, a window of 128 MiB"),
    ],
)
def test_a_decompression_bomb_is_refused_before_it_takes_much_memory(
    make: Callable[[], bytes], encoding: str, status: int
) -> None:
    body = make()
    tracemalloc.start()
    try:
        with pytest.raises(Problem) as refused:
            decompress(body, encoding)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.status == status
    assert peak < 6 * MAX_BODY_BYTES


def test_a_body_may_have_the_maximum_size() -> None:
    assert len(decompress(gzip.compress(bytes(MAX_BODY_BYTES)), "gzip")) == MAX_BODY_BYTES
    assert len(decompress(bytes(MAX_BODY_BYTES), "")) == MAX_BODY_BYTES


def test_an_unknown_encoding_is_refused() -> None:
    for encoding in ("br", "gzip, zstd", "deflate"):
        with pytest.raises(Problem) as refused:
            decompress(zlib.compress(b"{}"), encoding)
        assert refused.value.status == 415


def read(
    chunks: list[bytes], headers: dict[str, str], memory: MemoryBudget, *, disconnects: bool = False
) -> tuple[bytes, int]:
    """Return the body that is read from a request, and the number of chunks that were received."""
    received = 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        if received > len(chunks) or (disconnects and received == len(chunks)):
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunks[received - 1], "more_body": received < len(chunks)}

    async def scenario() -> bytes:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        request = Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)
        with memory.reservation() as reservation:
            return await read_body(request, reservation)

    try:
        return asyncio.run(scenario()), received
    except Problem as refused:
        refused.extra["received"] = received
        raise


def test_the_chunks_of_a_body_are_joined() -> None:
    assert read([b"ab", b"", b"cd"], {}, MemoryBudget()) == (b"abcd", 3)
    packed = gzip.compress(random.Random(1).randbytes(200_000))
    assert read([packed[:99], packed[99:]], {"content-encoding": "gzip"}, MemoryBudget())[0] == gzip.decompress(packed)


@pytest.mark.parametrize(
    ("chunks", "headers", "received"),
    [
        ([CHUNK] * 11, {}, 11),
        ([CHUNK] * 1000, {}, 41),
        ([CHUNK] * 11, {"content-length": "11534336", "expect": "100-continue"}, 0),
    ],
    ids=[
        "the rest is read, to let the sender receive the answer",
        "the rest is not read without end",
        "nothing is read if the sender asks first",
    ],
)
def test_a_body_that_is_too_large_is_refused(chunks: list[bytes], headers: dict[str, str], received: int) -> None:
    memory = MemoryBudget(11 * MIB)
    with pytest.raises(Problem) as refused:
        read(chunks, headers, memory)
    assert (refused.value.status, refused.value.headers["connection"]) == (413, "close")
    assert refused.value.extra["received"] == received
    assert read([CHUNK] * 10, {}, memory)[0] == CHUNK * 10, "the memory of the refused body is released"


def test_the_memory_of_all_bodies_is_bounded() -> None:
    memory = MemoryBudget(3 * MIB)
    with memory.reservation() as reservation:
        reservation.add(2 * MIB)
        with pytest.raises(Problem) as refused:
            read([CHUNK, CHUNK], {}, memory)
        assert (refused.value.status, "retry-after" in refused.value.headers) == (503, True)
        assert read([CHUNK], {}, memory)[0] == CHUNK


def test_memory_is_released_if_the_client_disconnects_within_a_body() -> None:
    memory = MemoryBudget(3 * MIB)
    for _ in range(5):
        with pytest.raises(ClientDisconnect):
            read([CHUNK, CHUNK, b""], {}, memory, disconnects=True)


WHOLE = [
    (CLOUD, encoded(data={"a": 1}), [{**ENVELOPE, "data": {"a": 1}}]),
    (CLOUDS, b"[" + encoded(data=1) + b"]", [{**ENVELOPE, "data": 1}]),
    (
        {**BINARY, "ce-subject": "a%20b"},
        b' {"a": 1}\n',
        [{"specversion": "1.0", "id": "7", "source": "/s", "type": "t", "subject": "a b", "data": {"a": 1}}],
    ),
    (BINARY, b"", [{"specversion": "1.0", "id": "7", "source": "/s", "type": "t", "data": None}]),
    (JSON, b'{"a": 1}', [{"a": 1}]),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "body", "events"), WHOLE)
def test_cloud_events_keep_their_attributes_if_the_pipeline_reads_envelopes(
    headers: dict[str, str], body: bytes, events: list[dict[str, Any]]
) -> None:
    """Events of every mode are written in structured mode."""
    result = split_events(body, headers, keep_attributes=True)
    assert [json.loads(value) for value in result.values] == events
    assert result.ids == split_events(body, headers).ids
