"""An operator that is killed after every single write, again and again, comes to the same end as one that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tidemill_operator.actuators.kubernetes_api import EVENT, KINDS, Api, Document, Kind
from tidemill_operator.queue import Key, Result

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.slow]

REPLICA_SET = Kind("apps/v1", "ReplicaSet", "replicasets")
_MOST = 100


class Killed(BaseException):
    """What no handler of errors catches."""


class MortalApi(Api):
    """Dies right after its first write."""

    def _call(self, method: str, path: str, **more: Any) -> Document:
        answer = super()._call(method, path, **more)
        if method != "GET":
            raise Killed(f"{method} {path}")
        return answer


def until_it_lives(passes: Any, key: Key) -> list[str]:
    """Passes of operators that are killed after one write each, until one finds nothing to write; what was written."""
    written = []
    for _ in range(_MOST):
        try:
            passes.controller(MortalApi(passes.api.configuration)).work(key)
        except Killed as killed:
            written.append(str(killed))
        else:
            return written
    pytest.fail(f"after {_MOST} writes it still writes: {written[-5:]}")


def state(cluster: Any, key: Key) -> str:
    """Everything that was made, without what differs from one pipeline to another."""
    kept: dict[str, Any] = {}
    for (kind, name), item in sorted(cluster.children(key.namespace).items()):
        metadata, data = item["metadata"], item.get("data")
        managers = {(e["manager"], e["operation"]) for e in metadata["managedFields"] if "f:spec" in e["fieldsV1"]}
        kept[f"{kind} {name}"] = {
            "labels": metadata["labels"],
            "owners": metadata["ownerReferences"],
            "spec": item.get("spec") if kind != "Service" else item["spec"]["ports"],
            "data": sorted(data) if kind == "Secret" and data else data,
            "managers": sorted(managers),
        }
        for annotation in ("tidemill.dev/credentials", "tidemill.dev/config"):
            if kind == "Deployment":
                kept[f"{kind} {name}"]["spec"]["template"]["metadata"]["annotations"].pop(annotation, None)
    status = cluster.get(key)["status"]
    told = {name: status[name] for name in ("endpoints", "schema", "aggregations", "replicas")}
    told["conditions"] = {condition["type"]: condition["status"] for condition in status["conditions"]}
    text = json.dumps([kept, told], sort_keys=True)
    schema = key.namespace.replace("-", "_")
    return text.replace(key.uid, "<uid>").replace(key.namespace, "<namespace>").replace(schema, "<schema>")


def test_a_first_pass_killed_after_each_write_ends_the_same(
    cluster: Any, passes: Any, namespace: str, make: Callable[..., Key], other_namespace: str
) -> None:
    whole = make("orders", other_namespace)
    passes.until(whole, Result.SETTLED)
    passes.once(whole)
    broken = make("orders", namespace)
    written = until_it_lives(passes, broken)
    assert len(written) >= 20, written
    passes.until(broken, Result.SETTLED)
    until_it_lives(passes, broken)
    assert state(cluster, broken) == state(cluster, whole)
    # Nothing was made twice: each Deployment has had one template.
    made = [item["metadata"]["name"] for item in cluster.api.list(REPLICA_SET, namespace)]
    assert len(made) == 3
    events = [
        event["message"] for event in cluster.api.list(EVENT, namespace) if event["involvedObject"]["uid"] == broken.uid
    ]
    assert len(events) == len(set(events)), "an event may be lost with its operator, but is never told twice"


@pytest.fixture
def other_namespace(cluster: Any, namespace: str) -> Any:
    name = f"{namespace}-whole"
    cluster.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    cluster.api.delete(KINDS["Namespace"], None, name)


def test_a_release_killed_after_each_write_ends_the_same(
    cluster: Any, passes: Any, namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    """Deleting is as patient: nothing is left of the resource and of what it had."""
    key = make("orders", namespace, reclaimPolicy="Delete")
    passes.until(key, Result.SETTLED)
    cluster.api.delete(KINDS["AnalyticsPipeline"], namespace, "orders")
    eventually(lambda: until_it_lives(passes, key) is not None and cluster.get(key) == {}, what="the resource is gone")
    eventually(lambda: cluster.children(namespace) == {}, what="nothing is left")
