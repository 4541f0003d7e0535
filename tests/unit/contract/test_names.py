"""Derived names: two pipelines never share one, and none is too long for its system."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill_contract import names

NAMESPACES = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
NAMES = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?\Z")
# Few letters, so that near misses are drawn often.
SHORT = st.from_regex(r"\A[ab1]([-ab]{0,4}[ab1])?\Z")
PAIRS = st.tuples(NAMESPACES, NAMES) | st.tuples(SHORT, SHORT)
LONG = ("n" * 63, "p" * 40)


def every(namespace: str, name: str) -> dict[str, str]:
    schema = names.schema(namespace, name)
    return {
        "schema": schema,
        "role": names.role(schema, "writer_a"),
        "events": names.topic(namespace, name, "events"),
        "dead letters": names.topic(namespace, name, "dead-letters"),
        "group": names.consumer_group(namespace, name),
        "live": names.live_stream(namespace, name),
        "listeners": names.live_listeners(namespace, name),
    }


@given(PAIRS, PAIRS)
@example(("a--b", "c"), ("a", "b--c"))
@example(("a", "b"), ("a--b", "b"))
@example(("pg-a", "b"), ("t-pg-a", "b"))
@example(("1a", "b"), ("t-1a", "b"))
def test_two_pipelines_never_share_a_name(one: tuple[str, str], other: tuple[str, str]) -> None:
    if one == other:
        assert every(*one) == every(*other)
        return
    for kind, name in every(*one).items():
        assert name != every(*other)[kind], kind


@given(PAIRS)
@example(LONG)
@example(("1" * 63, "2" * 40))
def test_names_fit_their_systems(pair: tuple[str, str]) -> None:
    found = every(*pair)
    for kind in ("schema", "role"):
        assert len(found[kind]) <= names.POSTGRES_MAX
        assert re.fullmatch(r"[a-z_][a-z0-9_]*", found[kind]), "an identifier that needs no quotes"
        assert not found[kind].startswith("pg_"), "reserved by Postgres"
    for kind in ("events", "dead letters"):
        assert len(found[kind]) <= names.KAFKA_MAX
        assert re.fullmatch(r"[a-zA-Z0-9._-]+", found[kind])


@pytest.mark.parametrize("component", ["ingest", "api", "processor"])
def test_services_are_dns_labels(component: str) -> None:
    assert len(names.service(LONG[1], component)) <= names.SERVICE_MAX


def test_derived_names_of_short_names_are_readable() -> None:
    assert names.schema("analytics", "web-traffic") == "analytics__web_traffic"
    assert names.topic("analytics", "flights", "events") == "analytics.flights.events"
    assert names.consumer_group("analytics", "flights") == "tidemill.analytics.flights"
    assert names.consumer_group("analytics", "flights", "replay-2") == "tidemill.analytics.flights.replay-2"
    assert names.window_table("by_carrier", 1) == "by_carrier_v1"
