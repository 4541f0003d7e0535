"""The CRD in a real API server: its largest spec is taken, and each of its rules refuses what it is there for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tidemill_operator.actuators.kubernetes_api import PIPELINE, Document
from tidemill_operator.crd import RULES
from tidemill_operator.errors import TidemillError

pytestmark = pytest.mark.kubernetes

MESSAGES = {message for rules in RULES.values() for _, message in rules}


def base() -> Document:
    """A spec that every rule lets pass."""
    return {
        "source": {
            "topic": {"partitions": 4},
            "fields": [
                {"name": "country", "type": "string"},
                {"name": "amount", "type": "number"},
                {"name": "ts", "type": "timestamp"},
            ],
        },
        "transform": {"derive": [{"name": "large", "expression": "amount > 9"}]},
        "aggregations": [
            {
                "name": "by_country",
                "groupBy": ["country"],
                "window": {"type": "tumbling", "size": "1m"},
                "metrics": [{"name": "orders", "function": "count"}],
            }
        ],
    }


def resource(spec: Document, namespace: str, name: str = "orders") -> Document:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": PIPELINE.api_version, "kind": PIPELINE.kind, "metadata": metadata, "spec": spec}


def put(spec: Document, path: str, value: Any) -> Document:
    """A copy with one member set; numbers in the path are places in lists."""
    changed = copy.deepcopy(spec)
    place: Any = changed
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        place = place[step] if isinstance(step, int) else place.setdefault(step, {})
    if value is None:
        place.pop(last, None)
    else:
        place[last] = value
    return changed


WINDOW, METRICS = "aggregations.0.window", "aggregations.0.metrics"
# What is refused when it is made: the member that is set, to what, and the words of the refusal.
REFUSED: list[tuple[str, Any, str]] = [
    ("source.key", "nothing", "key is not in fields"),
    ("source.eventTime", {"field": "country"}, "eventTime.field must be one of fields, with type timestamp"),
    ("source.fields.0.name", "window_start", "are reserved"),
    ("transform.derive.0.name", "window_start", "are reserved"),
    ("transform.derive.0.name", "amount", "a derive is named like a field; rename the derive"),
    ("aggregations.0.groupBy", ["xmin"], "a group column cannot be called tableoid, xmin"),
    ("aggregations.0.groupBy", ["nothing"], "a groupBy column is neither in source.fields nor in transform.derive"),
    (
        METRICS,
        [{"name": "m", "function": "sum", "field": "nothing"}],
        "a metric's field is neither in source.fields nor in transform.derive",
    ),
    (METRICS, [{"name": "country", "function": "count"}], "a metric is named like a group column; rename the metric"),
    (METRICS, [{"name": "window_end", "function": "count"}], "are reserved"),
    (METRICS, [{"name": "m", "function": "sum"}], "every function but count needs a field"),
    (METRICS, [{"name": "m", "function": "sum", "field": "amount", "q": 0.5}], "q belongs to quantile"),
    (METRICS, [{"name": "m", "function": "sum", "field": "amount", "k": 5}], "k belongs to topk"),
    (WINDOW, {"type": "tumbling"}, "a tumbling or hopping window needs size"),
    (WINDOW, {"type": "tumbling", "size": "1m", "hop": "1m"}, "hop belongs to hopping windows, and they need it"),
    (WINDOW, {"type": "session", "size": "1m"}, "a session window needs gap, and takes no size"),
    (
        "anomalies",
        [{"name": "a", "aggregation": "by_country", "metric": "nothing", "detector": {"type": "ewma"}}],
        "an anomaly rule names an aggregation or metric that is not there",
    ),
    (
        "anomalies",
        [{"name": "a", "field": "nothing"}],
        "an anomaly rule's field or groupBy column is neither in source.fields nor in transform.derive",
    ),
    (
        "anomalies",
        [{"name": "a", "field": "amount", "groupBy": ["nothing"]}],
        "an anomaly rule's field or groupBy column is neither in source.fields nor in transform.derive",
    ),
    ("anomalies", [{"name": "a"}], "an anomaly rule watches either a metric or a field"),
    (
        "anomalies",
        [{"name": "a", "aggregation": "by_country", "metric": "orders", "field": "amount"}],
        "an anomaly rule watches either a metric or a field",
    ),
    (
        "anomalies",
        [{"name": "a", "aggregation": "by_country", "field": "amount"}],
        "aggregation belongs to metric, and metric needs it; a field takes groupBy",
    ),
    (
        "anomalies",
        [{"name": "a", "metric": "orders"}],
        "aggregation belongs to metric, and metric needs it; a field takes groupBy",
    ),
    (
        "anomalies",
        [{"name": "a", "aggregation": "by_country", "metric": "orders", "groupBy": ["country"]}],
        "groupBy belongs to field; windows have their aggregation's groups",
    ),
    (
        "anomalies",
        [{"name": "a", "aggregation": "by_country", "metric": "orders", "detector": {"weight": 0.1}}],
        "weight belongs to ewma; take it out, or use that type",
    ),
    (
        "anomalies",
        [{"name": "a", "aggregation": "by_country", "metric": "orders", "detector": {"span": 50}}],
        "span belongs to mad; take it out, or use that type",
    ),
    (
        "anomalies",
        [{"name": "a", "aggregation": "by_country", "metric": "orders", "detector": {"period": "week"}}],
        "period belongs to seasonal; take it out, or use that type",
    ),
    ("processor", {"replicas": 5}, "more replicas than source.topic.partitions; a replica without a partition idles"),
    ("processor.scaling", {"minReplicas": 3, "maxReplicas": 2}, "minReplicas must not be more than maxReplicas"),
    ("processor.scaling", {"minReplicas": 0}, "minReplicas 0 needs scaleToZeroAfter"),
]
# What is refused when it is changed: the spec before, the member, its new value, the words.
CHANGES: list[tuple[Document, str, Any, str]] = [
    ({"source.topic.name": "x.y"}, "source.topic.name", "x.z", "source.topic.name cannot change once it is set"),
    ({}, "source.topic.partitions", 3, "source.topic.partitions may grow but never fall or be taken out"),
    ({}, "source.topic.partitions", None, "source.topic.partitions may grow but never fall or be taken out"),
    ({"source.key": "country"}, "source.key", "amount", "source.key cannot change; make a new pipeline"),
    ({}, "source.key", "country", "source.key cannot change; make a new pipeline"),
    ({"processor.scaling": {}}, "processor.replicas", 2, "replicas cannot change while scaling is set"),
]
NAMES = [
    ("a" * 41, "metadata.name must have at most 40 characters"),
    ("has.dot", "metadata.name must be of a-z, 0-9 and -"),
]


def refusal(act: Callable[[], Any]) -> str:
    """The words of a refusal; empty: it was taken."""
    try:
        act()
    except TidemillError as error:
        return str(error)
    return ""


def test_the_base_of_these_cases_is_taken(cluster: Any, namespace: str) -> None:
    """Or every refusal below might be of something else."""
    assert refusal(lambda: cluster.api.create(resource(base(), namespace))) == ""


@pytest.mark.parametrize(("path", "value", "message"), REFUSED, ids=[f"{path}: {text}" for path, _, text in REFUSED])
def test_what_breaks_a_rule_is_refused(cluster: Any, namespace: str, path: str, value: Any, message: str) -> None:
    spec = put(base(), path, value)
    assert message in refusal(lambda: cluster.api.create(resource(spec, namespace)))


@pytest.mark.parametrize(("name", "message"), NAMES)
def test_names_that_break_a_rule_are_refused(cluster: Any, namespace: str, name: str, message: str) -> None:
    assert message in refusal(lambda: cluster.api.create(resource(base(), namespace, name)))


@pytest.mark.parametrize(("before", "path", "value", "message"), CHANGES, ids=[f"{c[1]}: {c[3]}" for c in CHANGES])
def test_changes_that_break_a_rule_are_refused(
    cluster: Any, namespace: str, before: Document, path: str, value: Any, message: str
) -> None:
    spec = base()
    for member, known in before.items():
        spec = put(spec, member, known)
    live = cluster.api.create(resource(spec, namespace))
    changed = {**live, "spec": put(live["spec"], path, value)}
    assert message in refusal(lambda: cluster.api.replace(changed))


def test_partitions_may_grow(cluster: Any, namespace: str) -> None:
    live = cluster.api.create(resource(base(), namespace))
    grown = {**live, "spec": put(live["spec"], "source.topic.partitions", 8)}
    assert refusal(lambda: cluster.api.replace(grown)) == ""


def test_every_rule_has_its_case() -> None:
    """A rule that nothing breaks could be wrong for ever."""
    told = [text for *_, text in REFUSED] + [text for *_, text in CHANGES] + [text for _, text in NAMES]
    assert {message for message in MESSAGES if not any(text in message for text in told)} == set()


def test_the_largest_spec_is_taken(cluster: Any, namespace: str) -> None:
    """At the bounds of the lists and strings that the rules look at: their cost stays within the server's budget."""
    fields = [{"name": f"f{number:03}_{'x' * 36}", "type": "number"} for number in range(200)]
    derives = [{"name": f"d{number:03}_{'x' * 36}", "expression": f"f000_{'x' * 36} + 1"} for number in range(32)]
    names = [field["name"] for field in (*fields, *derives)]
    metrics = [
        {"name": f"m{number:02}_{'x' * 37}", "function": "sum", "field": names[-1 - number]} for number in range(32)
    ]
    aggregation = {"groupBy": names[100:108], "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics}
    aggregations = [{"name": f"a{number:02}_{'x' * 37}", **aggregation} for number in range(16)]
    rule = {"aggregation": aggregations[-1]["name"], "metric": metrics[-1]["name"], "detector": {"type": "ewma"}}
    of_events = {"field": names[-1], "groupBy": names[-9:-1], "detector": {"type": "ewma"}}
    anomalies = [{"name": f"r{number:02}_{'x' * 37}", **(of_events if number % 2 else rule)} for number in range(32)]
    spec = {
        "source": {"topic": {"partitions": 1024}, "fields": fields},
        "transform": {"derive": derives, "filter": " OR ".join([f"{names[0]} > 1"] * 18)[:1024]},
        "aggregations": aggregations,
        "anomalies": anomalies,
    }
    assert refusal(lambda: cluster.api.create(resource(spec, namespace, "a" * 40))) == ""
    live = cluster.api.get(PIPELINE, namespace, "a" * 40)
    assert refusal(lambda: cluster.api.replace({**live, "spec": {**live["spec"], "suspend": True}})) == ""
