"""Tests of the admission webhook: it refuses like `tidemill validate`, over HTTPS with a replaceable certificate."""

from __future__ import annotations

import datetime as dt
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from tidemill_contract.resource.validate import TopicLimits, check_document
from tidemill_operator.actuators.kubernetes.api import Api
from tidemill_operator.cluster.admission.certificates import CertificateKeeper, Certificates, renew_if_needed
from tidemill_operator.cluster.admission.webhook import Webhook, load_certificate, review
from waiting import eventually

EXAMPLES = Path(__file__).parents[4] / "crds" / "examples"
FLIGHTS = yaml.safe_load((EXAMPLES / "flights.yaml").read_text())
HOST = "tidemill-webhook.system.svc"


def with_spec(**changes: Any) -> dict[str, Any]:
    return {**FLIGHTS, "spec": {**FLIGHTS["spec"], **changes}}


def request(document: dict[str, Any], before: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"uid": "u-1", "namespace": "analytics", "object": document, "oldObject": before}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_webhook_allows_all_examples(path: Path) -> None:
    assert review(request(yaml.safe_load(path.read_text())), TopicLimits()) == {"uid": "u-1", "allowed": True}


def test_all_faults_are_reported_at_once_with_the_messages_of_validate() -> None:
    bad = with_spec(transform={"filter": "nothing > 1"}, processor={"flushInterval": "0s"})
    answer = review(request(bad), TopicLimits())
    _, faults = check_document(bad)
    assert len(faults) >= 2
    assert answer["allowed"] is False
    assert answer["status"]["code"] == 422
    assert answer["status"]["message"].splitlines()[1:] == [str(fault) for fault in faults]


def test_a_hop_that_does_not_divide_the_size_is_refused() -> None:
    window = {"type": "hopping", "size": "1h", "hop": "7m"}
    aggregation = {**FLIGHTS["spec"]["aggregations"][0], "window": window}
    answer = review(request(with_spec(aggregations=[aggregation], anomalies=[])), TopicLimits())
    assert answer["allowed"] is False
    assert "hop" in answer["status"]["message"]


def test_a_topic_of_another_namespace_is_refused_unless_the_platform_allows_it() -> None:
    bad = with_spec(source={**FLIGHTS["spec"]["source"], "topic": {"name": "other.flights.events"}})
    assert review(request(bad), TopicLimits())["allowed"] is False
    assert review(request(bad), TopicLimits(("other.",)))["allowed"] is True


@pytest.mark.parametrize(
    ("reason", "metadata"),
    [
        ("a finalizer of a deleted resource is removed", {"deletionTimestamp": "2026-01-01T00:00:00Z"}),
        ("only metadata changes", {"annotations": {"tidemill.dev/paused": "true"}}),
    ],
)
def test_the_metadata_of_an_invalid_resource_can_be_changed(reason: str, metadata: dict[str, Any]) -> None:
    bad = with_spec(transform={"filter": "nothing > 1"})
    changed = {**bad, "metadata": {**bad["metadata"], **metadata}}
    assert review(request(changed, bad), TopicLimits())["allowed"] is True, reason


def test_a_generated_name_is_no_fault() -> None:
    document = {**FLIGHTS, "metadata": {"generateName": "flights-", "namespace": "analytics"}}
    assert review(request(document), TopicLimits())["allowed"] is True


class Keeper:
    """A keeper that returns the set certificates."""

    def __init__(self) -> None:
        self.certificates = renew_if_needed(None, hosts=[HOST], now=dt.datetime.now(dt.UTC))

    def ensure(self) -> Certificates:
        return self.certificates


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def webhook(keeper: Keeper) -> Iterator[Webhook]:
    started_webhook = Webhook(
        cast(Api, None), cast(CertificateKeeper, keeper), port=0, configuration="tidemill", limits=TopicLimits()
    )
    started_webhook.start()
    eventually(lambda: started_webhook.ready, what="the webhook is ready")
    yield started_webhook
    started_webhook.stop()


def call(webhook: Webhook, trust: str, body: bytes, *, path: str = "/validate") -> tuple[int, Any]:
    """POST a body as the API server does: with the bundle and the Service's name."""
    context = ssl.create_default_context(cadata=trust)
    plain = socket.create_connection(("127.0.0.1", webhook.port), 10)
    with context.wrap_socket(plain, server_hostname=HOST) as secured:
        connection = http.client.HTTPConnection(HOST)
        connection.sock = secured
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_the_webhook_answers_over_https_by_its_own_authority(webhook: Webhook, keeper: Keeper) -> None:
    body = json.dumps({"kind": "AdmissionReview", "request": request(FLIGHTS)}).encode()
    code, answer = call(webhook, keeper.certificates.bundle, body)
    assert code == 200
    assert answer["kind"] == "AdmissionReview"
    assert answer["response"] == {"uid": "u-1", "allowed": True}


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [("/validate", b"no JSON", 400), ("/validate", b"[]", 400), ("/validate", b"{}", 400), ("/else", b"{}", 404)],
)
def test_a_request_without_a_review_is_an_error(
    webhook: Webhook, keeper: Keeper, path: str, body: bytes, expected: int
) -> None:
    assert call(webhook, keeper.certificates.bundle, body, path=path)[0] == expected


def test_a_silent_client_delays_no_other_request(webhook: Webhook, keeper: Keeper) -> None:
    with socket.create_connection(("127.0.0.1", webhook.port), 10):
        assert call(webhook, keeper.certificates.bundle, b"{}")[0] == 400


def test_another_certificate_is_used_without_a_restart(webhook: Webhook) -> None:
    later = renew_if_needed(None, hosts=[HOST], now=dt.datetime.now(dt.UTC))
    with pytest.raises(ssl.SSLCertVerificationError):
        call(webhook, later.bundle, b"{}")
    load_certificate(webhook._context, later)
    assert call(webhook, later.bundle, b"{}")[0] == 400
