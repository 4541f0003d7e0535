"""Tests of the planned configs of connectors: added settings, routes, references to secrets, and parts of traces."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest

from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.resource.validate import check_document
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.changes import find_changes
from tidemill_operator.plan.connect.connectors import POSTGRES
from tidemill_operator.plan.connect.states import last_cause, mask_secrets
from tidemill_operator.plan.describe import describe
from tidemill_operator.plan.live import LiveFacts
from tidemill_operator.plan.model import Plan
from tidemill_operator.plan.restarts import processor_settings
from tidemill_operator.settings import Platform

Document = dict[str, Any]
SHOP = {
    "name": "shop_db",
    "class": POSTGRES,
    "config": {"database.hostname": "db", "table.include.list": "public.orders"},
    "secrets": {"database.password": {"name": "shop-db", "key": "password"}},
}


def with_connectors(document: Document, *connectors: Document, **source: Any) -> Document:
    edited = copy.deepcopy(document)
    edited["spec"]["source"] |= {"format": {"envelope": "debezium"}, "connectors": list(connectors), **source}
    return edited


def plan_of(document: Document, **platform: Any) -> Plan:
    return build_plan(AnalyticsPipeline.model_validate(document), replace(Platform(), **platform), 1)


def test_a_debezium_connector_needs_only_the_settings_of_its_database(document: Document) -> None:
    """Slot and topics have the name of the connector. Secrets are references, and records go to the source topic."""
    (connector,) = plan_of(with_connectors(document, SHOP)).connectors
    config = connector.config
    assert connector.name == config["name"] == config["topic.prefix"] == "shop.orders.shop_db"
    assert (config["connector.class"], config["tasks.max"]) == (POSTGRES, "1")
    assert config["database.password"] == "${secrets:shop/shop-db:password}"
    assert connector.secrets == (("shop-db", "password"),)
    assert config["slot.name"] == config["publication.name"] == "tidemill_shop_orders_shop_db"
    assert config["publication.autocreate.mode"] == "filtered"
    assert config["value.converter.schemas.enable"] == "false"
    assert config["decimal.handling.mode"] == "double"
    assert config["transforms"] == "tidemillLeaveOut,tidemillTopic"
    assert config["transforms.tidemillTopic.replacement"] == "shop.orders.events"
    left_out = re.compile(config["predicates.tidemillNoChange.pattern"])
    prefix = "shop.orders.shop_db"
    assert all(map(left_out.fullmatch, (f"__debezium-heartbeat.{prefix}", prefix, f"{prefix}.transaction")))
    assert not any(map(left_out.fullmatch, (f"{prefix}.public.orders", f"{prefix}.public.transaction")))


def test_settings_of_the_spec_count_more_and_its_transforms_are_kept(document: Document) -> None:
    """Only the route of the records cannot be changed."""
    own = {
        "slot.name": "mine",
        "topic.prefix": "p",
        "decimal.handling.mode": "precise",
        "value.converter": "my.Converter",
        "transforms": "unwrap, more",
        "predicates": "isOrder",
    }
    document = with_connectors(document, {**SHOP, "config": own}, format={"envelope": "none"})
    (connector,) = plan_of(document).connectors
    assert {key: connector.config[key] for key in own if key not in ("transforms", "predicates")} == {
        key: text for key, text in own.items() if key not in ("transforms", "predicates")
    }
    assert connector.config["transforms"] == "tidemillLeaveOut,unwrap,more,tidemillTopic"
    assert connector.config["predicates"] == "isOrder,tidemillNoChange"
    assert "value.converter.schemas.enable" not in connector.config
    assert re.fullmatch(connector.config["predicates.tidemillNoChange.pattern"], "p.transaction")


def test_decimals_are_strings_if_a_field_is_a_decimal(document: Document) -> None:
    document = with_connectors(document, SHOP)
    document["spec"]["source"]["fields"].append({"name": "fee", "type": "decimal", "scale": 2})
    assert plan_of(document).connectors[0].config["decimal.handling.mode"] == "string"


def test_other_connectors_get_only_converters_and_the_route(document: Document) -> None:
    """Nothing is known about the class, and the workers of the platform mount Secrets as folders."""
    secret = {"user": {"name": "db", "key": "user"}}
    other = {"name": "other", "class": "com.example.Source", "tasks": 3, "secrets": secret}
    template = "${directory:/secrets/{namespace}/{name}:{key}}"
    (connector,) = plan_of(with_connectors(document, other), connect_secrets=template, cluster_id="west").connectors
    assert dict(connector.config) == {
        "name": "shop.orders.other",
        "connector.class": "com.example.Source",
        "tasks.max": "3",
        "user": "${directory:/secrets/shop/db:user}",
        "key.converter": "org.apache.kafka.connect.json.JsonConverter",
        "key.converter.schemas.enable": "false",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "false",
        "transforms": "tidemillTopic",
        "transforms.tidemillTopic.type": "org.apache.kafka.connect.transforms.RegexRouter",
        "transforms.tidemillTopic.regex": ".*",
        "transforms.tidemillTopic.replacement": "shop.orders.events",
        "tidemill.owner": f"west/shop/orders/{document['metadata'].get('uid', '')}",
    }


def test_an_edit_of_a_connector_restarts_no_processor_and_is_planned(document: Document) -> None:
    before, after = (
        plan_of(with_connectors(document, {**SHOP, "tasks": tasks}, {**SHOP, "name": name}))
        for tasks, name in ((1, "old"), (2, "new"))
    )
    revisions = [next(w.revision for w in plan.workloads if w.component == "processor") for plan in (before, after)]
    assert revisions[0] == revisions[1]
    planned_changes = {
        (change.action, change.name): [difference.member for difference in change.differences]
        for change in find_changes(after, LiveFacts(), before=before, configs={})
        if change.kind == "connector"
    }
    assert planned_changes["change", "shop.orders.shop_db"] == ["config.tasks.max"]
    assert set(planned_changes) - {("change", "shop.orders.shop_db")} == {
        ("create", "shop.orders.new"),
        ("remove", "shop.orders.old"),
    }
    assert describe(after)["connectors"][0]["config"]["tasks.max"] == "2"
    assert processor_settings  # the setting is listed in plan.restarts.IGNORED_SETTINGS


def test_no_message_shows_a_secret(document: Document) -> None:
    """A secret in plain text and a login in a URL are refused without showing them."""
    config = {"database.password": "hunter2", "connection.url": "jdbc:x://me:hunter2@db/x", "a": "${file:/x:hunter2}"}
    _, faults = check_document(with_connectors(document, {**SHOP, "secrets": {}, "config": config}))
    assert len(faults) == 3
    assert "hunter2" not in " ".join(map(str, faults))


TRACES = [
    ("", "no trace"),
    (
        "a.B: one\n\tat x.y(Z.java:1)\nCaused by: c.D: two\n\tat z\nCaused by: e.F: the cause\n\t... 3 more",
        "e.F: the cause",
    ),
    ("java.lang.Exception: refused\n\tat x", "java.lang.Exception: refused"),
    (
        "a.B: url jdbc:postgresql://me:hunter2@db/x?password=hunter2&a=1",
        "a.B: url jdbc:postgresql://me:…@db/x?password=…&a=1",
    ),
    (
        "a.B: Invalid value hunter2 for configuration port: no number",
        "a.B: Invalid value … for configuration port: no number",
    ),
]


@pytest.mark.parametrize(("trace", "expected"), TRACES, ids=[expected for _, expected in TRACES])
def test_a_trace_is_shortened_to_its_last_cause(trace: str, expected: str) -> None:
    assert last_cause(trace) == expected


def test_a_text_of_connect_becomes_one_line() -> None:
    assert mask_secrets("one\n\ttwo token: abc, x") == "one two token: …, x"


@pytest.mark.parametrize("text", ["secret" * 20_000, "Invalid value a" * 8_000, "password=" + "x" * 100_000])
def test_a_long_text_of_connect_is_cut_before_it_is_searched_for_secrets(text: str) -> None:
    assert len(mask_secrets(text)) <= 2_000
