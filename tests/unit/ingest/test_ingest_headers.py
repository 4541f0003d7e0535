"""Tests of the headers that ingest writes to records, and of fields that are read from headers and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from tidemill_chassis.web.problems import Problem
from tidemill_contract.events import quarantine
from tidemill_contract.events.records import RecordDecoder
from tidemill_contract.resource.kinds.formats import FormatSpec
from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_contract.resource.source import TopicSpec
from tidemill_contract.resource.spec import AuthSpec, PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig, WorkloadSettings
from tidemill_ingest.pipelines import Pipelines
from tidemill_ingest.records import RecordBuilder

NOW = 1_700_000_000_000
FIELDS: list[dict[str, Any]] = [
    {"name": "shop", "type": "string"},
    {"name": "region", "type": "string", "from": "header", "path": "X-Region", "required": True},
    {"name": "tries", "type": "integer", "from": "header", "default": 1},
    {"name": "tenant", "type": "string", "from": "key"},
    {"name": "place", "type": "integer", "from": "offset"},
]


def config(fields: list[dict[str, Any]], key: str | None = None) -> PipelineConfig:
    window, metrics = {"type": "tumbling", "size": "1m"}, [{"name": "n", "function": "count"}]
    source = {"fields": fields, **({"key": key} if key else {})}
    aggregations = [{"name": "a", "window": window, "metrics": metrics}]
    spec = PipelineSpec.model_validate({"source": source, "aggregations": aggregations})
    return PipelineConfig(namespace="n", name="p", generation=1, spec=spec, aggregations=(AggregationRef(name="a"),))


BUILDER = RecordBuilder(config(FIELDS, "shop"))


def test_only_headers_that_fields_are_read_from_are_written_to_records() -> None:
    sent = Headers({"x-region": "Ã¶st", "tries": "2", "authorization": "Bearer x", "accept": "*/*"})
    assert BUILDER.copied_headers(sent) == [("X-Region", "öst".encode()), ("tries", b"2")]
    assert BUILDER.copied_headers(Headers({})) == []
    assert RecordBuilder(config(FIELDS[:1])).copied_headers(sent) == []


def test_each_record_has_the_headers_and_an_invalid_record_also_its_reason() -> None:
    headers = [("X-Region", b"eu")]
    records = BUILDER.build([b'{"shop": "a"}', b"{", b'{"shop": null}'], NOW, headers)
    assert list(records.invalid) == [1]
    assert records.headers == {0: headers, 1: [*headers, *quarantine.headers(records.invalid[1])], 2: headers}
    assert records.keys == [b"a", None, None]


def test_a_missing_or_mistyped_header_makes_events_invalid() -> None:
    for headers, field in ((None, "region"), ([("X-Region", b"eu"), ("tries", b"two")], "tries")):
        records = BUILDER.build([b'{"shop": "a"}'], NOW, headers)
        assert records.invalid[0].field == field
        assert records.keys == [b"a"]


def test_records_have_no_headers_if_no_field_is_read_from_headers() -> None:
    records = RecordBuilder(config(FIELDS[:1])).build([b'{"shop": "a"}'], NOW, [])
    assert records.headers == {}


class _Record:
    """A record as the processor reads it."""

    def __init__(self, key: bytes | None, headers: quarantine.Headers) -> None:
        self._key, self._headers = key, headers

    def value(self) -> None:
        return None

    def key(self) -> bytes | None:
        return self._key

    def headers(self) -> quarantine.Headers:
        return self._headers

    def partition(self) -> int:
        return 1

    def offset(self) -> int:
        return 2

    def timestamp(self) -> tuple[int, int]:
        return 1, NOW


def test_ingest_and_the_processor_refuse_the_same_events_for_the_same_reasons() -> None:
    decoder = RecordDecoder(config(FIELDS, "shop").spec)
    for headers in ([], [("X-Region", b"eu")], [("X-Region", b"eu"), ("tries", b"x")], [("X-Region", b"\xff")]):
        raw = b'{"shop": "a"}'
        records = BUILDER.build([raw], NOW, headers)
        written = _Record(records.key(0), records.headers.get(0, []))
        refused_by_processor = decoder.refusal(raw, NOW, written)
        refused_by_ingest = records.invalid.get(0)
        assert (refused_by_processor and refused_by_processor.detail) == (
            refused_by_ingest and refused_by_ingest.detail
        )


def test_an_event_in_an_envelope_has_the_key_of_its_content() -> None:
    """A delete that the pipeline ignores is written without a key, as only the processor ignores events."""
    plain = config([{"name": "shop", "type": "string"}], "shop")
    source = plain.spec.source.model_copy(update={"format": FormatSpec(envelope="debezium", deletes="ignore")})
    builder = RecordBuilder(plain.model_copy(update={"spec": plain.spec.model_copy(update={"source": source})}))
    raws = [b'{"op": "c", "after": {"shop": "a"}}', b'{"op": "d", "before": {"shop": "a"}}', b'{"shop": "a"}']
    records = builder.build(raws, NOW)
    assert records.keys == [b"a", None, None]
    assert {index: str(invalid.reason) for index, invalid in records.invalid.items()} == {2: "not_an_envelope"}
    assert records.values[:2] == raws[:2]


def test_ingest_refuses_topics_of_other_clusters_and_of_other_owners(tmp_path: Path) -> None:
    plain = config(FIELDS[:1])
    topic, kafka = TopicSpec(name="crm.orders", managed=False), KafkaSpec(bootstrap_servers="crm:9092")
    for name, members in (("far", {"topic": topic, "kafka": kafka}), ("listed", {"topic": topic})):
        source = plain.spec.source.model_copy(update=members)
        spec = plain.spec.model_copy(update={"source": source, "auth": AuthSpec(required=False)})
        changes = {"name": name, "spec": spec, "only_read": True if name == "listed" else None}
        (tmp_path / f"{name}.json").write_text(plain.model_copy(update=changes).to_json())
    pipelines = Pipelines(WorkloadSettings(config_dir=tmp_path, namespace="n"))
    assert pipelines.names() == []
    for name, code, detail in (
        (
            "far",
            "topic_elsewhere",
            "far: ingest cannot write to another Kafka cluster; write to the topic crm.orders of crm:9092",
        ),
        (
            "listed",
            "topic_of_others",
            "listed: ingest cannot write, as the topic has another owner; write to the topic crm.orders",
        ),
    ):
        with pytest.raises(Problem) as caught:
            pipelines.authorize(name, None)
        assert (caught.value.status, caught.value.code) == (404, code)
        assert caught.value.detail.startswith(detail)


@pytest.mark.parametrize("written", ["csv", "jsonSchema"])
def test_a_pipeline_whose_format_is_not_json_is_refused(written: Any, tmp_path: Path) -> None:
    plain = config(FIELDS[:1])
    open_to_all = AuthSpec(required=False)
    other = plain.spec.source.model_copy(update={"format": FormatSpec(type=written)})
    for name, source in (("plain", plain.spec.source), ("other", other)):
        spec = plain.spec.model_copy(update={"source": source, "auth": open_to_all})
        (tmp_path / f"{name}.json").write_text(plain.model_copy(update={"name": name, "spec": spec}).to_json())
    pipelines = Pipelines(WorkloadSettings(config_dir=tmp_path, namespace="n"))
    assert pipelines.names() == ["plain"]
    assert pipelines.authorize("plain", None).name == "plain"
    with pytest.raises(Problem) as caught:
        pipelines.authorize("other", None)
    assert (caught.value.status, caught.value.code) == (404, "ingest_writes_json")
    assert caught.value.detail.startswith(f"other reads {written}, but ingest writes only JSON; write")
