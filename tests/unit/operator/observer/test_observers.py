"""Tests of the choice of the observer that measures a pipeline: one for each Kafka cluster and login."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tidemill_operator.actuators.kafka.clusters import Clusters, secret_file_reader
from tidemill_operator.actuators.kafka.offsets import OffsetReader
from tidemill_operator.keys import Key
from tidemill_operator.observer.observers import Observers
from tidemill_operator.settings import NO_POSTGRES

ORDERS, BIDS = Key("shop", "orders", "u1"), Key("shop", "bids", "u2")


@pytest.fixture
def observers(tmp_path: Path) -> Observers:
    clusters = Clusters(secret_file_reader(tmp_path))
    return Observers(OffsetReader("own:9092"), clusters, NO_POSTGRES, lambda *_: None)


def status(servers: str = "", secret: str = "") -> dict[str, Any]:
    kafka = {"bootstrapServers": servers} | ({"secretRef": {"name": secret}} if secret else {})
    topic = {"name": "crm.orders"} | ({"kafka": kafka} if servers else {})
    return {"schema": "shop__orders", "topics": [topic]}


def measured(observers: Observers) -> dict[str, set[str]]:
    """Return the names of the pipelines that are measured, by cluster."""
    parts = {
        "own:9092": observers._own,
        **{at.connection.servers: observer for at, observer in observers._others.items()},
    }
    return {servers: {key.name for key in observer._pipelines} for servers, observer in parts.items()}


def test_each_cluster_has_another_observer(observers: Observers) -> None:
    observers.watch(ORDERS, status("a:9092"))
    observers.watch(BIDS, status("a:9092"))
    assert measured(observers) == {"own:9092": set(), "a:9092": {"orders", "bids"}}
    observers.watch(BIDS, status())
    observers.watch(ORDERS, status("b:9092"))
    assert measured(observers) == {"own:9092": {"bids"}, "b:9092": {"orders"}}
    observers.forget(ORDERS)
    observers.forget(BIDS)
    assert measured(observers) == {"own:9092": set()}


def test_a_changed_login_gets_another_observer_and_an_invalid_one_is_ignored(
    observers: Observers, tmp_path: Path
) -> None:
    observers.watch(ORDERS, status("a:9092", "crm"))
    assert measured(observers) == {"own:9092": set()}
    folder = tmp_path / "shop" / "crm"
    folder.mkdir(parents=True)
    observers.watch(ORDERS, status("a:9092", "crm"))
    (first,) = observers._others.values()
    observers.watch(ORDERS, status("a:9092", "crm"))
    assert list(observers._others.values()) == [first]
    (folder / "security.protocol").write_text("ssl")
    observers.watch(ORDERS, status("a:9092", "crm"))
    (second,) = observers._others.values()
    assert second is not first
    (folder / "security.protocol").write_text("none")
    observers.watch(ORDERS, status("a:9092", "crm"))
    assert list(observers._others.values()) == [second]
    assert measured(observers) == {"own:9092": set(), "a:9092": {"orders"}}
