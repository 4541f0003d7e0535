"""Tests of a Python stage in a plan: its topic, its processes, and refused edits."""

from __future__ import annotations

import copy
import datetime as dt
import json
from typing import Any

import pytest

from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.cluster_settings import Placement
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.kafka.claims import reserved_topic_errors
from tidemill_operator.plan.kafka.topics import mark_lost
from tidemill_operator.plan.live import LiveFacts, LiveSchema, LiveTopic
from tidemill_operator.plan.model import Plan, Workload
from tidemill_operator.plan.render.kubernetes import render
from tidemill_operator.plan.render.object_metadata import OwnerReference
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
    (selected,) = [workload for workload in plan.workloads if workload.component == "stage"]
    return selected


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


def test_the_stage_has_no_secrets_and_restarts_only_for_its_settings() -> None:
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
        (None, {}, None, (1, True, False), "before the first decision, the minimum of the processors' scaling applies"),
        (None, {"minReplicas": 2}, 3, (3, True, False), "the processors' settings decide"),
        (
            None,
            {"mode": "external"},
            3,
            (2, False, False),
            "an external autoscaler of processors does not scale the stage",
        ),
        ({"minReplicas": 3}, {}, None, (3, True, False), "settings of the stage count more than those of processors"),
        ({}, None, 0, (0, True, False), "the stage is scaled without scaling of processors"),
        ({"mode": "external"}, {}, 3, (1, False, True), "an external autoscaler scales the stage"),
    ],
)
def test_the_settings_decide_how_many_processes_the_stage_has(
    own: dict[str, Any] | None, processors: dict[str, Any] | None, decided: int | None, expected: Any, reason: str
) -> None:
    resource = document({**PYTHON, "replicas": 2, "scaling": own}, processor={"scaling": processors})
    stage = stage_of(plan_of(resource, LiveFacts(replicas={} if decided is None else {"stage": decided})))
    assert (stage.replicas, stage.scaled, stage.externally_scaled) == expected, reason


def deployment(python: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of the Deployment of the stage."""
    placement = Placement(
        images={"processor": "tidemill/processor:1"}, pull_policy="Always", pull_secrets=("registry",)
    )
    owner, stage = OwnerReference("uid-1", "orders"), stage_of(plan_of(document(python)))
    selected = render(stage, pipeline="orders", owner=owner, sharing=(), placement=placement, revisions=Revisions())
    (resource,) = [item for item in selected.workload if item["kind"] == "Deployment"]
    return dict(resource["spec"])


def test_an_image_of_the_user_runs_with_the_security_settings_of_all_pods() -> None:
    """The image contains the file, so no ConfigMap is mounted. An external autoscaler sets the replicas."""
    in_image = {"image": "registry.example/shop:1", "file": "/app/enrich.py", "function": "enrich"}
    spec = deployment({**in_image, "scaling": {"mode": "external"}})
    plain = deployment(PYTHON)
    assert ("replicas" in spec, plain["replicas"]) == (False, 1)
    pods = [item["template"]["spec"] for item in (spec, plain)]
    images = [pod["containers"][0]["image"] for pod in pods]
    assert images == ["registry.example/shop:1", "tidemill/processor:1"]
    assert [[item["name"] for item in pod["volumes"]] for pod in pods] == [
        ["pipelines", "tmp"],
        ["pipelines", "tmp", "code"],
    ]
    assert [
        [item["value"] for item in pod["containers"][0]["env"] if item["name"] == "TIDEMILL_STAGE_DIR"] for pod in pods
    ] == [[], ["/etc/tidemill/stage"]]
    for same in ("securityContext", "imagePullSecrets", "automountServiceAccountToken"):
        assert pods[0][same] == pods[1][same]
    assert pods[0]["containers"][0]["securityContext"] == pods[1]["containers"][0]["securityContext"]


def test_a_decision_about_the_stage_does_not_restart_it() -> None:
    plain, scaled = stage_of(plan_of(document())), stage_of(plan_of(document({**PYTHON, "scaling": {}})))
    assert scaled.revision == plain.revision


def test_a_pipeline_without_a_stage_has_no_stage_topic_or_workload() -> None:
    plan = plan_of(document(None))
    assert {workload.component for workload in plan.workloads} == {"processor", "ingest", "api"}
    assert not any(topic.from_stage for topic in plan.topics)
    assert "python" not in json.dumps(json.loads(plan.config))


def test_no_other_pipeline_may_read_the_stage_topic() -> None:
    (error,) = reserved_topic_errors("shop", "clicks", ["shop.orders.stage"])
    assert error.message.endswith(
        "is reserved for the Python stage of the pipeline shop/orders, also with managed: false"
    )


def test_a_deleted_stage_topic_that_was_read_is_lost() -> None:
    """Events that were staged and not counted exist only in this topic."""
    plan = plan_of(document())
    schema = LiveSchema(topic_id="id-1", next_offsets={0: 4})
    live_topics = {topic.name: LiveTopic(3, 1) for topic in plan.topics if not topic.from_stage}
    lost = {topic.name: topic.lost for topic in mark_lost(plan.topics, LiveFacts(live_topics, 1, schema))}
    assert {name for name, text in lost.items() if text} == {"shop.orders.stage"}
    assert lost["shop.orders.stage"] == "id id-1; counted up to offsets 0: 4"


def test_the_stage_is_created_and_deleted_with_its_pipeline() -> None:
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
