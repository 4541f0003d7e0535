"""Random edits of a resource from the CRD's schema, and rules that each edit must hold, as in Acto (SOSP 2023).

An edit sets one value at one place of the schema, valid or invalid. The rules:

- *good → bad → good*: a refused edit changes nothing and has a reason, and the first spec is ready again at once;
- *there and back*: an accepted edit that is reverted leaves the same state, except for numbers that never shrink;
- *differential*: a resource that is edited to a spec has the state of a resource that is created with it;
- *effect*: an accepted edit with another value changes something besides the stored spec;
- *agreement*: the operator also refuses every edit that the CRD's schema refuses.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft4Validator

from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.resource.validate import check_document
from tidemill_operator.reconcile import reconcile
from tidemill_operator.resource import crd
from tidemill_operator.resource.schema import structural_schema
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

Document = dict[str, Any]
Schema = Mapping[str, Any]
Path = tuple[str | int, ...]
PLATFORM = Platform(partitions=3)
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SPEC: Schema = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
# Unlike the CRD, this schema has the defaults of lists.
_DEFAULTS: Schema = structural_schema(PipelineSpec, list_defaults=True)
_DURATIONS = ("250ms", "1s", "10s", "5m", "1h", "7d", "30d", "365d")
_TEXTS = ("a", "country", "amount", "ts", "by_country", "orders", "earliest", "1Gi", "500m", "count", "true")
_WRONG: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    3,
    10**18,
    1.5,
    "",
    "x",
    "5",
    "1h",
    "y" * 5000,
    "ü\u2028",
    [],
    {},
    ["x"],
    {"x": "y"},
    [None],
)
# Members that have an effect only when the resource is deleted.
_LATER = ("reclaimPolicy",)


@dataclass(frozen=True)
class Edit:
    """Sets a value at a path of the spec, or removes the member if `absent` is true."""

    path: Path
    value: Any = None
    absent: bool = False

    def applied(self, document: Document) -> Document:
        """Return the edited document with the next generation. Objects on the path are created."""
        edited = copy.deepcopy(document)
        edited["metadata"]["generation"] += 1
        at: Any = edited["spec"]
        for step, following in zip(self.path, self.path[1:], strict=False):
            if isinstance(at, dict):
                at = at.setdefault(step, [] if isinstance(following, int) else {})
            else:
                at = at[int(step)]
        last: Any = self.path[-1]
        if self.absent:
            del at[last]
        else:
            at[last] = copy.deepcopy(self.value)
        return edited

    def __str__(self) -> str:
        shown = "removed" if self.absent else json.dumps(self.value, default=str)[:80]
        return f"{'.'.join(map(str, self.path))}: {shown}"


def base() -> Document:
    """Return a resource that has every kind of member."""
    metrics: list[Document] = [
        {"name": "orders", "function": "count"},
        {"name": "revenue", "function": "sum", "field": "gross"},
        {"name": "p90", "function": "quantile", "field": "amount", "q": 0.9},
    ]
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "uid-1", "generation": 1},
        "spec": {
            "source": {
                "topic": {"partitions": 3, "retention": "7d", "config": {"segment.ms": "3600000"}},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "country", "type": "string"},
                    {"name": "amount", "type": "number"},
                ],
                "key": "country",
                "eventTime": {"field": "ts"},
            },
            "transform": {"filter": "amount > 0", "derive": [{"name": "gross", "expression": "amount * 2"}]},
            "aggregations": [
                {
                    "name": "by_country",
                    "groupBy": ["country"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": metrics,
                },
                {"name": "visits", "window": {"type": "session", "gap": "5m"}, "metrics": metrics[:1]},
            ],
            "anomalies": [
                {
                    "name": "odd",
                    "aggregation": "by_country",
                    "metric": "orders",
                    "detector": {"type": "zscore", "threshold": 4.0, "warmup": 24},
                }
            ],
            "processor": {"replicas": 2},
        },
    }


def places(schema: Schema = SPEC, value: Any = None, path: Path = ()) -> Iterator[tuple[Path, Schema]]:
    """Return every path that the schema describes, with its schema. Items of lists are those of the value."""
    if path:
        yield path, schema
    if schema.get("type") == "object":
        for name, member in schema.get("properties", {}).items():
            yield from places(member, value.get(name) if isinstance(value, dict) else None, (*path, name))
    elif schema.get("type") == "array":
        for index, item in enumerate(value if isinstance(value, list) else ()):
            yield from places(schema["items"], item, (*path, index))


def draw(rng: random.Random, document: Document) -> Edit:
    """Draw an edit of a random place; about half of the edits are valid."""
    path, schema = rng.choice(list(places(SPEC, document["spec"])))
    if rng.random() < 0.1 and _there(document["spec"], path):
        return Edit(path, absent=True)
    if rng.random() < 0.15:
        return Edit((*path[:-1], "unheardOf"), rng.choice(_WRONG)) if isinstance(path[-1], str) else Edit(path, None)
    return Edit(path, _good(rng, schema) if rng.random() < 0.6 else rng.choice(_WRONG))


def _there(spec: Any, path: Path) -> bool:
    for step in path:
        try:
            spec = spec[step]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _good(rng: random.Random, schema: Schema) -> Any:
    """Draw a valid value, often at the bounds of the schema."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "type" not in schema:  # The schema allows several types: a field's path or default.
        return rng.choice(
            ("more.of.it[0]", ["a.b", "c"], "country", 1, True, "more.parts[].size", ["parts", [], "size"])
        )
    match schema.get("type"):
        case "boolean":
            return rng.random() < 0.5
        case "integer" | "number":
            low, high = schema.get("minimum", 0), schema.get("maximum", 1000)
            step = 1 if schema["type"] == "integer" else (high - low) / 1000
            return rng.choice((low, low + step, high, min(high, low + 5 * step)))
        case "string" if "ms|s|m|h|d" in schema.get("pattern", ""):
            return rng.choice(_DURATIONS)
        case "string":
            return rng.choice(_TEXTS)
        case "array":
            return [_good(rng, schema["items"]) for _ in range(rng.randint(schema.get("minItems", 0), 2))]
    members = schema.get("properties", {})
    wanted = [name for name in members if name in schema.get("required", ()) or rng.random() < 0.2]
    return {name: _good(rng, members[name]) for name in wanted}


class Subject:
    """One resource in a new in-memory platform."""

    def __init__(self) -> None:
        self.world = MemoryWorld()
        self.status: Document | None = None

    def apply(self, document: Document) -> None:
        """Reconcile a document until a pass writes nothing."""
        for _ in range(3):
            self.world.take_writes()
            self.status = reconcile(
                document, platform=PLATFORM, actuators=self.world.actuators, previous=self.status, now=NOON
            )
            if not self.world.take_writes():
                return
        raise AssertionError("the third pass still writes")

    @property
    def conditions(self) -> dict[str, tuple[str, str]]:
        """The status and reason of each condition."""
        return {c["type"]: (c["status"], c["reason"]) for c in (self.status or {}).get("conditions", ())}

    @property
    def message(self) -> str:
        """The messages of the conditions `Stalled` and `Ready`."""
        messages = [
            c["message"] for c in (self.status or {}).get("conditions", ()) if c["type"] in ("Stalled", "Ready")
        ]
        return "; ".join(messages)

    def state(self) -> Document:
        """Return the state of the platform, without generations."""
        topics, schemas = self.world.kafka.topics, self.world.postgres.schemas
        return {
            "topics": {
                name: (self.world.kafka.configs[name], topic.replication_factor) for name, topic in topics.items()
            },
            "partitions": {name: topic.partitions for name, topic in topics.items()},
            "schemas": {name: (schema.owner, schema.accepted) for name, schema in schemas.items()},
            "secrets": sorted(self.world.secrets.files),
            "workloads": {
                name: _workload(workload)
                for running in self.world.runtime.running.values()
                for name, workload in running.items()
            },
        }


def _workload(workload: Any) -> Document:
    configs = {name: json.loads(text) for name, text in workload.configs.items()}
    for config in configs.values():
        del config["generation"]
        config["aggregations"] = sorted(item["name"] for item in config["aggregations"])
        config["spec"]["source"]["topic"].pop("partitions")
        (config["spec"].get("processor", {}).get("scaling") or {}).pop("maxReplicas", None)
    environment = {key: value for key, value in workload.environment.items() if "GENERATION" not in key}
    facts = (workload.replicas, environment, workload.secrets, workload.ports, workload.resources)
    return {"configs": configs, "facts": facts, "scaled": (workload.scaled, workload.externally_scaled)}


def problems(edit: Edit, document: Document) -> list[str]:
    """Return the rules that an edit of a valid resource violates."""
    edited, subject = edit.applied(document), Subject()
    subject.apply(document)
    before, ready = subject.state(), subject.conditions
    violations = [] if ready["Ready"][0] == "True" else [f"the resource itself is not ready: {subject.message}"]
    faults = check_document(edited)[1]
    structure = next(iter(Draft4Validator(SPEC).iter_errors(_as_stored(edited["spec"]))), None)
    if structure is not None and not faults:
        violations.append(f"the CRD refuses the edit ({structure.message[:200]}), and the operator does not")
    subject.apply(edited)
    after = subject.state()
    refused = "Stalled" in subject.conditions
    if any(reason == "Internal" for _, reason in subject.conditions.values()):
        violations.append(f"an internal error: {subject.message}")
    if faults and not refused:
        violations.append(f"accepted despite the fault {faults[0]}")
    if refused:
        violations += _refused(edit, subject, faults, before == after)
    elif edited["spec"] != document["spec"]:
        violations += _accepted(edit, edited, subject, before)
    again = {**copy.deepcopy(document), "metadata": {**document["metadata"], "generation": 3}}
    subject.apply(again)
    if "Stalled" in subject.conditions and "partitions" in subject.message and not refused:
        return violations  # Kafka cannot remove partitions.
    if not _covers(subject.state(), before):
        violations.append(f"after the revert, the state differs: {_differing(before, subject.state())}")
    elif subject.conditions != ready:
        violations.append(f"after the revert, the conditions are {subject.conditions}")
    return violations


def _refused(edit: Edit, subject: Subject, faults: list[Any], same: bool) -> Iterator[str]:
    if not same:
        yield "refused, but the state has changed"
    if not subject.message:
        yield "refused without a message"
    if faults and "spec." not in subject.message:
        yield f"refused without a path in the message: {subject.message[:300]}"


def _accepted(edit: Edit, edited: Document, subject: Subject, before: Document) -> Iterator[str]:
    after = subject.state()
    fresh = Subject()
    fresh.apply(edited)
    if fresh.conditions["Ready"][0] == "True" and not _covers(after, fresh.state()):
        yield f"created with the spec, the state differs from that after the edit: {_differing(after, fresh.state())}"
    silent = edit.path[0] in _LATER or edit.absent or as_default(*place_of(edit))
    if not silent and {**after, "schemas": 0} == {**before, "schemas": 0}:
        yield "accepted, but without any effect"


def as_default(schema: Schema, value: Any) -> bool:
    """Return True if a value equals the default: empty, the default itself, or an object of such values."""
    if value in (None, [], {}):
        return True
    if isinstance(value, dict) and "properties" in schema:
        return all(as_default(schema["properties"].get(name, {}), member) for name, member in value.items())
    return bool(value == schema.get("default", False if schema.get("type") == "boolean" else None))


def place_of(edit: Edit) -> tuple[Schema, Any]:
    """Return the schema of an edit's place, and the edit's value."""
    schema: Any = _DEFAULTS
    for step in edit.path:
        schema = schema["items"] if isinstance(step, int) else schema.get("properties", {}).get(step, {})
    return schema, edit.value


def _covers(state: Document, wanted: Document) -> bool:
    """Return True if a state is the wanted one. It may have more topics and configs, which are never removed."""
    topics = state["topics"]
    for name, (configs, replicas) in wanted["topics"].items():
        if name not in topics or topics[name][1] != replicas or not configs.items() <= topics[name][0].items():
            return False
    grows = {"topics": 0, "partitions": 0}
    return {**state, **grows} == {**wanted, **grows}


def _as_stored(value: Any) -> Any:
    """Return a value as the API server stores it, without members that are null."""
    if isinstance(value, dict):
        return {key: _as_stored(member) for key, member in value.items() if member is not None}
    return [_as_stored(item) for item in value] if isinstance(value, list) else value


def covered(state: Document, wanted: Document) -> str:
    """Return the first difference of a state from the wanted one, or an empty string. Sets may have more items."""
    for key, value in wanted.items():
        if isinstance(value, set) and value <= state[key]:
            continue
        if state[key] != value:
            return _differing(value, state[key], f".{key}")
    return ""


def _differing(first: Any, second: Any, path: str = "") -> str:
    """Return the first path at which two states differ, with both values."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted({*first, *second}, key=str):
            if first.get(key) != second.get(key):
                return _differing(first.get(key), second.get(key), f"{path}.{key}")
    return f"{path}: {str(first)[:200]} → {str(second)[:200]}"
