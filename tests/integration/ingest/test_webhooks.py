"""Tests of webhooks: an ingest process receives requests as services send them, and writes to a real Kafka."""

from __future__ import annotations

import hmac
import json
import time
from typing import Any

import httpx
import pytest

from tidemill_contract.events.decoder import QUARANTINE_PREFIX

pytestmark = pytest.mark.integration

SECRET = b"swordfish"
FIELDS = [
    {"name": "action", "type": "string", "required": True},
    {"name": "kind", "type": "string", "from": "header", "path": "X-GitHub-Event"},
]
WEBHOOKS = [
    {"name": "github", "signature": "github", "secretRef": {"name": "hooks", "key": "github"}},
    {"name": "stripe", "signature": "stripe", "secretRef": {"name": "hooks", "key": "stripe"}},
    {"name": "later", "signature": "hmac", "header": "X-Sign", "secretRef": {"name": "hooks", "key": "later"}},
]
BODY = b'{"action": "opened",  "number": 1}'


def add_pipeline(ingest: Any, name: str) -> Any:
    """Add a pipeline with webhooks, which requires API keys for all other requests."""
    aggregations = [
        {"name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": [{"name": "n", "function": "count"}]}
    ]
    source = {"fields": FIELDS, "webhooks": WEBHOOKS}
    config = ingest.pipeline_config(name, source=source, aggregations=aggregations, auth={"required": True})
    folder = ingest.folder / "secrets" / name
    folder.mkdir(parents=True)
    for file in ("webhook-github", "webhook-stripe"):
        (folder / file).write_bytes(b"older\n" + SECRET + b"\n")
    return ingest.add(config)


def post(ingest: Any, path: str, body: bytes, **headers: str) -> httpx.Response:
    sent = {"content-type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    return httpx.post(f"{ingest.url}/v1/pipelines/{path}", content=body, headers=sent, timeout=30)


def github(body: bytes, secret: bytes = SECRET) -> str:
    return "sha256=" + hmac.new(secret, body, "sha256").hexdigest()


def stripe(body: bytes) -> str:
    now = int(time.time())
    return f"t={now},v1={hmac.new(SECRET, b'%d.' % now + body, 'sha256').hexdigest()}"


def test_a_signed_event_is_written_once_and_unchanged(ingest: Any) -> None:
    """The record has the header of a field that is read from a header. A redelivery writes no record."""
    config = add_pipeline(ingest, "hooked")
    sent = {"x_github_event": "issues", "x_github_delivery": "d-1", "x_hub_signature_256": github(BODY)}
    first = post(ingest, "hooked/webhooks/github", BODY, **sent)
    assert (first.status_code, first.json()["accepted"]) == (200, 1), first.text
    again = post(ingest, "hooked/webhooks/github", BODY, **sent)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    older = {"x_github_delivery": "d-2", "x_hub_signature_256": github(BODY, b"older")}
    assert post(ingest, "hooked/webhooks/github", BODY, **older).status_code == 200
    records = ingest.written(config.events_topic)
    assert [record.value() for record in records] == [BODY, BODY]
    assert sorted((record.headers() or [("none", b"")])[0] for record in records) == [
        ("X-GitHub-Event", b"issues"),
        ("none", b""),
    ]


def test_a_redelivery_of_stripe_is_recognized_by_the_id_of_the_event(ingest: Any) -> None:
    config = add_pipeline(ingest, "paid")
    for attempts in (1, 2):
        body = json.dumps({"id": "evt_1", "action": "charge.succeeded", "pending_webhooks": attempts}).encode()
        answer = post(ingest, "paid/webhooks/stripe", body, stripe_signature=stripe(body))
        assert (answer.status_code, answer.json()["accepted"]) == (200, 1), answer.text
    assert len(ingest.written(config.events_topic)) == 1


def test_requests_without_a_valid_signature_are_refused_and_not_written(ingest: Any) -> None:
    config = add_pipeline(ingest, "strict")
    wrong = {"x_hub_signature_256": github(BODY, b"guess")}
    for path, headers, status, code in (
        ("strict/webhooks/github", {}, 401, "missing_signature"),
        ("strict/webhooks/github", wrong, 401, "wrong_signature"),
        ("strict/webhooks/stripe", {"stripe_signature": "t=1,v1=" + "0" * 64}, 401, "wrong_signature"),
        ("strict/webhooks/later", {"x_sign": "0" * 64}, 503, "no_secret"),
        ("strict/webhooks/nothing", wrong, 404, "webhook_not_found"),
        ("nothing/webhooks/github", wrong, 404, "webhook_not_found"),
        ("strict/events", {}, 401, "unauthorized"),
    ):
        answer = post(ingest, path, BODY, **headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code), (path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert ("retry-after" in answer.headers) == (status == 503)
        assert SECRET.decode() not in answer.text
    assert ingest.health()["webhooks_without_secret"].count("strict/later") == 1
    ping = post(ingest, "strict/webhooks/github", BODY, x_github_event="ping", x_hub_signature_256=github(BODY))
    assert (ping.status_code, ping.json()["accepted"]) == (200, 0)
    form = {"content_type": "application/x-www-form-urlencoded", "x_hub_signature_256": github(BODY)}
    for event in ("ping", "issues"):
        refused = post(ingest, "strict/webhooks/github", BODY, x_github_event=event, **form)
        assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_media_type")
        assert "at GitHub, select the content type application/json" in refused.json()["detail"]
    assert ingest.written(config.events_topic) == []


def test_an_invalid_event_of_a_webhook_is_quarantined_and_answered_with_200(ingest: Any) -> None:
    config = add_pipeline(ingest, "lenient")
    body = b'{"number": 1}'
    answer = post(ingest, "lenient/webhooks/github", body, x_hub_signature_256=github(body))
    assert (answer.status_code, answer.json()["quarantined"]) == (200, 1)
    assert [record.value() for record in ingest.written(config.events_topic)] == [QUARANTINE_PREFIX + body]
