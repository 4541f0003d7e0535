"""Tests of deleted pipelines, deleted namespaces and an uninstalled operator: data are kept or deleted as specified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from demo.cluster import OPERATOR_NAMESPACE
from tidemill_contract import names

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]

_EVENTS = 2_000


class Pair:
    """Two pipelines: `keeping`, whose data are kept after its deletion, and `leaving`, whose data are deleted."""

    def __init__(self, world: Any, namespace: str, orders: Callable[..., Any]) -> None:
        self.world, self.namespace = world, namespace
        self._document = {
            "keeping": orders("keeping", namespace, reclaimPolicy="Retain"),
            "leaving": orders("leaving", namespace),
        }
        self.sent = {name: world.pipeline(document) for name, document in self._document.items()}

    def have_data(self) -> set[str]:
        """Return the pipelines with a topic and a schema. Check that no pipeline has only one of them."""
        data = self.world.data()
        topics = {n for n in self._document if names.topic(self.namespace, n, "events") in data["topics"]}
        schemas = {n for n in self._document if names.schema(self.namespace, n) in data["schemas"]}
        assert topics == schemas
        return topics

    def leave(self) -> None:
        """Close the ports that are forwarded to the pipelines."""
        for sent in self.sent.values():
            sent.platform.leave()


@pytest.fixture
def pair(world: Any, orders: Callable[..., Any], some_orders: Callable[..., Any]) -> Iterator[Pair]:
    """Create both pipelines in one namespace, and send events to them.

    In a cluster that is kept, new pipelines adopt the remaining data at the end, and are deleted with the data.
    """
    pair = Pair(world, world.new_namespace("gone"), orders)
    for sent in pair.sent.values():
        sent.send(some_orders(_EVENTS))
        sent.check()
    yield pair
    pair.leave()
    world.helm.install_operator()
    if not world.is_kept:
        return
    world.make_namespace(pair.namespace)
    for name in pair.have_data():
        document = orders(name, pair.namespace)
        document["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
        world.pipeline(document).platform.leave()
    world.delete_namespaces([pair.namespace])
    assert pair.have_data() == set()


def delete_namespace(world: Any, namespace: str) -> None:
    """Delete a namespace, and wait until it is gone."""
    world.kubectl("delete", "namespace", namespace, "--timeout=240s")


@pytest.mark.matrix
@pytest.mark.fault("namespace-deleted-in-cluster", "nothing is stuck; data go or stay as specified")
def test_a_deleted_namespace_leaves_only_data_to_keep(world: Any, pair: Pair) -> None:
    delete_namespace(world, pair.namespace)
    assert pair.have_data() == {"keeping"}


@pytest.mark.matrix
@pytest.mark.fault("namespace-deleted-without-operator", "nothing is stuck; data go or stay as specified")
def test_a_namespace_is_deleted_without_an_operator(world: Any, pair: Pair) -> None:
    """The CronJob deletes the pipelines, and the data with the policy `Delete`."""
    world.scale_operator(0)
    delete_namespace(world, pair.namespace)
    world.scale_operator(2)  # The test lists the remaining data in the pod of an operator.
    assert pair.have_data() == {"keeping"}


@pytest.mark.parametrize("replicas", [pytest.param(2, marks=pytest.mark.matrix), 0])
@pytest.mark.fault("chart-uninstalled", "pipelines run on; data stay; nothing of the operator is left")
def test_pipelines_run_on_after_the_operator_is_uninstalled(
    replicas: int, world: Any, pair: Pair, some_orders: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """Pipelines and their namespace can be deleted. Their data are kept, and a new release counts later events."""
    world.scale_operator(replicas)
    world.helm.uninstall_operator()
    assert world.get("deployment", "tidemill", OPERATOR_NAMESPACE) == {}
    items = world.json("get", "analyticspipelines", "--namespace", pair.namespace)["items"]
    finalizers = {item["metadata"]["name"]: item["metadata"].get("finalizers", []) for item in items}
    assert finalizers == {"keeping": [], "leaving": []}
    pair.sent["leaving"].send(some_orders(_EVENTS, after=_EVENTS))
    world.kubectl("delete", "analyticspipeline", "keeping", "--namespace", pair.namespace, "--timeout=60s")

    world.helm.install_operator()
    pair.sent["leaving"].check()
    # Without an operator, all data are kept, whatever the policy.
    world.helm.uninstall_operator()
    delete_namespace(world, pair.namespace)
    world.helm.install_operator()
    assert pair.have_data() == {"keeping", "leaving"}
    terminating = [
        item["metadata"]["name"]
        for kind in ("namespaces", "customresourcedefinitions")
        for item in world.json("get", kind)["items"]
        if "deletionTimestamp" in item["metadata"] and item["metadata"]["name"] not in world.terminating
    ]
    assert terminating == []
