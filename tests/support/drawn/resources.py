"""Edits of a resource drawn from the CRD's schema, and what has to hold of each, in the manner of Acto (SOSP 2023).

An edit is one value at one place of the schema, good or bad. The oracles:

- *good → bad → good*: what is refused changes nothing, says so with a reason, and the first spec is well again at once;
- *there and back*: what is accepted and taken back leaves the same state, but for what never shrinks;
- *differential*: edited into a state, or made in it: the same;
- *effect*: what is accepted and is another value than before changes something besides the stored spec;
- *agreement*: what the CRD's schema refuses is refused by the operator's own rules too.
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
from tidemill_contract.resource.validate import check
from tidemill_operator.reconcile import reconcile
from tidemill_operator.resource import crd
from tidemill_operator.resource.schema import structural
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

Document = dict[str, Any]
Schema = Mapping[str, Any]
Path = tuple[str | int, ...]
PLATFORM = Platform(partitions=3)
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SPEC: Schema = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
# The CRD leaves out what lists default to.
_DEFAULTS: Schema = structural(PipelineSpec, list_defaults=True)
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
# Values that nothing shows before the resource goes.
_LATER = ("reclaimPolicy",)


@dataclass(frozen=True)
class Edit:
    """One value at one place; `absent` takes it out."""

    path: Path
    value: Any = None
    absent: bool = False

    def applied(self, document: Document) -> Document:
        """The document with it, a generation later; as it was where the place is not there."""
        made = copy.deepcopy(document)
        made["metadata"]["generation"] += 1
        at: Any = made["spec"]
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
        return made

    def __str__(self) -> str:
        shown = "taken out" if self.absent else json.dumps(self.value, default=str)[:80]
        return f"{'.'.join(map(str, self.path))}: {shown}"


def base() -> Document:
    """A resource in which every kind of member is there."""
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
    """Every place below a value that the schema describes, whether something is there or not."""
    if path:
        yield path, schema
    if schema.get("type") == "object":
        for name, member in schema.get("properties", {}).items():
            yield from places(member, value.get(name) if isinstance(value, dict) else None, (*path, name))
    elif schema.get("type") == "array":
        for index, item in enumerate(value if isinstance(value, list) else ()):
            yield from places(schema["items"], item, (*path, index))


def draw(rng: random.Random, document: Document) -> Edit:
    """An edit of a place, as often good as bad."""
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
    """A value that the schema takes, at its bounds more often than not."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "type" not in schema:  # a value of one of several types: a field's path or default
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
    """One resource in a world of its own."""

    def __init__(self) -> None:
        self.world = MemoryWorld()
        self.status: Document | None = None

    def apply(self, document: Document) -> None:
        """Passes until nothing changes."""
        for _ in range(3):
            self.world.take_writes()
            self.status = reconcile(
                document, platform=PLATFORM, actuators=self.world.actuators, previous=self.status, now=NOON
            )
            if not self.world.take_writes():
                return
        raise AssertionError("a third pass writes still")

    @property
    def conditions(self) -> dict[str, tuple[str, str]]:
        """State and reason of each."""
        return {c["type"]: (c["status"], c["reason"]) for c in (self.status or {}).get("conditions", ())}

    @property
    def message(self) -> str:
        """Why it is stalled."""
        found = [c["message"] for c in (self.status or {}).get("conditions", ()) if c["type"] in ("Stalled", "Ready")]
        return "; ".join(found)

    def state(self) -> Document:
        """Everything that is there, but for what counts up with each edit and never shrinks."""
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
    return {"configs": configs, "facts": facts, "scaled": (workload.scaled, workload.scaled_elsewhere)}


def problems(edit: Edit, document: Document) -> list[str]:
    """What does not hold of an edit of a good resource; nothing, if all does."""
    edited, subject = edit.applied(document), Subject()
    subject.apply(document)
    before, well = subject.state(), subject.conditions
    found = [] if well["Ready"][0] == "True" else [f"the resource itself is not ready: {subject.message}"]
    faults = check(edited)[1]
    structure = next(iter(Draft4Validator(SPEC).iter_errors(_as_stored(edited["spec"]))), None)
    if structure is not None and not faults:
        found.append(f"the CRD refuses it ({structure.message[:200]}), the operator does not")
    subject.apply(edited)
    after = subject.state()
    refused = "Stalled" in subject.conditions
    if any(reason == "Internal" for _, reason in subject.conditions.values()):
        found.append(f"an internal error: {subject.message}")
    if faults and not refused:
        found.append(f"accepted in spite of {faults[0]}")
    if refused:
        found += _refused(edit, subject, faults, before == after)
    elif edited["spec"] != document["spec"]:
        found += _accepted(edit, edited, subject, before)
    again = {**copy.deepcopy(document), "metadata": {**document["metadata"], "generation": 3}}
    subject.apply(again)
    if "Stalled" in subject.conditions and "partitions" in subject.message and not refused:
        return found  # Kafka takes none away
    if not _covers(subject.state(), before):
        found.append(f"taken back, it is not as before: {_differing(before, subject.state())}")
    elif subject.conditions != well:
        found.append(f"taken back, its conditions are {subject.conditions}")
    return found


def _refused(edit: Edit, subject: Subject, faults: list[Any], same: bool) -> Iterator[str]:
    if not same:
        yield "refused, and something has changed"
    if not subject.message:
        yield "refused without a word"
    if faults and "spec." not in subject.message:
        yield f"refused without naming a place: {subject.message[:300]}"


def _accepted(edit: Edit, edited: Document, subject: Subject, before: Document) -> Iterator[str]:
    after = subject.state()
    fresh = Subject()
    fresh.apply(edited)
    if fresh.conditions["Ready"][0] == "True" and not _covers(after, fresh.state()):
        yield f"made so, it is another than edited so: {_differing(after, fresh.state())}"
    silent = edit.path[0] in _LATER or edit.absent or as_default(*place_of(edit))
    if not silent and {**after, "schemas": 0} == {**before, "schemas": 0}:
        yield "accepted, and without any effect"


def as_default(schema: Schema, value: Any) -> bool:
    """Whether it says what holds anyhow: a default written out, nothing, or a mapping of such."""
    if value in (None, [], {}):
        return True
    if isinstance(value, dict) and "properties" in schema:
        return all(as_default(schema["properties"].get(name, {}), member) for name, member in value.items())
    return bool(value == schema.get("default", False if schema.get("type") == "boolean" else None))


def place_of(edit: Edit) -> tuple[Schema, Any]:
    """The schema of an edit's place, and its value."""
    schema: Any = _DEFAULTS
    for step in edit.path:
        schema = schema["items"] if isinstance(step, int) else schema.get("properties", {}).get(step, {})
    return schema, edit.value


def _covers(state: Document, wanted: Document) -> bool:
    """Whether a state is the wanted one. Topics, and configs that somebody may have set, are not taken away unasked."""
    topics = state["topics"]
    for name, (configs, replicas) in wanted["topics"].items():
        if name not in topics or topics[name][1] != replicas or not configs.items() <= topics[name][0].items():
            return False
    grows = {"topics": 0, "partitions": 0}
    return {**state, **grows} == {**wanted, **grows}


def _as_stored(value: Any) -> Any:
    """As the API server has it: members that are null are as good as absent."""
    if isinstance(value, dict):
        return {key: _as_stored(member) for key, member in value.items() if member is not None}
    return [_as_stored(item) for item in value] if isinstance(value, list) else value


def covered(state: Document, wanted: Document) -> str:
    """The first place where a state lacks what was wanted of sets, or differs from it elsewhere; empty: none."""
    for key, value in wanted.items():
        if isinstance(value, set) and value <= state[key]:
            continue
        if state[key] != value:
            return _differing(value, state[key], f".{key}")
    return ""


def _differing(one: Any, other: Any, path: str = "") -> str:
    """The first place at which two states differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}, key=str):
            if one.get(key) != other.get(key):
                return _differing(one.get(key), other.get(key), f"{path}.{key}")
    return f"{path}: {str(one)[:200]} → {str(other)[:200]}"
