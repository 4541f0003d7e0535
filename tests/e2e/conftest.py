"""The whole platform in a cluster for all tests of `make e2e`: images, servers and operator are installed once.

An existing cluster is kept with the charts. It must have no pipelines except those of these tests.
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
from kube.ability import why_not
from kube.local.cluster import LocalCluster
from kube.local.layout import DEFAULT_FOLDER

_FIGURES = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the figures that tests record."""
    config.stash[_FIGURES] = {}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the recorded figures. No figure decides whether a test passes."""
    figures = config.stash[_FIGURES]
    if figures:
        terminalreporter.section("figures")
    for name, figure in figures.items():
        terminalreporter.write_line(f"{name}: {figure}")


@pytest.fixture(autouse=True)
def _recorded(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Record the figures of a test as its properties, for the table of faults."""
    figures = request.config.stash[_FIGURES]
    before = dict(figures)
    yield
    for name, figure in figures.items():
        if before.get(name) != figure:
            record_property(name, figure)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    """Add the state of the cluster to the report of a failure."""
    report = yield
    world = getattr(item, "funcargs", {}).get("world")
    if report.failed and world is not None:
        report.sections.append(("cluster", world.describe()))
    return report


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Install both charts in a cluster. Remove the cluster at the end if it was started here and KEEP is not set."""
    provider = os.environ.get("E2E_PROVIDER", "auto")
    if reason := why_not(provider):
        pytest.skip(f"no cluster can run on this machine: {reason}")
    figures = request.config.stash[_FIGURES]
    steps = Steps(Console(stderr=True, width=140))
    # SIGTERM must end the session like Ctrl-C, so that the cluster is removed too.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    cluster = prepare(steps, provider)
    keep = bool(os.environ.get("KEEP"))
    try:
        _require_no_others(cluster.kubectl)
        helm = Helm(steps, cluster.kubeconfig, cluster.images, ROOT / "helm" / "ci" / "values.yaml")
        helm.install_servers()
        helm.install_operator()
        figures["images, charts and cluster are ready after"] = f"{steps.total():.0f} s"
        is_local = LocalCluster(DEFAULT_FOLDER).exists()
        is_kept = keep or not cluster.started
        world = World(cluster.kubeconfig, cluster.kubectl, helm, figures, local=is_local, is_kept=is_kept)
        yield world
        if not (keep or cluster.started):
            world.delete_namespaces(world.namespaces)
            for namespace in world.terminating:
                world.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=180s")
    finally:
        if cluster.started and not keep:
            remove_cluster()


def _require_no_others(kubectl: Kubectl) -> None:
    served = kubectl("get", "customresourcedefinitions", "--output", "name")
    if "analyticspipelines.tidemill.dev" not in served:
        return
    namespaces = kubectl("get", "namespaces", "--selector", MARK, "--output", "jsonpath={.items[*].metadata.name}")
    for item in json.loads(kubectl("get", "analyticspipelines", "--all-namespaces", "--output", "json"))["items"]:
        if item["metadata"]["namespace"] not in namespaces.split():
            name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
            pytest.exit(
                f"the cluster has the pipeline {name}, which these tests have not created: use another cluster", 2
            )


@pytest.fixture(scope="module")
def shop(world: World) -> Iterator[Sent]:
    """Create a pipeline with two processors in a new namespace, for all tests of a module."""
    namespace = world.new_namespace("shop")
    sent = world.pipeline(orders("orders", namespace, processor={"flushInterval": "250ms", "replicas": 2}))
    yield sent
    sent.platform.leave()
    world.begin_to_delete_namespaces([namespace])


@pytest.fixture(scope="session")
def page(world: World, tmp_path_factory: pytest.TempPathFactory) -> ClusterPage:
    """Return the page docs/DEPLOYMENT.md, whose commands are not run yet."""
    namespace = world.new_namespace("documented")
    file = tmp_path_factory.mktemp("documented") / "flights.yaml"
    return ClusterPage(world.kubectl, namespace, file)


@pytest.fixture(name="orders", scope="session")
def _orders() -> Callable[..., dict[str, Any]]:
    """Return the function that makes documents of pipelines, as in `orders("name", "namespace", suspend=True)`."""
    return orders


@pytest.fixture(name="some_orders", scope="session")
def _some_orders() -> Callable[..., pl.DataFrame]:
    """Return the function that makes their events, as in `some_orders(1000, after=500)`."""
    return some_orders


@pytest.fixture(name="eventually", scope="session")
def _eventually() -> Callable[..., Any]:
    """Return the function that waits for a condition with a deadline."""
    return eventually


@pytest.fixture(scope="session")
def sent_to() -> Callable[[ClusterPlatform], Sent]:
    """Return the class that sends events to a pipeline, and compares its windows with them."""
    return Sent
