"""The whole platform in a cluster, installed once: images, both charts, pipelines, load, and what must come out.

`make e2e`. A cluster that was there before stays, with the charts; its pipelines must be none but these tests' own.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from demo.cluster import ClusterPlatform, Kubectl
from demo.installation import ROOT, Helm, Steps, prepare, remove_cluster
from documented import ClusterPage
from in_cluster.orders import orders, some_orders
from in_cluster.sent import Sent
from in_cluster.world import MARK, World, eventually
from kube import local
from kube.ability import why_not
from kube.layout import DEFAULT_FOLDER

_FIGURES = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Figures are gathered by tests and told at the end."""
    config.stash[_FIGURES] = {}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What was measured; none of it decides whether a test passes."""
    figures = config.stash[_FIGURES]
    if figures:
        terminalreporter.section("figures")
    for what, figure in figures.items():
        terminalreporter.write_line(f"{what}: {figure}")


@pytest.fixture(autouse=True)
def _recorded(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[None]:
    """A test's figures are in the table of faults as well, if it is of one."""
    figures = request.config.stash[_FIGURES]
    before = dict(figures)
    yield
    for what, figure in figures.items():
        if before.get(what) != figure:
            record_property(what, figure)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    """With a failure comes what the cluster says."""
    report = yield
    world = getattr(item, "funcargs", {}).get("world")
    if report.failed and world is not None:
        report.sections.append(("cluster", world.describe()))
    return report


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The cluster with both charts; removed at the end if it was started here and KEEP is not set."""
    provider = os.environ.get("E2E_PROVIDER", "auto")
    if reason := why_not(provider):
        pytest.skip(f"no cluster can run on this machine: {reason}")
    figures = request.config.stash[_FIGURES]
    steps = Steps(Console(stderr=True, width=140))
    # A stop of ours has to stop what we started as well.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    place = prepare(steps, provider)
    keep = bool(os.environ.get("KEEP"))
    try:
        _require_no_others(place.kubectl)
        helm = Helm(steps, place.kubeconfig, place.images, ROOT / "helm" / "ci" / "values.yaml")
        helm.install_servers()
        helm.install_operator()
        figures["images, charts and cluster are there after"] = f"{steps.total():.0f} s"
        is_local = local.LocalCluster(DEFAULT_FOLDER).there()
        stays = keep or not place.started
        found = World(place.kubeconfig, place.kubectl, helm, figures, local=is_local, stays=stays)
        yield found
        if not (keep or place.started):
            found.delete_namespaces(found.made)
            for namespace in found.dropped:
                found.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=180s")
    finally:
        if place.started and not keep:
            remove_cluster()


def _require_no_others(kubectl: Kubectl) -> None:
    served = kubectl("get", "customresourcedefinitions", "--output", "name")
    if "analyticspipelines.tidemill.dev" not in served:
        return
    namespaces = kubectl("get", "namespaces", "--selector", MARK, "--output", "jsonpath={.items[*].metadata.name}")
    for item in json.loads(kubectl("get", "analyticspipelines", "--all-namespaces", "--output", "json"))["items"]:
        if item["metadata"]["namespace"] not in namespaces.split():
            name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
            pytest.exit(f"the cluster has the pipeline {name}, which is not of these tests: use another cluster", 2)


@pytest.fixture(scope="module")
def shop(world: World) -> Iterator[Sent]:
    """A pipeline of two processors that the tests of a module share, in a namespace of its own."""
    namespace = world.new_namespace("shop")
    sent = world.pipeline(orders("orders", namespace, processor={"flushInterval": "250ms", "replicas": 2}))
    yield sent
    sent.platform.leave()
    world.drop_namespaces([namespace])


@pytest.fixture(scope="session")
def page(world: World, tmp_path_factory: pytest.TempPathFactory) -> ClusterPage:
    """The page, of which nothing is typed yet."""
    namespace = world.new_namespace("documented")
    file = tmp_path_factory.mktemp("documented") / "flights.yaml"
    return ClusterPage(world.kubectl, namespace, file)


@pytest.fixture(name="orders", scope="session")
def _orders() -> Callable[..., dict[str, Any]]:
    """Documents of pipelines: `orders("name", "namespace", suspend=True)`."""
    return orders


@pytest.fixture(name="some_orders", scope="session")
def _some_orders() -> Callable[..., pl.DataFrame]:
    """Events for them: `some_orders(1000, after=500)`."""
    return some_orders


@pytest.fixture(name="eventually", scope="session")
def _eventually() -> Callable[..., Any]:
    """Waits for a condition with a deadline."""
    return eventually


@pytest.fixture(scope="session")
def sent_to() -> Callable[[ClusterPlatform], Sent]:
    """Keeps account of what a pipeline is sent."""
    return Sent
