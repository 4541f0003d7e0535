"""Tests of the limits between namespaces: restricted pods, Secrets, topics of other namespaces, network policies."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from demo.cluster import OPERATOR_NAMESPACE
from demo.runtime import DemoError
from tidemill_contract import names

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]

# Prints whether a connection succeeds. It runs in a processor's pod.
_CONNECT = """\
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10).close()
    print("open")
except OSError as error:
    print(f"closed: {error}")
"""
_SERVERS = {"dev-stack-postgres": 5432, "dev-stack-redis": 6379, "dev-stack-kafka": 9092}


def test_every_pod_of_a_pipeline_is_restricted(world: Any, shop: Any) -> None:
    """All pods run in a namespace that refuses a pod with more rights."""
    pods = world.pods(shop.platform.namespace)
    components = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods}
    assert components == {"processor", "ingest", "api"}
    image = pods[0]["spec"]["containers"][0]["image"]
    with pytest.raises(DemoError, match='violates PodSecurity "restricted:latest"'):
        world.kubectl("run", "loose", f"--image={image}", "--namespace", shop.platform.namespace)


def test_no_pod_can_read_secrets_that_are_not_mounted_in_it(world: Any, shop: Any) -> None:
    """No pod has a token, and no pod's account may read a Secret.

    A processor's pod mounts only Secrets of its pipeline.
    """
    mine, other = shop.platform.namespace, world.new_namespace("vault")
    world.kubectl("create", "secret", "generic", "jewels", "--namespace", other, "--from-literal=a=b")
    for pod in world.pods(mine):
        spec, name = pod["spec"], pod["metadata"]["name"]
        mounts = [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]]
        assert not any("serviceaccount" in mount for mount in mounts), name
        account = f"system:serviceaccount:{mine}:{spec['serviceAccountName']}"
        for namespace in (mine, other):
            for verb in ("get", "list", "watch"):
                answer = _may(world, verb, namespace, account)
                assert answer == "no", (name, verb, namespace)
        secrets = {volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}
        if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "processor":
            owners = {_pipeline_of(world, secret, mine) for secret in secrets}
            assert owners <= {shop.platform.name, None}, secrets
    world.delete_namespaces([other])


def _may(world: Any, verb: str, namespace: str, account: str) -> str:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": account, "resourceAttributes": {"namespace": namespace, "verb": verb, "resource": "secrets"}},
    }
    answer = json.loads(world.kubectl("create", "--output", "json", "--filename", "-", stdin=json.dumps(review)))
    return "yes" if answer["status"]["allowed"] else "no"


def _pipeline_of(world: Any, secret: str, namespace: str) -> str | None:
    labels = world.get("secret", secret, namespace)["metadata"].get("labels", {})
    return labels.get("tidemill.dev/pipeline")


@pytest.mark.parametrize("managed", [True, False])
def test_a_topic_of_another_namespace_is_refused(
    managed: bool, world: Any, shop: Any, orders: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """The webhook refuses the pipeline. Without the webhook, no pass of the operator changes the topic."""
    mine = world.new_namespace("other")
    foreign = f"{shop.platform.namespace}.orders.events"
    document = orders("thief", mine)
    document["spec"]["source"]["topic"] = {"name": foreign, "managed": managed}

    def refused() -> bool:
        try:
            world.kubectl("create", "--dry-run=server", "--filename", "-", stdin=json.dumps(document))
        except DemoError as error:
            return "spec.source.topic.name" in str(error)
        return False

    eventually(refused, what="the webhook refuses the pipeline")
    with no_webhook(world):
        world.kubectl("create", "--filename", "-", stdin=json.dumps(document))
    condition = eventually(lambda: _stalled(world, mine), what="the resource has the condition Stalled")
    assert condition["status"] == "True"
    assert "spec.source.topic.name" in condition["message"]
    assert world.pods(mine) == []
    world.delete_namespaces([mine])
    data = world.data()
    assert foreign in data["topics"]
    assert [topic for topic in data["topics"] if topic.startswith(f"{mine}.")] == []
    assert names.schema(mine, "thief") not in data["schemas"]


def _stalled(world: Any, namespace: str) -> dict[str, Any] | None:
    status = world.get("analyticspipeline", "thief", namespace).get("status", {})
    return next((item for item in status.get("conditions", ()) if item["type"] == "Stalled"), None)


@contextlib.contextmanager
def no_webhook(world: Any) -> Iterator[None]:
    """Turn the webhooks off while the block runs."""
    kinds = "mutatingwebhookconfigurations,validatingwebhookconfigurations"
    hooks = world.kubectl("get", kinds, "--selector", "app.kubernetes.io/name=tidemill-operator", "--output", "name")

    def select(namespaces: dict[str, Any]) -> None:
        patch = [{"op": "add", "path": "/webhooks/0/namespaceSelector", "value": namespaces}]
        for name in hooks.split():
            world.kubectl("patch", name, "--type", "json", "--patch", json.dumps(patch))

    select({"matchLabels": {"nobody": "here"}})
    try:
        yield
    finally:
        select({})


def test_network_policies_allow_processors_only_the_servers_they_need(
    world: Any, shop: Any, eventually: Callable[..., Any]
) -> None:
    """A processor connects to Kafka, Postgres and Redis, but not to Prometheus and the API server."""
    path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/services/dev-stack-prometheus:9090/proxy/-/ready"
    assert "Ready" in world.kubectl("get", "--raw", path)

    def connect(host: str, port: int) -> str:
        command = ("python", "-c", _CONNECT, host, str(port))
        return str(
            world.kubectl("exec", "deployment/orders-processor", "--namespace", shop.platform.namespace, "--", *command)
        ).strip()

    for name, port in _SERVERS.items():
        assert connect(f"{name}.{OPERATOR_NAMESPACE}.svc", port) == "open", name
    for host, port in ((f"dev-stack-prometheus.{OPERATOR_NAMESPACE}.svc", 9090), ("kubernetes.default.svc", 443)):
        answer = connect(host, port)
        assert answer.startswith("closed: "), (host, answer)
        assert "not known" not in answer
