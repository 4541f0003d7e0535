"""Tests of derived names: two pipelines never share a name, and names fit the limits of their systems."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill_contract import names

NAMESPACES = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
NAMES = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?\Z")
# Few letters make similar names frequent.
SHORT = st.from_regex(r"\A[ab1]([-ab]{0,4}[ab1])?\Z")
PAIRS = st.tuples(NAMESPACES, NAMES) | st.tuples(SHORT, SHORT)
LONG = ("n" * 63, "p" * 40)


def names_of(namespace: str, name: str) -> dict[str, str]:
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
def test_two_pipelines_never_share_a_derived_name(pair: tuple[str, str], other: tuple[str, str]) -> None:
    if pair == other:
        assert names_of(*pair) == names_of(*other)
        return
    for kind, name in names_of(*pair).items():
        assert name != names_of(*other)[kind], kind


@given(PAIRS)
@example(LONG)
@example(("1" * 63, "2" * 40))
def test_derived_names_are_valid_in_their_systems(pair: tuple[str, str]) -> None:
    derived = names_of(*pair)
    for kind in ("schema", "role"):
        assert len(derived[kind]) <= names.POSTGRES_MAX
        assert re.fullmatch(r"[a-z_][a-z0-9_]*", derived[kind]), "the identifier needs quotes"
        assert not derived[kind].startswith("pg_"), "the prefix is reserved by Postgres"
    for kind in ("events", "dead letters"):
        assert len(derived[kind]) <= names.KAFKA_MAX
        assert re.fullmatch(r"[a-zA-Z0-9._-]+", derived[kind])


@pytest.mark.parametrize("component", ["ingest", "api", "processor"])
def test_names_of_services_fit_dns_labels(component: str) -> None:
    assert len(names.service(LONG[1], component)) <= names.SERVICE_MAX


def test_derived_names_of_short_names_are_readable() -> None:
    assert names.schema("analytics", "web-traffic") == "analytics__web_traffic"
    assert names.topic("analytics", "flights", "events") == "analytics.flights.events"
    assert names.consumer_group("analytics", "flights") == "tidemill.analytics.flights"
    assert names.consumer_group("analytics", "flights", "replay-2") == "tidemill.analytics.flights.replay-2"
    assert names.window_table("by_carrier", 1) == "by_carrier_v1"
