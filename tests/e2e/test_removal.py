"""What is left when pipelines, their namespace or the operator go: nothing hangs, data stay or go as specified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from demo.cluster import OPERATOR_NAMESPACE
from tidemill_contract import names

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]

_EVENTS = 2_000


class Pair:
    """A pipeline whose data stay, and one whose data go with it."""

    def __init__(self, world: Any, namespace: str, orders: Callable[..., Any]) -> None:
        self.world, self.namespace = world, namespace
        self._document = {
            "keeping": orders("keeping", namespace, reclaimPolicy="Retain"),
            "leaving": orders("leaving", namespace),
        }
        self.sent = {name: world.pipeline(document) for name, document in self._document.items()}

    def have_data(self) -> set[str]:
        """Those with a topic and a schema; a topic without its schema, or the other way round, is a fault."""
        data = self.world.data()
        topics = {n for n in self._document if names.topic(self.namespace, n, "events") in data["topics"]}
        schemas = {n for n in self._document if names.schema(self.namespace, n) in data["schemas"]}
        assert topics == schemas
        return topics

    def leave(self) -> None:
        """Whoever uses the services' ports ends."""
        for sent in self.sent.values():
            sent.platform.leave()


@pytest.fixture
def pair(world: Any, orders: Callable[..., Any], some_orders: Callable[..., Any]) -> Iterator[Pair]:
    """Both in one namespace, with events counted.

    Where the cluster stays, what stays of them is removed by taking it over first.
    """
    pair = Pair(world, world.new_namespace("gone"), orders)
    for sent in pair.sent.values():
        sent.send(some_orders(_EVENTS))
        sent.check()
    yield pair
    pair.leave()
    world.helm.install_operator()
    if not world.stays:
        return
    world.make_namespace(pair.namespace)
    for name in pair.have_data():
        document = orders(name, pair.namespace)
        document["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
        world.pipeline(document).platform.leave()
    world.delete_namespaces([pair.namespace])
    assert pair.have_data() == set()


def delete_namespace(world: Any, namespace: str) -> None:
    """Delete it and wait until it has gone."""
    world.kubectl("delete", "namespace", namespace, "--timeout=240s")


@pytest.mark.matrix
@pytest.mark.fault("namespace-deleted-in-cluster", "nothing is stuck; data go or stay as specified")
def test_a_namespace_is_deleted(world: Any, pair: Pair) -> None:
    delete_namespace(world, pair.namespace)
    assert pair.have_data() == {"keeping"}


@pytest.mark.matrix
@pytest.mark.fault("namespace-deleted-without-operator", "nothing is stuck; data go or stay as specified")
def test_a_namespace_is_deleted_while_no_operator_runs(world: Any, pair: Pair) -> None:
    """The CronJob finds what waits, and deletes the data that are to go."""
    world.scale_operator(0)
    delete_namespace(world, pair.namespace)
    world.scale_operator(2)  # whose pod is asked what is left
    assert pair.have_data() == {"keeping"}


@pytest.mark.parametrize("replicas", [pytest.param(2, marks=pytest.mark.matrix), 0])
@pytest.mark.fault("chart-uninstalled", "pipelines run on; data stay; nothing of the operator is left")
def test_the_operator_is_uninstalled(
    replicas: int, world: Any, pair: Pair, some_orders: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """Pipelines run on; they and their namespace can be deleted; a new release finds the data that stayed."""
    world.scale_operator(replicas)
    world.helm.uninstall_operator()
    assert world.get("deployment", "tidemill", OPERATOR_NAMESPACE) == {}
    found = {
        i["metadata"]["name"]: i["metadata"]
        for i in world.json("get", "analyticspipelines", "--namespace", pair.namespace)["items"]
    }
    assert {name: metadata.get("finalizers", []) for name, metadata in found.items()} == {"keeping": [], "leaving": []}
    pair.sent["leaving"].send(some_orders(_EVENTS, after=_EVENTS))
    world.kubectl("delete", "analyticspipeline", "keeping", "--namespace", pair.namespace, "--timeout=60s")

    world.helm.install_operator()
    pair.sent["leaving"].check()
    # Deleted while nobody could reclaim: the data are there, whatever was specified.
    world.helm.uninstall_operator()
    delete_namespace(world, pair.namespace)
    world.helm.install_operator()
    assert pair.have_data() == {"keeping", "leaving"}
    terminating = [
        item["metadata"]["name"]
        for kind in ("namespaces", "customresourcedefinitions")
        for item in world.json("get", kind)["items"]
        if "deletionTimestamp" in item["metadata"] and item["metadata"]["name"] not in world.dropped
    ]
    assert terminating == []
