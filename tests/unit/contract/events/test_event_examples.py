"""Tests of the example pipelines for events of other systems: each reads a sample event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tidemill_contract.events.elements import ELEMENTS_ATTRIBUTE, ElementDecoder
from tidemill_contract.events.records import RecordDecoder
from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.validate import check_document

FOLDER = Path(__file__).parents[4] / "crds" / "examples" / "events"
NOW = 1_790_000_000_000

PUSH = {
    "id": "22249084964",
    "type": "PushEvent",
    "actor": {"id": 583231, "login": "ada", "display_login": "ada", "avatar_url": "https://example.org/u/583231?"},
    "repo": {"id": 1296269, "name": "ada/engine", "url": "https://example.org/repos/ada/engine"},
    "payload": {
        "push_id": 10115855396, "size": 2, "distinct_size": 1, "ref": "refs/heads/master",
        "commits": [
            {"sha": "7a8f3ac8", "author": {"email": "ada@example.org", "name": "Ada"}, "distinct": True},
            {"sha": "8c2f1bd0", "author": {"email": "bob@example.org", "name": "Bob"}, "distinct": False},
        ],
    },
    "public": True,
    "created_at": "2022-06-09T12:47:28Z",
}  # fmt: skip
MERGE = {
    **PUSH,
    "type": "PullRequestEvent",
    "org": {"id": 9919, "login": "engines"},
    "payload": {"action": "closed", "number": 7, "pull_request": {"id": 1, "merged": True, "user": None}},
}
LOG = {
    "timeUnixNano": "1654778848123456789",
    "severityText": None,
    "body": {"stringValue": "GET /cart"},
    "attributes": {
        "http.route": "/cart", "http.status_code": 503, "duration_s": 0.25, "time_local": "09/Jun/2022:14:47:28 +0200",
    },
    "resource": {"service.name": "shop", "k8s.pod.name": "shop-1"},
}  # fmt: skip

VIEW = {
    "user_id": "8f0c1f0e-6f0b-4d0e-a9a5-2f7b8e1f1f10", "page_id": "f2a7d7a0-90a1-4b4c-8d62-7a4d8f0b5b6e",
    "ad_id": "a5b3c2a1-5e4f-4d0b-9d7a-0c2d7c1f6a11", "ad_type": "banner", "event_type": "view",
    "event_time": "1450000000123", "ip_address": "1.2.3.4",
}  # fmt: skip
PAYMENT: dict[str, Any] = {
    "id": "evt_1NG8Du2eZvKYlo2CUI79vXWy",
    "object": "event",
    "created": 1686089970,
    "livemode": True,
    "pending_webhooks": 0,
    "request": {"id": None, "idempotency_key": None},
    "type": "charge.failed",
    "data": {"object": {"id": "ch_1", "amount": 2000, "currency": "usd", "customer": None, "failure_code": "expired",
                        "payment_method_details": {"card": {"brand": "visa", "checks": None}, "type": "card"}}},
}  # fmt: skip
ORDER: dict[str, Any] = {
    "id": "450789469",
    "created_at": "2026-08-10T11:00:00+02:00",
    "customer": {"id": 207119551, "tags": ""},
    "shipping_address": {"city": "Oslo", "country_code": "NO"},
    "line_items": [
        {"id": 466157049, "sku": "IPOD2008GREEN", "quantity": 2, "gift_card": False,
         "price_set": {"shop_money": {"amount": 199.5, "currency_code": "NOK"}}, "tax_lines": []},
        {"id": 518995019, "sku": "GIFT", "price_set": None, "gift_card": True},
    ],
}  # fmt: skip
TRACK = {
    "type": "track",
    "messageId": "ajs-f8ca1e4de5024d9430b3928bd8ac6b96",
    "event": "Order Completed",
    "anonymousId": "12091906-01011992",
    "context": {"page": {"path": "/checkout/", "url": "https://example.org/checkout/"}, "campaign": None},
    "properties": {"revenue": 25, "coupons": ["NEW", "MAY"], "products": [{"product_id": "507", "price": 19}, {}]},
    "timestamp": "2015-02-23T22:28:55.111Z",
}
METRIC = {
    "metric_stream_name": "all",
    "account_id": "123456789012",
    "region": "eu-north-1",
    "namespace": "AWS/EC2",
    "metric_name": "DiskWriteOps",
    "dimensions": {"InstanceId": "i-123456789012"},
    "timestamp": 1611929698000,
    "value": {"max": 2.5, "min": 0.0, "sum": 10.0, "count": 5.0},
    "unit": "Seconds",
}
CHANGE = {
    "before": {"id": 1004, "status": "paid", "total": 25.5, "note": None},
    "after": None,
    "source": {
        "version": "3.6.1.Final", "connector": "postgresql", "name": "shop", "ts_ms": 1559033904863,
        "snapshot": "false", "db": "shop", "sequence": '["24023119","24023128"]', "schema": "public",
        "table": "orders", "txId": 555, "lsn": 24023128, "xmin": None,
    },
    "transaction": None,
    "op": "d",
    "ts_ms": 1559033904961,
}  # fmt: skip

RETURNED = {"order_id": "o1", "at": "2026-03-01T12:00:00Z", "region": "north", "sku": "a", "turnover": 3.0}
"""An event that the function in enrich.py returns."""


class _Record:
    def __init__(self, headers: list[tuple[str, bytes | None]]) -> None:
        self._headers = headers

    def value(self) -> bytes:
        return b"{}"

    def key(self) -> None:
        return None

    def headers(self) -> list[tuple[str, bytes | None]]:
        return self._headers

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 0

    def timestamp(self) -> tuple[int, int]:
        return 1, NOW


SAMPLES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "repository-events",
        PUSH,
        {
            "id": "22249084964", "kind": "PushEvent", "at": 1_654_778_848_000, "actor": "ada",
            "repository": "ada/engine", "organisation": "none", "commits": 2, "first_author": "Ada",
            "action": None, "merged": None,
        },
    ),
    (
        "repository-events",
        MERGE,
        {
            "id": "22249084964", "kind": "PullRequestEvent", "at": 1_654_778_848_000, "actor": "ada",
            "repository": "ada/engine", "organisation": "engines", "commits": 0, "first_author": None,
            "action": "closed", "merged": True,
        },
    ),
    (
        "log-records",
        LOG,
        {
            "at": 1_654_778_848_123, "logged": 1_654_778_848_000, "cluster": "north", "severity": "INFO",
            "service": "shop", "route": "/cart", "status": 503, "seconds": 0.25,
        },
    ),
    (
        "payment-events",
        PAYMENT,
        {
            "id": "evt_1NG8Du2eZvKYlo2CUI79vXWy", "kind": "charge.failed", "at": 1_686_089_970_000, "live": True,
            "amount_minor": 2000, "currency": "usd", "customer": None, "brand": "visa", "failure": "expired",
            "object": PAYMENT["data"]["object"],
        },
    ),
    (
        "customer-tracks",
        TRACK,
        {
            "message": "ajs-f8ca1e4de5024d9430b3928bd8ac6b96", "event": "Order Completed", "at": 1_424_730_535_111,
            "visitor": "12091906-01011992", "user_id": None, "page": "/checkout/", "campaign": "direct",
            "revenue": "25.00", "first_product": "507", "coupons": ["NEW", "MAY"],
        },
    ),
    (
        "cloud-metrics",
        METRIC,
        {
            "at": 1_611_929_698_000, "account": "123456789012", "region": "eu-north-1", "service": "AWS/EC2",
            "metric": "DiskWriteOps", "instance": "i-123456789012", "total": 10.0, "samples": 5.0, "greatest": 2.5,
        },
    ),
    (
        "ad-views",
        VIEW,
        {
            "ad_id": "a5b3c2a1-5e4f-4d0b-9d7a-0c2d7c1f6a11", "ad_type": "banner", "event_type": "view",
            "at": 1_450_000_000_123,
        },
    ),
    ("shop-orders", ORDER, {"order_id": "450789469", "at": 1_786_352_400_000, "country": "NO"}),
    (
        "table-changes",
        CHANGE,
        {
            "id": 1004, "status": "paid", "total": 25.5, "op": "d", "table_name": "orders",
            "committed": 1_559_033_904_863,
        },
    ),
    (
        "python-stage",
        RETURNED,
        {"order_id": "o1", "at": 1_772_366_400_000, "region": "north", "sku": "a", "turnover": 3.0},
    ),
]  # fmt: skip


ITEMS: list[dict[str, Any]] = [
    {"sku": "IPOD2008GREEN", "quantity": 2, "price": 199.5, "gift": False},
    {"sku": "GIFT", "quantity": 1, "price": None, "gift": True},
]
"""The fields of the elements of ORDER."""


def test_each_example_has_a_sample() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {name for name, _, _ in SAMPLES}


def test_the_example_of_shop_orders_gives_an_event_for_each_element() -> None:
    (document,) = load_documents((FOLDER / "shop-orders.yaml").read_text())
    pipeline, _ = check_document(document)
    assert pipeline is not None
    records, elements = RecordDecoder(pipeline.spec), ElementDecoder(pipeline.spec)
    arrays = records.values(records.decode_all([json.dumps(ORDER).encode()], NOW).events, ELEMENTS_ATTRIBUTE)
    events = elements.decode(arrays, NOW)
    assert events.invalid == {}
    assert [json.loads(text) for text in elements.as_json(events.events, events.raws)] == ITEMS


@pytest.mark.parametrize(("name", "event", "expected"), SAMPLES)
def test_an_example_reads_its_sample_event(name: str, event: dict[str, Any], expected: dict[str, Any]) -> None:
    (document,) = load_documents((FOLDER / f"{name}.yaml").read_text())
    pipeline, faults = check_document(document)
    assert faults == []
    assert pipeline is not None
    decoder = RecordDecoder(pipeline.spec)
    record = _Record([("x-cluster", b"north")])
    raw = json.dumps(event).encode()
    decoded = decoder.decode_all([raw], NOW, records=[record])
    assert decoded.invalid == {}
    assert json.loads(decoder.as_json(decoded.events, [raw])[0]) == expected
