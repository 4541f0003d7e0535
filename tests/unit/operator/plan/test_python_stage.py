"""What a Python stage adds to a plan: its topic, its processes, and what may not be done to them."""

from __future__ import annotations

import copy
import datetime as dt
import json
from typing import Any

import pytest

from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.cluster_settings import Placement
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.kafka.claims import written_by_pipelines
from tidemill_operator.plan.kafka.topics import bereave
from tidemill_operator.plan.live import LiveFacts, LiveSchema, LiveTopic
from tidemill_operator.plan.model import Plan, Workload
from tidemill_operator.plan.render.kubernetes import render
from tidemill_operator.plan.render.marks import OwnerReference
from tidemill_operator.plan.render.pods import Revisions
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

PLATFORM = Platform(partitions=3)
PYTHON = {"configMap": "enrich", "file": "enrich.py", "function": "enrich"}


def document(
    python: dict[str, Any] | None = PYTHON, topic: dict[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "uid-1", "generation": 1},
        "spec": {
            "source": {"topic": topic or {}, "fields": [{"name": "country", "type": "string"}]},
            "transform": {"python": python},
            "aggregations": [
                {
                    "name": "by_country",
                    "groupBy": ["country"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [{"name": "orders", "function": "count"}],
                }
            ],
            **spec,
        },
    }


def plan_of(pipeline: dict[str, Any], live: LiveFacts | None = None) -> Plan:
    return build_plan(AnalyticsPipeline.model_validate(pipeline), PLATFORM, 1, live)


def stage_of(plan: Plan) -> Workload:
    (found,) = [workload for workload in plan.workloads if workload.component == "stage"]
    return found


@pytest.mark.parametrize(
    ("topic", "partitions"),
    [({}, 3), ({"partitions": 5}, 5), ({"name": "shop.clicks", "managed": False}, 7)],
    ids=["default", "given", "unmanaged"],
)
def test_the_stage_topic_has_as_many_partitions_as_the_source(topic: dict[str, Any], partitions: int) -> None:
    live = LiveFacts({"shop.clicks": LiveTopic(7, 1)}, brokers=1)
    source, stage, *_ = plan_of(document(topic={**topic, "retention": "2d"}), live).topics
    assert (stage.name, stage.partitions, stage.managed) == ("shop.orders.stage", partitions, True)
    assert source.partitions == partitions
    assert (stage.config["retention.ms"], stage.config["message.timestamp.type"]) == ("172800000", "LogAppendTime")


def test_the_stage_runs_without_secrets_and_notices_only_its_own_settings() -> None:
    stage = stage_of(plan_of(document()))
    assert (stage.name, stage.module, stage.replicas) == ("orders-stage", "tidemill_processor.stage", 1)
    assert (stage.secrets, stage.code, stage.image) == ({}, "enrich", "")
    assert stage_of(plan_of(document(suspend=True))).replicas == 0
    in_image = stage_of(plan_of(document({"image": "shop:1", "file": "/app/enrich.py", "function": "enrich"})))
    assert (in_image.code, in_image.image) == ("", "shop:1")
    assert in_image.revision != stage.revision
    more = stage_of(plan_of(document({**PYTHON, "replicas": 2})))
    assert (more.replicas, more.revision) == (2, stage.revision)


@pytest.mark.parametrize(
    ("own", "processors", "decided", "expected", "reason"),
    [
        (None, None, 3, (2, False, False), "without scaling, replicas applies"),
        (None, {}, None, (1, True, False), "nothing is decided yet: the minimum of the processors' scaling"),
        (None, {"minReplicas": 2}, 3, (3, True, False), "decided by the processors' settings"),
        (None, {"mode": "external"}, 3, (2, False, False), "what scales processors does not know the stage"),
        ({"minReplicas": 3}, {}, None, (3, True, False), "its own settings come first"),
        ({}, None, 0, (0, True, False), "processors are not scaled"),
        ({"mode": "external"}, {}, 3, (1, False, True), "somebody else scales its Deployment"),
    ],
)
def test_who_decides_how_many_processes_the_stage_has(
    own: dict[str, Any] | None, processors: dict[str, Any] | None, decided: int | None, expected: Any, reason: str
) -> None:
    made = document({**PYTHON, "replicas": 2, "scaling": own}, processor={"scaling": processors})
    stage = stage_of(plan_of(made, LiveFacts(replicas={} if decided is None else {"stage": decided})))
    assert (stage.replicas, stage.scaled, stage.scaled_elsewhere) == expected, reason


def deployment(python: dict[str, Any]) -> dict[str, Any]:
    """The Deployment of the stage."""
    placement = Placement(
        images={"processor": "tidemill/processor:1"}, pull_policy="Always", pull_secrets=("registry",)
    )
    owner, stage = OwnerReference("uid-1", "orders"), stage_of(plan_of(document(python)))
    found = render(stage, pipeline="orders", owner=owner, sharing=(), placement=placement, revisions=Revisions())
    (made,) = [one for one in found.workload if one["kind"] == "Deployment"]
    return dict(made["spec"])


def test_an_image_of_the_users_own_runs_with_the_limits_of_all_pods() -> None:
    """The file is in the image, so no ConfigMap is mounted; an external autoscaler sets the replicas."""
    in_image = {"image": "registry.example/shop:1", "file": "/app/enrich.py", "function": "enrich"}
    spec = deployment({**in_image, "scaling": {"mode": "external"}})
    plain = deployment(PYTHON)
    assert ("replicas" in spec, plain["replicas"]) == (False, 1)
    pods = [one["template"]["spec"] for one in (spec, plain)]
    images = [pod["containers"][0]["image"] for pod in pods]
    assert images == ["registry.example/shop:1", "tidemill/processor:1"]
    assert [[one["name"] for one in pod["volumes"]] for pod in pods] == [
        ["pipelines", "tmp"],
        ["pipelines", "tmp", "code"],
    ]
    assert [
        [one["value"] for one in pod["containers"][0]["env"] if one["name"] == "TIDEMILL_STAGE_DIR"] for pod in pods
    ] == [[], ["/etc/tidemill/stage"]]
    for same in ("securityContext", "imagePullSecrets", "automountServiceAccountToken"):
        assert pods[0][same] == pods[1][same]
    assert pods[0]["containers"][0]["securityContext"] == pods[1]["containers"][0]["securityContext"]


def test_a_decision_about_the_stage_does_not_restart_it() -> None:
    plain, scaled = stage_of(plan_of(document())), stage_of(plan_of(document({**PYTHON, "scaling": {}})))
    assert scaled.revision == plain.revision


def test_a_pipeline_without_a_stage_is_as_before() -> None:
    plan = plan_of(document(None))
    assert {workload.component for workload in plan.workloads} == {"processor", "ingest", "api"}
    assert not any(topic.staged for topic in plan.topics)
    assert "python" not in json.dumps(json.loads(plan.config))


def test_the_stage_topic_is_no_source_of_others() -> None:
    (error,) = written_by_pipelines("shop", "clicks", ["shop.orders.stage"])
    assert error.message.endswith(
        "is reserved for the Python stage of the pipeline shop/orders, also with managed: false"
    )


def test_a_stage_topic_that_was_read_and_is_gone_is_not_made_again() -> None:
    """Events that were staged and not counted are only there."""
    plan = plan_of(document())
    schema = LiveSchema(read_from="id-1", read_to={0: 4})
    there = {topic.name: LiveTopic(3, 1) for topic in plan.topics if not topic.staged}
    lost = {topic.name: topic.lost for topic in bereave(plan.topics, LiveFacts(there, 1, schema))}
    assert {name for name, text in lost.items() if text} == {"shop.orders.stage"}
    assert lost["shop.orders.stage"] == "id id-1; counted up to offsets 0: 4"


def test_in_the_world_of_memory_it_comes_and_goes() -> None:
    world, resource, noon = MemoryWorld(), document(), dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    status = reconcile(resource, platform=PLATFORM, actuators=world.actuators, previous=None, now=noon)
    assert [topic["name"] for topic in status["topics"]][:2] == ["shop.orders.events", "shop.orders.stage"]
    assert "orders-stage" in world.runtime.running["shop", "orders"]
    without = copy.deepcopy(resource)
    del without["spec"]["transform"]["python"]
    without["metadata"]["generation"] = 2
    refused = reconcile(without, platform=PLATFORM, actuators=world.actuators, previous=status, now=noon)
    (stalled,) = [item for item in refused["conditions"] if item["type"] == "Stalled"]
    assert stalled["message"].startswith("spec.transform.python: was taken out; processors would read another topic")
    resource["spec"]["reclaimPolicy"] = "Delete"
    release(resource, platform=PLATFORM, actuators=world.actuators)
    assert "shop.orders.stage" not in world.kafka.topics
