"""Tests of webhooks and MQTT in the spec: examples, defaults and addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.inputs.mqtt import MqttSpec
from tidemill_contract.resource.inputs.webhooks import WebhookSpec
from tidemill_contract.resource.validate import check_document

EXAMPLES = sorted((Path(__file__).parents[3] / "crds" / "examples" / "inputs").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_of_inputs_passes_validation(example: Path) -> None:
    (document,) = load_documents(example.read_text())
    assert check_document(document)[1] == []


@pytest.mark.parametrize(
    ("broker", "expected"),
    [
        ("mqtt://host", ("host", 1883, False)),
        ("mqtts://host", ("host", 8883, True)),
        ("mqtts://10.0.0.1:443/", ("10.0.0.1", 443, True)),
        ("mqtt://[::1]:1884", ("::1", 1884, False)),
    ],
)
def test_the_address_of_a_broker_is_parsed_with_the_default_port(broker: str, expected: tuple[Any, ...]) -> None:
    spec = MqttSpec(broker=broker, topics=["#"])
    assert (spec.host, spec.port, spec.tls) == expected
    assert list(spec.faults("p")) == []


@pytest.mark.parametrize(
    "broker", ["", "host", "http://host", "mqtt://", "mqtt://host:0", "mqtt://host:x", "mqtt://[::1"]
)
def test_an_invalid_address_of_a_broker_is_refused(broker: str) -> None:
    spec = MqttSpec.model_construct(broker=broker, topics=["a"])
    (fault,) = spec.faults("p")
    assert (fault.path, fault.message) == ("p.broker", "is not the address of a broker")


def test_the_signed_text_of_a_webhook_contains_the_time_if_a_header_is_configured_for_it() -> None:
    base = {"name": "a", "signature": "hmac", "header": "X", "secretRef": {"name": "s", "key": "k"}}
    assert WebhookSpec.model_validate(base).signed_text == "{body}"
    timed = WebhookSpec.model_validate({**base, "timestampHeader": "T", "tolerance": "90s"})
    assert (timed.signed_text, timed.tolerance_seconds) == ("{timestamp}.{body}", 90)


@pytest.mark.parametrize(
    ("topics", "subscriptions"),
    [
        (["plant/+/temp", "plant/+/temp/#"], ("plant/+/temp/#",)),
        (["#", "a", "$SYS/load"], ("#", "$SYS/load")),
        (["a/+", "a/b", "a", "a/b/c"], ("a/+", "a", "a/b/c")),
        (["a/+/c", "a/b/+"], ("a/+/c", "a/b/+")),
        (["a/#", "a/b/#", "a"], ("a/#",)),
        (["+/b", "#"], ("#",)),
    ],
)
def test_a_topic_that_another_topic_includes_has_no_subscription(
    topics: list[str], subscriptions: tuple[str, ...]
) -> None:
    assert MqttSpec(broker="mqtt://b", topics=topics).subscriptions == subscriptions
