"""Tests of two pipelines on another Kafka cluster with TLS and a login: by a list and by a pattern of topics.

The login has only the permissions that the page docs/kafka-clusters.md lists.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from demo.cluster import OPERATOR_NAMESPACE
from demo.compare import fetch_windows
from running.cluster_kafka import PORT, ClusterKafka

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.matrix]

USER = "tidemill"
EU, US, ASIA = (f"crm.orders.{region}" for region in ("eu", "us", "asia"))
_MIDNIGHT_MS = 1_767_571_200_000
_SHOPS = 5
# Prints the answer of a health endpoint, also if its status is an error.
_HEALTH = """\
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""
Counts = Counter[tuple[str, str]]


def pipeline(name: str, namespace: str, address: str, topics: dict[str, Any]) -> dict[str, Any]:
    """Return a pipeline that counts orders by the topic they were sent to and by shop."""
    kinds = {"sent_to": "string", "shop": "string", "number": "integer", "ts": "timestamp"}
    scaling = {"mode": "lag", "minReplicas": 1, "maxReplicas": 2, "pollInterval": "1s", "lookback": "2s"}
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "source": {
                "kafka": {"bootstrapServers": address, "secretRef": {"name": "crm-kafka"}},
                "topic": {"managed": False},
                **topics,
                "fields": [{"name": field, "type": kind, "required": True} for field, kind in kinds.items()],
                "eventTime": {"field": "ts", "maxDisorder": "1h"},
            },
            "aggregations": [
                {
                    "name": "by_shop",
                    "groupBy": ["sent_to", "shop"],
                    "window": {"type": "tumbling", "size": "1d"},
                    "metrics": [
                        {"name": "orders", "function": "count"},
                        {"name": "numbers", "function": "sum", "field": "number"},
                    ],
                    "retention": "3650d",
                }
            ],
            "reclaimPolicy": "Delete",
            "processor": {"flushInterval": "250ms", "scaling": scaling},
        },
    }


class Orders:
    """Both pipelines, the other cluster, and the events that were sent to it."""

    def __init__(self, world: Any, other: ClusterKafka, password: str, *, namespace: str, client: httpx.Client) -> None:
        self.world, self.other, self.namespace, self._client = world, other, namespace, client
        self.password, self.wrong = password, f"wrong-{secrets.token_hex(12)}"
        topics: dict[str, dict[str, Any]] = {
            "listed": {"topics": [EU, US]},
            "matched": {"topicPattern": r"crm\.orders\..*"},
        }
        self.platforms = {
            name: world.platform(pipeline(name, namespace, other.address, source), components=("api",))
            for name, source in topics.items()
        }
        self._number, self._sent, self._sums = 0, Counts(), Counts()

    def login(self, password: str) -> None:
        """Write the Secret with a password, and make the kubelet update the files of pods now."""
        keys = {
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": USER,
            "sasl.password": password,
            "ca.crt": self.other.certificate,
        }
        metadata = {"name": "crm-kafka", "namespace": self.namespace}
        document = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys}
        self.world.kubectl("apply", "--filename", "-", stdin=json.dumps(document))
        for pod in self.world.pods(self.namespace, "processor"):
            mark = f"e2e.tidemill.dev/files={secrets.token_hex(4)}"
            target = ("pod", pod["metadata"]["name"], "--namespace", self.namespace)
            self.world.kubectl("annotate", *target, "--overwrite", mark)

    def apply(self, name: str, **spec: Any) -> None:
        """Apply a pipeline with changed members of its spec. Do not wait until it is ready."""
        document = self.platforms[name].document
        document["spec"] |= spec
        self.world.kubectl("apply", "--filename", "-", stdin=json.dumps(document))

    def send(self, topic: str, number: int) -> None:
        events = []
        for _ in range(number):
            self._number += 1
            at, shop = _MIDNIGHT_MS + 1000 * self._number, f"s{self._number % _SHOPS}"
            events.append({"sent_to": topic, "shop": shop, "number": self._number, "ts": at})
            self._sent[topic, shop] += 1
            self._sums[topic, shop] += self._number
        self.other.send(topic, events)

    def counted(self, name: str) -> dict[tuple[str, str], tuple[int, int]]:
        """Return counts and sums by topic and shop from the API's answers."""
        windows: dict[tuple[str, str], tuple[int, int]] = {}
        for page in fetch_windows(self._client, self.platforms[name].url("api"), name, "by_shop"):
            for row in page.rows:
                assert (row["sent_to"], row["shop"]) not in windows
                windows[row["sent_to"], row["shop"]] = row["orders"], row["numbers"]
        return windows

    def expected(self, *topics: str) -> dict[tuple[str, str], tuple[int, int]]:
        """Return the expected counts and sums of these topics by topic and shop."""
        return {place: (count, self._sums[place]) for place, count in self._sent.items() if place[0] in topics}

    def status(self, name: str) -> dict[str, Any]:
        return dict(self.world.get("analyticspipeline", name, self.namespace).get("status", {}))

    def condition(self, name: str, kind: str) -> tuple[str, str, str]:
        """Return the status, the reason and the message of a condition; empty texts if it does not exist."""
        for condition in self.status(name).get("conditions", ()):
            if condition["type"] == kind:
                return str(condition["status"]), str(condition["reason"]), str(condition["message"])
        return "", "", ""

    def health(self, name: str) -> dict[str, Any]:
        """Return the health of the pipeline's processor."""
        pod = next(
            pod
            for pod in self.world.pods(self.namespace, "processor")
            if pod["metadata"]["labels"]["tidemill.dev/pipeline"] == name
        )
        (container,) = pod["spec"]["containers"]
        port = next(port["containerPort"] for port in container["ports"] if port["name"] == "status")
        command = ("python", "-c", _HEALTH, f"http://127.0.0.1:{port}/health")
        return dict(
            json.loads(
                self.world.kubectl("exec", pod["metadata"]["name"], "--namespace", self.namespace, "--", *command)
            )
        )

    def processes(self) -> set[tuple[str, int]]:
        """Return the names of the processors' pods with their numbers of restarts."""
        return {
            (
                pod["metadata"]["name"],
                sum(container["restartCount"] for container in pod["status"]["containerStatuses"]),
            )
            for pod in self.world.pods(self.namespace, "processor")
        }


@pytest.fixture(scope="module")
def orders(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orders]:
    """Apply both pipelines with a wrong password, while the operator may not connect to the broker's port."""
    elsewhere, namespace = world.new_namespace("crm"), world.new_namespace("elsewhere")
    password = f"right-{secrets.token_hex(12)}"
    template = world.get("statefulset", "dev-stack-kafka", OPERATOR_NAMESPACE)["spec"]["template"]
    with httpx.Client(timeout=60.0, trust_env=False) as client:
        other = ClusterKafka(
            world.kubectl,
            world.in_operator,
            namespace=elsewhere,
            image=template["spec"]["containers"][0]["image"],
            folder=tmp_path_factory.mktemp("pki"),
            logins={USER: password},
        )
        orders = Orders(world, other, password, namespace=namespace, client=client)
        other.start()
        orders.login(orders.wrong)
        for name in orders.platforms:
            orders.apply(name)
        yield orders
        for platform in orders.platforms.values():
            platform.leave()
    world.begin_to_delete_namespaces([namespace])
    world.begin_to_delete_namespaces([elsewhere])
    world.helm.install_operator()


def test_ready_names_a_cluster_whose_port_the_operator_may_not_reach(
    orders: Orders, eventually: Callable[..., Any]
) -> None:
    """The message names the chart's value that allows the port."""
    for name in orders.platforms:
        status, _, message = eventually(
            lambda name=name: ready if orders.other.address in (ready := orders.condition(name, "Ready"))[2] else None,
            what=lambda name=name: f"Ready names the cluster: {orders.condition(name, 'Ready')}",
        )
        assert status == "False"
        assert "networkPolicy.egressPorts" in message


def test_pipelines_with_a_corrected_password_count_all_events(orders: Orders, eventually: Callable[..., Any]) -> None:
    """Before the correction, Ready names the Secret with the wrong password. Both topics count from their start."""
    orders.world.helm.install_operator(f"networkPolicy.egressPorts={{5432,6379,{PORT}}}")
    for name in orders.platforms:
        eventually(
            lambda name=name: "check the login in the Secret" in orders.condition(name, "Ready")[2],
            what=lambda name=name: f"Ready names the login: {orders.condition(name, 'Ready')}",
        )
        assert f"{orders.namespace}/crm-kafka" in orders.condition(name, "Ready")[2]
        assert orders.condition(name, "TopicsReady")[0] == "False"
    orders.other.grant(USER, topics="crm.", groups=f"tidemill.{orders.namespace}.")
    for topic, partitions in ((EU, 3), (US, 2), ("stock.levels", 1)):
        orders.other.create(topic, partitions)
    orders.send(EU, 700)
    orders.send(US, 300)
    orders.login(orders.password)
    for name, platform in orders.platforms.items():
        platform.apply()
        await_exact(orders, eventually, name, EU, US)
    assert {topic["name"] for topic in orders.status("matched")["topics"] if topic.get("kafka")} == {EU, US}


def await_exact(orders: Orders, eventually: Callable[..., Any], name: str, *topics: str) -> None:
    """Wait until the pipeline has counted exactly the events of the topics."""
    eventually(
        lambda: orders.counted(name) == orders.expected(*topics),
        what=lambda: f"{name} has all events: {sum(count for count, _ in orders.counted(name).values())}",
    )


def test_a_new_topic_that_matches_the_pattern_is_read_from_its_start(
    orders: Orders, eventually: Callable[..., Any]
) -> None:
    """The same processors read the topic without a restart. The pipeline with a list does not read it."""
    before = orders.processes()
    orders.other.create(ASIA, 4)
    orders.send(ASIA, 200)
    await_exact(orders, eventually, "matched", EU, US, ASIA)
    orders.send(US, 50)
    orders.send(ASIA, 50)
    await_exact(orders, eventually, "matched", EU, US, ASIA)
    await_exact(orders, eventually, "listed", EU, US)
    assert orders.processes() == before


def test_the_lag_is_that_of_topics_in_the_other_cluster(orders: Orders, eventually: Callable[..., Any]) -> None:
    """The status has the lag, also in the figures for scaling."""
    orders.apply("matched", suspend=True)
    eventually(
        lambda: not [pod for pod in orders.processes() if pod[0].startswith("matched-")],
        what="the processors of `matched` have ended",
    )
    orders.send(EU, 400)
    orders.send(ASIA, 100)
    eventually(
        lambda: orders.status("matched").get("lag") == 500, what=lambda: f"the lag is 500: {orders.status('matched')}"
    )
    orders.apply("matched", suspend=False)
    await_exact(orders, eventually, "matched", EU, US, ASIA)
    await_exact(orders, eventually, "listed", EU, US)
    for name in orders.platforms:
        eventually(lambda name=name: orders.status(name).get("lag") == 0, what="the lag is 0")
        eventually(
            lambda name=name: orders.status(name).get("scaling", {}).get("lag") == 0,
            what=lambda name=name: f"scaling has figures: {orders.status(name)}",
        )


def test_an_outage_of_the_other_cluster_loses_and_repeats_no_event(
    orders: Orders, eventually: Callable[..., Any]
) -> None:
    """During the outage, conditions and health name the cluster. No processor restarts."""
    before = orders.processes()
    for topic in (EU, US, ASIA):
        orders.send(topic, 300)
    orders.other.stop()
    for name in orders.platforms:
        for kind in ("Ready", "TopicsReady", "FiguresUnavailable"):
            eventually(
                lambda name=name, kind=kind: orders.other.address in orders.condition(name, kind)[2],
                what=lambda name=name, kind=kind: f"{kind} names the cluster: {orders.condition(name, kind)}",
            )
        assert orders.condition(name, "Ready")[0] == "False"
        row = eventually(
            lambda name=name: (
                row if (row := orders.health(name)["dependencies"]["source_kafka"])["status"] == "down" else None
            ),
            what="health names the cluster",
        )
        assert orders.other.address in row["detail"]
        assert orders.health(name)["dependencies"]["kafka"]["status"] == "up"
    orders.other.resume()
    for topic in (EU, US, ASIA):
        orders.send(topic, 100)
    await_exact(orders, eventually, "matched", EU, US, ASIA)
    await_exact(orders, eventually, "listed", EU, US)
    for name in orders.platforms:
        eventually(lambda name=name: orders.condition(name, "Ready")[0] == "True", what="the pipeline is ready again")
        eventually(lambda name=name: orders.health(name)["status"] == "healthy", what="the processor is healthy again")
    assert orders.processes() == before


def test_a_password_that_becomes_wrong_for_a_while_loses_no_event(
    orders: Orders, eventually: Callable[..., Any]
) -> None:
    """Meanwhile, Ready names the Secret, and health reports that the source is down. No processor restarts."""
    before = orders.processes()
    orders.login(orders.wrong)
    for name in orders.platforms:
        eventually(
            lambda name=name: "check the login in the Secret" in orders.condition(name, "Ready")[2],
            what=lambda name=name: f"Ready names the login: {orders.condition(name, 'Ready')}",
        )
        eventually(
            lambda name=name: orders.health(name)["dependencies"]["source_kafka"]["status"] == "down",
            what="health names the cluster",
        )
    for topic in (EU, US, ASIA):
        orders.send(topic, 100)
    orders.login(orders.password)
    await_exact(orders, eventually, "matched", EU, US, ASIA)
    await_exact(orders, eventually, "listed", EU, US)
    for name in orders.platforms:
        eventually(lambda name=name: orders.condition(name, "Ready")[0] == "True", what="the pipeline is ready again")
    assert orders.processes() == before


def test_ready_names_a_topic_that_the_login_may_not_describe_any_more(
    orders: Orders, eventually: Callable[..., Any]
) -> None:
    """The topic is not reported as deleted. With the permission again, all events of all topics count."""
    orders.other.deny(USER, US)
    eventually(
        lambda: (
            "allow Describe and Read on the topic to the login in the Secret" in orders.condition("listed", "Ready")[2]
        ),
        what=lambda: f"the missing permission is named: {orders.condition('listed', 'Ready')}",
    )
    assert US in orders.condition("listed", "Ready")[2]
    orders.other.allow(USER, US)
    for topic in (EU, US, ASIA):
        orders.send(topic, 100)
    await_exact(orders, eventually, "matched", EU, US, ASIA)
    await_exact(orders, eventually, "listed", EU, US)
    eventually(lambda: orders.condition("listed", "Ready")[0] == "True", what="the pipeline is ready again")


def test_a_deleted_topic_does_not_stop_windows_of_the_other_topics(
    orders: Orders, eventually: Callable[..., Any]
) -> None:
    """TopicsReady names the deleted topic, although the login may not create topics."""
    orders.other.delete(US)
    for name in orders.platforms:
        eventually(
            lambda name=name: f"topic {US} is gone" in orders.condition(name, "TopicsReady")[2],
            what=lambda name=name: f"TopicsReady names the topic: {orders.condition(name, 'TopicsReady')}",
        )
        assert "the other topics are still counted; create it again" in orders.condition(name, "TopicsReady")[2]
    orders.send(EU, 100)
    orders.send(ASIA, 100)
    await_exact(orders, eventually, "matched", EU, US, ASIA)
    for name in orders.platforms:
        eventually(lambda name=name: orders.status(name).get("lag") == 0, what="the lag is 0")
    orders.apply("listed", source={**orders.platforms["listed"].document["spec"]["source"], "topics": [EU]})
    eventually(lambda: orders.condition("listed", "Ready")[0] == "True", what="the pipeline is ready without the topic")


def test_resources_events_and_logs_contain_no_password(orders: Orders) -> None:
    namespace = ("--namespace", orders.namespace)
    outputs = [
        orders.world.kubectl(
            "get", "analyticspipelines,configmaps,deployments,pods,events", *namespace, "--output", "yaml"
        ),
        orders.world.kubectl("logs", *namespace, "--selector", "app.kubernetes.io/name=tidemill", "--tail=-1"),
        orders.world.kubectl(
            *("logs", "--namespace", OPERATOR_NAMESPACE, "--tail=-1"),
            *("--selector", "app.kubernetes.io/name=tidemill-operator"),
        ),
    ]
    assert all(outputs)
    for text in outputs:
        assert orders.password not in text
        assert orders.wrong not in text
