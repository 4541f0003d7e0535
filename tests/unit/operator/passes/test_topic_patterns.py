"""Tests of passes over a pipeline with a pattern of topics, against a world in memory."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

from tidemill_operator.plan.live import LiveTopic
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
Document = dict[str, Any]
DOCUMENT: Document = {
    "apiVersion": "tidemill.dev/v1alpha1",
    "kind": "AnalyticsPipeline",
    "metadata": {"name": "orders", "namespace": "shop", "uid": "uid-1", "generation": 1},
    "spec": {
        "source": {
            "topic": {"managed": False},
            "topicPattern": r"shop\.o.*",
            "fields": [{"name": "n", "type": "integer"}],
        },
        "aggregations": [
            {
                "name": "all",
                "window": {"type": "tumbling", "size": "1h"},
                "metrics": [{"name": "events", "function": "count"}],
            }
        ],
    },
}


class Run:
    """A pipeline in a world in memory, with its status."""

    def __init__(self, **source: Any) -> None:
        self.world, self.status = MemoryWorld(), None
        self.document = copy.deepcopy(DOCUMENT)
        self.document["spec"]["source"] |= source

    def apply(self, platform: Platform | None = None) -> dict[str, tuple[str, str]]:
        """Run a pass, and return state and reason of the conditions."""
        self.status: Any = reconcile(
            self.document,
            platform=platform or Platform(),
            actuators=self.world.actuators,
            previous=self.status,
            now=NOON,
        )
        return {item["type"]: (item["status"], item["reason"]) for item in self.status["conditions"]}

    def message(self, kind: str) -> str:
        return next(str(item["message"]) for item in self.status["conditions"] if item["type"] == kind)

    def edit(self, pattern: str) -> None:
        self.document["spec"]["source"]["topicPattern"] = pattern
        self.document["metadata"]["generation"] += 1

    def reading(self) -> set[str]:
        """Return the topics with slots that are read."""
        return {slot.topic for slot in self.world.postgres.schemas["shop__orders"].slots if slot.reading}

    def revision(self) -> str:
        return self.world.runtime.running["shop", "orders"]["orders-processor"].revision


def test_a_pipeline_waits_until_a_topic_matches() -> None:
    run = Run()
    run.world.kafka.put("shop.a", 1)
    conditions = run.apply()
    assert (conditions["Ready"], conditions["Reconciling"]) == (("False", "Waiting"), ("True", "Waiting"))
    assert "Stalled" not in conditions
    text = (
        r"spec.source.topicPattern: no topic that the pipeline may read matches shop\.o.* so far;"
        " create a topic with a matching name"
    )
    assert run.message("Ready").startswith(text)
    assert run.world.runtime.running == {}
    run.world.kafka.put("shop.o1", 2)
    conditions = run.apply()
    assert conditions["Ready"][0] == "True"
    assert "Reconciling" not in conditions
    assert run.reading() == {"shop.o1"}


def test_topics_are_added_and_removed_without_a_restart() -> None:
    run = Run()
    run.world.kafka.put("shop.o1", 2)
    run.apply()
    before = run.revision()
    run.world.kafka.put("shop.o2", 1)
    for name in ("shop.results.results", "shop.orders.events", "__o", "crm.o"):
        run.world.kafka.put(name, 1)
    assert run.apply()["Ready"][0] == "True"
    assert (run.reading(), run.revision()) == ({"shop.o1", "shop.o2"}, before)

    del run.world.kafka.topics["shop.o1"]
    assert run.apply()["TopicsReady"][0] == "False"
    assert run.message("TopicsReady").startswith("spec.source.topicPattern: topic shop.o1 is gone")
    assert r"create it again, or change shop\.o.* so that it does not match" in run.message("TopicsReady")
    assert run.reading() == {"shop.o2"}

    run.edit(r"shop\.o[23]")
    assert run.apply()["TopicsReady"][0] == "True"
    assert (run.reading(), run.revision()) == ({"shop.o2"}, before)


def test_windows_wait_for_a_topic_of_others_until_all_brokers_report_it_missing() -> None:
    run, platform = Run(topicPattern=r"crm\..*"), Platform(readable_topics=("crm.*",))
    for name in ("crm.a", "crm.b"):
        run.world.kafka.put(name, 1)
    run.apply(platform)
    assert "find_missing" not in run.world.kafka.calls
    del run.world.kafka.topics["crm.b"]
    run.world.kafka.silent_broker = True
    assert run.apply(platform)["TopicsReady"][0] == "False"
    assert run.reading() == {"crm.a", "crm.b"}
    run.world.kafka.silent_broker = False
    assert run.apply(platform)["TopicsReady"][0] == "False"
    assert run.reading() == {"crm.a"}
    questions = run.world.kafka.calls.count("find_missing")
    run.apply(platform)
    assert run.world.kafka.calls.count("find_missing") == questions


def test_a_stricter_platform_setting_removes_no_topic_of_a_running_pipeline() -> None:
    run = Run(topicPattern=r"crm\..*")
    run.world.kafka.put("crm.a", 1)
    assert run.apply()["Ready"] == ("False", "Waiting")
    assert run.apply(Platform(readable_topics=("crm.*",)))["Ready"][0] == "True"
    assert run.apply()["Ready"][0] == "True"
    assert run.reading() == {"crm.a"}


def test_a_pattern_with_too_many_topics_is_refused() -> None:
    """A new pipeline is refused. A running pipeline keeps its topics."""
    run = Run()
    for number in range(10, 75):
        run.world.kafka.put(f"shop.o{number}", 1)
    assert run.apply()["Ready"] == ("False", "NotSupported")
    text = r"spec.source.topicPattern: shop\.o.* matches 65 topics, and a pipeline reads at most 64; not read: shop.o74"
    assert run.message("Stalled").startswith(text)
    last = run.world.kafka.topics.pop("shop.o10")
    assert run.apply()["Ready"][0] == "True"
    run.world.kafka.topics["shop.o10"] = last
    conditions = run.apply()
    assert (conditions["Ready"][0], conditions["Stalled"]) == ("True", ("True", "NotSupported"))
    assert run.message("Stalled").startswith(text.replace("shop.o74", "shop.o10"))
    assert len(run.reading()) == 64
    assert "shop.o10" not in run.reading()


def test_a_pattern_matches_topics_of_another_cluster() -> None:
    run = Run(kafka={"bootstrapServers": "b:9092"}, topicPattern=".*orders.*")
    run.world.clusters.topic_names = ["orders", "shop.orders.results", "__orders", "crm.orders.events", "bills"]
    assert run.apply()["Ready"][0] == "True"
    assert run.reading() == {"orders", "crm.orders.events"}
    assert "names" not in run.world.kafka.calls


def test_a_deleted_pipeline_leaves_the_topics() -> None:
    run = Run()
    run.document["spec"]["reclaimPolicy"] = "Delete"
    run.world.kafka.topics["shop.o1"] = LiveTopic(1, 1, "a")
    run.world.kafka.configs["shop.o1"] = {}
    run.apply()
    assert len(run.world.kafka.topics) > 1
    release(run.document, platform=Platform(), actuators=run.world.actuators)
    assert set(run.world.kafka.topics) == {"shop.o1"}
