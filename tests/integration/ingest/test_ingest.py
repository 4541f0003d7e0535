"""Tests of events that an ingest process receives over HTTP and writes to a real Kafka."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import zstandard

from tidemill_contract.events.decoder import FIELD_HEADER, QUARANTINE_PREFIX, REASON_HEADER
from tidemill_contract.events.fields import MAX_EVENT_BYTES
from tidemill_processor.batches.reader import BatchReader

pytestmark = pytest.mark.integration

GOOD = b'{"country": "NO", "amount": 12.5, "ts": "2026-03-01T10:00:01Z"}'
BAD = b'{"country": "NO", "amount": "?", "ts": "2026-03-01T10:00:02Z"}'


def event(country: str, amount: float = 1.0) -> bytes:
    return json.dumps({"country": country, "amount": amount, "ts": "2026-03-01T10:00:01Z"}).encode()


def values(records: list[Any]) -> list[bytes]:
    return sorted(record.value() for record in records)


def test_each_event_gets_its_result_and_its_offset(ingest: Any) -> None:
    """The first request is the README's example. With `results=all`, the answer names partition and offset."""
    config = ingest.add(ingest.pipeline_config("results"))
    answer = ingest.post("results", GOOD + b"\n" + BAD + b"\n")
    assert answer.status_code == 207
    assert answer.json() == {
        "accepted": 1,
        "quarantined": 1,
        "retry": 0,
        "results": [{"index": 1, "status": "quarantined", "code": "mistyped", "field": "amount"}],
    }
    answer = ingest.post("results", GOOD + b"\n" + BAD, "?results=all")
    rows = answer.json()["results"]
    assert [row["status"] for row in rows] == ["accepted", "quarantined"]
    by_offset = {(r.partition(), r.offset()): r.value() for r in ingest.written(config.events_topic)}
    assert by_offset[rows[0]["partition"], rows[0]["offset"]] == GOOD
    assert by_offset[rows[1]["partition"], rows[1]["offset"]] == QUARANTINE_PREFIX + BAD


def test_valid_events_are_written_unchanged_with_their_key(ingest: Any) -> None:
    """Each record has the bytes of the event. The key is the text of the key field."""
    config = ingest.add(ingest.pipeline_config("keys"))
    sent = [b'{ "ts":1772359201000,"country":"\\u00c5land" }', event("NO"), event("NO", 2.0), event("")]
    assert ingest.post("keys", b"\n".join(sent)).status_code == 200
    records = ingest.written(config.events_topic)
    assert values(records) == sorted(sent)
    assert {record.key() for record in records} == {"Åland".encode(), b"NO", b""}
    assert len({record.partition() for record in records if record.key() == b"NO"}) == 1


def test_refused_events_reach_the_processor_with_their_reason(ingest: Any) -> None:
    """Ingest marks them in the topic. The processor's reader turns them into dead letters with ingest's reason."""
    config = ingest.add(ingest.pipeline_config("refused"))
    too_large = b'{"country": "NO", "ts": 1772359201000, "x": "' + b"x" * MAX_EVENT_BYTES + b'"}'
    body = b"\n".join([b"{", b"[1]", b'{"ts": 1772359201000}', BAD, too_large, GOOD])
    answer = ingest.post("refused", body)
    assert answer.status_code == 207
    assert [(row["index"], row["code"]) for row in answer.json()["results"]] == [
        (0, "not_json"), (1, "not_an_object"), (2, "missing_field"), (3, "mistyped"), (4, "too_large"),
    ]  # fmt: skip
    records = ingest.written(config.events_topic)
    assert len(records) == 6
    batch = BatchReader(config.spec).read(records, int(time.time() * 1000))
    assert batch.frame.height == 1
    letters = {letter.reason: letter for letter in batch.dead_letters}
    assert {reason: letter.field for reason, letter in letters.items()} == {
        "not_json": None, "not_an_object": None, "missing_field": "country", "mistyped": "amount", "too_large": None,
    }  # fmt: skip
    assert 'amount: expected number, got string "?"; send a number' in letters["mistyped"].detail
    assert "an array; send each event in a separate record" in letters["not_an_object"].detail
    assert "bytes; at most" in letters["too_large"].detail
    assert letters["mistyped"].value == BAD
    assert letters["too_large"].value == too_large[:65536]
    marked = {r.value()[:1]: dict(r.headers() or []) for r in records}
    assert marked[b"{"] == {}
    assert set(marked[QUARANTINE_PREFIX]) <= {REASON_HEADER, FIELD_HEADER, "detail"}


def test_an_event_that_is_too_large_for_its_topic_is_quarantined(ingest: Any) -> None:
    """Its record is cut short. The other events of the batch are written."""
    config = ingest.add(ingest.pipeline_config("small-topic"), **{"max.message.bytes": "100000"})
    noise = base64.b64encode(hashlib.shake_256(b"seed").digest(200_000)).decode()
    large = json.dumps({"country": "NO", "ts": 1772359201000, "noise": noise}).encode()
    sent = [event("NO"), large, event("SE")]
    answer = ingest.post("small-topic", b"\n".join(sent), "?results=all")
    assert (answer.status_code, answer.json()["accepted"], answer.json()["quarantined"]) == (207, 2, 1), answer.text
    assert [row.get("code") for row in answer.json()["results"]] == [None, "too_large", None]
    records = ingest.written(config.events_topic)
    assert values(records) == sorted([QUARANTINE_PREFIX + large[:65536], event("NO"), event("SE")])


def test_a_batch_without_a_valid_event_or_with_accept_partial_false_is_refused(ingest: Any) -> None:
    """Both answers are 422. The first batch writes quarantined records, and the second writes nothing."""
    config = ingest.add(ingest.pipeline_config("none-valid"))
    answer = ingest.post("none-valid", BAD)
    assert (answer.status_code, answer.json()["code"], answer.json()["quarantined"]) == (422, "no_valid_event", 1)
    assert answer.headers["content-type"] == "application/problem+json"
    answer = ingest.post("none-valid", GOOD + b"\n" + BAD, "?accept_partial=false")
    assert (answer.status_code, answer.json()["code"], answer.json()["quarantined"]) == (422, "batch_rejected", 0)
    row = {"index": 1, "status": "rejected", "code": "mistyped", "field": "amount"}
    assert answer.json()["results"] == [row]
    assert values(ingest.written(config.events_topic)) == [QUARANTINE_PREFIX + BAD]
    assert ingest.post("none-valid", GOOD, "?accept_partial=false").status_code == 200


def test_a_request_with_wait_false_is_answered_with_202_and_its_events_arrive(ingest: Any) -> None:
    """Ingest validates the events before it answers."""
    config = ingest.add(ingest.pipeline_config("no-wait"))
    answer = ingest.post("no-wait", GOOD + b"\n" + BAD, "?wait=false&results=all")
    assert answer.status_code == 202
    assert [row["status"] for row in answer.json()["results"]] == ["accepted", "quarantined"]
    ingest.eventually(
        lambda: len(ingest.written(config.events_topic)) == 2, seconds=20, what="both records are written"
    )


CLOUD = {"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "order"}


@pytest.mark.parametrize(
    ("kind", "body", "headers"),
    [
        ("application/x-ndjson", GOOD + b"\r\n\n" + GOOD, {}),
        ("application/json; charset=utf-8", b"[" + GOOD + b",\n " + GOOD + b"]", {}),
        ("application/json", b" " + GOOD + b"\n", {}),
        ("application/x-ndjson", gzip.compress(GOOD), {"content_encoding": "gzip"}),
        ("application/json", zstandard.compress(GOOD), {"content_encoding": "zstd"}),
        ("application/cloudevents+json", json.dumps({**CLOUD, "data": json.loads(GOOD)}).encode(), {}),
        ("application/cloudevents+json", json.dumps({**CLOUD, "data_base64": base64.b64encode(GOOD).decode()}).encode(),
         {}),
        ("application/cloudevents-batch+json", json.dumps([{**CLOUD, "data": json.loads(GOOD)}] * 2).encode(), {}),
        ("application/json", GOOD, {"ce_specversion": "1.0", "ce_id": "e-1", "ce_source": "/s", "ce_type": "t"}),
    ],
    ids=["ndjson", "array", "object", "gzip", "zstd", "cloudevent", "cloudevent base64", "cloudevents batch", "binary"],
)  # fmt: skip
def test_every_form_of_body_is_accepted(ingest: Any, kind: str, body: bytes, headers: dict[str, str]) -> None:
    """Each record contains only the event, without its envelope."""
    name = "forms-" + hashlib.sha256(repr((kind, body)).encode()).hexdigest()[:8]
    config = ingest.add(ingest.pipeline_config(name))
    answer = ingest.post(name, body, "?results=all", kind=kind, **headers)
    assert answer.status_code == 200, answer.text
    cloud = "cloudevents" in kind or "ce_id" in headers
    assert {row.get("id") for row in answer.json()["results"]} == {"e-1" if cloud else None}
    written = ingest.written(config.events_topic)
    assert len(written) == answer.json()["accepted"]
    assert {json.dumps(json.loads(r.value())) for r in written} == {json.dumps(json.loads(GOOD))}


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", {}, 400, "no_events"),
        (b"not gzip", {"content_encoding": "gzip"}, 400, "damaged_body"),
        (gzip.compress(b"x" * 20_000_000), {"content_encoding": "gzip"}, 413, "body_too_large"),
        (b"{}\n" * 10_001, {}, 413, "too_many_events"),
        (b"x" * 11_000_000, {}, 413, "body_too_large"),
        (GOOD, {"content_encoding": "br"}, 415, "unsupported_encoding"),
        (GOOD, {"kind": "text/csv"}, 415, "unsupported_media_type"),
        (GOOD, {"kind": ""}, 415, "unsupported_media_type"),
        (b"[1,", {"kind": "application/json"}, 400, "malformed_body"),
    ],
)
def test_invalid_bodies_are_refused_and_not_written(
    ingest: Any, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    config = ingest.pipeline_config("refusals")
    if not (ingest.folder / "refusals.json").exists():
        ingest.add(config)
    answer = ingest.post("refusals", body, **headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert ingest.written(config.events_topic) == []


def test_a_request_with_a_known_idempotency_key_is_answered_without_writing_again(ingest: Any) -> None:
    """Concurrent requests with one key are written once. Another body with the same key is refused.

    A request that is refused does not use up its key.
    """
    config = ingest.add(ingest.pipeline_config("idempotent"))
    assert ingest.post("idempotent", GOOD, idempotency_key="k", kind="text/csv").status_code == 415
    with ThreadPoolExecutor(8) as pool:
        sent = [
            pool.submit(ingest.post, "idempotent", GOOD + b"\n" + BAD, "?results=all", idempotency_key="k")
            for _ in range(16)
        ]
        answers = [future.result() for future in sent]
    assert {(a.status_code, a.text) for a in answers} == {(207, answers[0].text)}
    assert sum("idempotency-replayed" not in a.headers for a in answers) == 1
    assert len(ingest.written(config.events_topic)) == 2
    answer = ingest.post("idempotent", event("SE"), idempotency_key="k")
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert ingest.post("idempotent", event("SE"), idempotency_key="other").status_code == 200
    assert len(ingest.written(config.events_topic)) == 3


def test_a_pipeline_with_auth_requires_a_key_with_the_scope(ingest: Any) -> None:
    """The answer is 401 without a valid key, 403 without the scope and 200 with it."""
    config = ingest.add(ingest.pipeline_config("secured", auth={"required": True}))
    keys = [
        {"id": "w", "sha256": hashlib.sha256(b"s3cret").hexdigest(), "scopes": ["events:append"]},
        {"id": "r", "sha256": hashlib.sha256(b"s3cret").hexdigest(), "scopes": ["query:read"]},
    ]
    folder = ingest.folder / "secrets" / "secured"
    folder.mkdir(parents=True)
    (folder / "api-keys.json").write_text(json.dumps({"keys": keys}))
    answers = {
        key: ingest.post("secured", GOOD, **({"authorization": f"Bearer {key}"} if key else {}))
        for key in ("", "tm_w_wrong", "tm_r_s3cret", "tm_w_s3cret")
    }
    assert [answer.status_code for answer in answers.values()] == [401, 401, 403, 200]
    assert answers[""].headers["www-authenticate"] == "Bearer"
    assert "insufficient_scope" in answers["tm_r_s3cret"].headers["www-authenticate"]
    assert len(ingest.written(config.events_topic)) == 1


def test_ingest_follows_added_changed_and_disabled_pipelines(ingest: Any) -> None:
    """Ingest does not serve unknown and disabled pipelines. A suspended pipeline accepts events.

    A changed spec applies to new events.
    """
    # If another pipeline requires keys, an unknown name gets the same answer as a missing key.
    assert ingest.post("comes", GOOD).json()["code"] in ("pipeline_not_found", "unauthorized")
    config = ingest.add(ingest.pipeline_config("comes", suspend=True))
    ingest.eventually(lambda: ingest.post("comes", GOOD).status_code == 200, seconds=60, what="the pipeline is served")
    strict = {**config.spec.source.model_dump(by_alias=True), "strict": True}
    ingest.add(ingest.pipeline_config("comes", source=strict), topic=False)
    extra = GOOD[:-1] + b', "more": 1}'
    refused = ingest.eventually(
        lambda: (a := ingest.post("comes", extra)).status_code == 422 and a, seconds=60, what="the new spec applies"
    )
    assert [(r["code"], r["field"]) for r in refused.json()["results"]] == [("unknown_field", "more")]
    ingest.add(ingest.pipeline_config("comes", ingest={"enabled": False}), topic=False)
    ingest.eventually(
        lambda: ingest.post("comes", GOOD).json().get("code") == "ingest_disabled",
        seconds=60,
        what="the pipeline is disabled",
    )


def test_a_missing_topic_fails_only_requests_of_its_pipeline(ingest: Any) -> None:
    """They are answered with 503, and the breaker of Kafka remains closed."""
    ingest.add(ingest.pipeline_config("no-topic"), topic=False)
    answer = ingest.post("no-topic", GOOD)
    assert (answer.status_code, answer.json()["code"]) == (503, "kafka_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert [row["status"] for row in answer.json()["results"]] == ["retry"]
    assert ingest.health()["dependencies"]["kafka"]["breaker"] == "closed"


def test_a_request_that_ends_in_the_middle_of_its_body_is_not_written(ingest: Any) -> None:
    """Other requests are served afterwards."""
    config = ingest.add(ingest.pipeline_config("leaves"))
    head = "POST /v1/pipelines/leaves/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", ingest.port)) as connection:
            connection.sendall(f"{head}Content-Length: 10000\r\n\r\n".encode() + GOOD + b"\n")
    assert ingest.post("leaves", event("SE")).status_code == 200
    assert values(ingest.written(config.events_topic)) == [event("SE")]


def test_ingest_serves_only_the_pipeline_that_the_environment_names(
    servers: Any, make_ingest: Callable[..., Any]
) -> None:
    own = make_ingest(servers.kafka, TIDEMILL_PIPELINE="only-this")
    own.add(own.pipeline_config("only-this"))
    own.add(own.pipeline_config("not-this"))
    own.start()
    assert own.post("only-this", GOOD).status_code == 200
    assert own.post("not-this", GOOD).json()["code"] == "pipeline_not_found"
    assert own.health()["pipelines"] == ["only-this"]


def test_requests_over_the_quota_are_refused_with_the_time_to_wait(
    servers: Any, make_ingest: Callable[..., Any]
) -> None:
    """The first batch is accepted whatever its size. The next one must wait for the quota that it has used."""
    own = make_ingest(servers.kafka, TIDEMILL_INGEST_EVENTS_PER_SECOND="10", TIDEMILL_INGEST_BYTES_PER_SECOND="0")
    own.add(own.pipeline_config("limited"))
    own.start()
    first = own.post("limited", b"\n".join([GOOD] * 600))
    assert (first.status_code, first.headers["ratelimit-policy"]) == (200, '"events";q=10;w=1')
    second = own.post("limited", GOOD)
    assert (second.status_code, second.json()["code"]) == (429, "quota_exceeded")
    assert 30 < int(second.headers["retry-after"]) <= 59
    assert second.headers["ratelimit"].startswith('"events";r=0;t=')


def test_a_stop_loses_no_acknowledged_event(servers: Any, make_ingest: Callable[..., Any]) -> None:
    """After a SIGTERM under load, the exit status is 0 and each acknowledged event is in Kafka."""
    own = make_ingest(servers.kafka)
    config = own.add(own.pipeline_config("stops"))
    own.start()
    acknowledged: list[bytes] = []
    queued: list[bytes] = []

    def send(worker: int) -> None:
        with httpx.Client(timeout=30) as client:
            for number in range(10_000):
                sent = [event(f"{worker}-{number}", i) for i in range(50)]
                wait = number % 5 > 0
                try:
                    url = own.events_url("stops", "" if wait else "?wait=false")
                    answer = client.post(
                        url, content=b"\n".join(sent), headers={"content-type": "application/x-ndjson"}
                    )
                except httpx.TransportError:
                    return
                if answer.status_code == 200:
                    acknowledged.extend(sent)
                elif answer.status_code == 202:
                    queued.extend(sent)

    threads = [threading.Thread(target=send, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    own.eventually(lambda: len(acknowledged) > 5_000, seconds=60, what="events are acknowledged")
    assert own.stop(signal.SIGTERM) == 0, own.log
    for thread in threads:
        thread.join()
    written = set(values(own.written(config.events_topic)))
    assert set(acknowledged) - written == set()
    assert set(queued) - written == set()
    assert "Traceback" not in own.log


def test_metrics_count_requests_and_events(ingest: Any) -> None:
    """Requests are counted by route template, and events by outcome."""
    ingest.add(ingest.pipeline_config("counted"))
    ingest.post("counted", GOOD + b"\n" + BAD)
    text = httpx.get(f"http://127.0.0.1:{ingest.status_port}/metrics").text
    for line in (
        'tidemill_events_ingested_total{outcome="accepted",pipeline="counted"} 1.0',
        'tidemill_events_ingested_total{outcome="quarantined",pipeline="counted"} 1.0',
        f'tidemill_ingest_bytes_total{{pipeline="counted"}} {len(GOOD + BAD) + 1}.0',
        'http_requests_total{endpoint="/v1/pipelines/{pipeline}/events",method="POST",status_code="207"}',
        "tidemill_producer_queue_messages ",
        "tidemill_ingest_batch_events_count ",
    ):
        assert line in text
