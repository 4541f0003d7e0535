"""Tests of records: keys, marks of invalid events, and records that are cut to be written."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_contract.events.decoder import QUARANTINE_PREFIX, InvalidEvent, Reason
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_ingest.records import TRUNCATED_BYTES, RecordBuilder, Records


def config(key: str | None, **source: Any) -> PipelineConfig:
    fields = [{"name": name, "type": name} for name in ("string", "integer", "number", "boolean", "timestamp")]
    spec = PipelineSpec.model_validate(
        {
            "source": {"fields": fields, "key": key, **source},
            "aggregations": [
                {
                    "name": "a",
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [{"name": "m", "function": "count"}],
                }
            ],
        }
    )
    return PipelineConfig(namespace="n", name="p", generation=1, spec=spec, aggregations=())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (None, b'"x"', None),
        ("string", b'"\\u00f8/x"', "ø/x".encode()),
        ("string", b'""', b""),
        ("string", b"null", None),
        ("integer", b"-7", b"-7"),
        ("number", b"1", b"1.0"),
        ("number", b"1e300", b"1e+300"),
        ("boolean", b"true", b"true"),
        ("boolean", b"false", b"false"),
        ("timestamp", b'"1970-01-01T00:00:01Z"', b"1000"),
        ("timestamp", b"1000", b"1000"),
    ],
)
def test_the_key_of_a_record_is_the_text_of_a_field(key: str | None, value: bytes, expected: bytes | None) -> None:
    """Equal values have equal keys, independent of their notation."""
    raw = b'{"%s": %s}' % ((key or "string").encode(), value)
    records = RecordBuilder(config(key)).build([raw], 2_000_000)
    assert (records.values, records.key(0), records.headers, records.invalid) == ([raw], expected, {}, {})


def test_invalid_events_are_marked_with_their_reason() -> None:
    """Events that are too large are cut. Field names of the sender are bounded and contain no NUL."""
    large = b'{"string": "' + b"x" * 1024 * 1024 + b'"}'
    name = b"\\u0000" * 300
    values = [b"\0x", b'{"integer": "1"}', large, b'{"%s": 1}' % name, b'{"integer": 1}']
    records = RecordBuilder(config("integer", strict=True)).build(values, 0)
    assert list(records.invalid) == [0, 1, 2, 3]
    assert records.values[0] == QUARANTINE_PREFIX + b"\0x"
    assert records.values[2] == QUARANTINE_PREFIX + large[:TRUNCATED_BYTES]
    assert records.values[4] == values[4]
    assert [records.key(i) for i in range(5)] == [None, None, None, None, b"1"]
    assert [pair for pair in records.headers[0] if pair[0] != "detail"] == [("reason", b"not_json")]
    assert records.headers[1] == [
        ("reason", b"mistyped"), ("field", b"integer"),
        ("detail", b'integer: expected integer, got string "1"; send the value without quotes'),
    ]  # fmt: skip
    assert records.headers[2][0] == ("reason", b"too_large")
    assert records.headers[3][:2] == [("reason", b"unknown_field"), ("field", b"\\0" * 200)]
    assert all(0 < len(dict(headers)["detail"]) <= 500 for headers in records.headers.values())


def test_a_record_is_cut_and_marked_as_too_large() -> None:
    """A record that has the mark is not marked again."""
    invalid_event = InvalidEvent(Reason.TOO_LARGE)
    for value in (b"x" * 100_000, QUARANTINE_PREFIX + b"x" * 100_000):
        cut = Records([b"", value], [None, b"k"], {}, {}).truncated(1, invalid_event)
        assert cut.values == [QUARANTINE_PREFIX + b"x" * TRUNCATED_BYTES]
        assert (cut.headers, cut.invalid, cut.key(0)) == ({0: [("reason", b"too_large")]}, {0: invalid_event}, None)
