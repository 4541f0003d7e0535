"""Random resources with windows, detectors and metrics, and the faults that model and CRD find in them.

A window, detector or metric is first drawn with the members of its kind. Then it is often spoilt: a member is added,
removed, renamed, set to null or to a wrong value. The faults of the CRD are those of its schema and of its CEL rules
about members of kinds. This module evaluates these rules in Python, because they only test members and kinds.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from jsonschema import Draft4Validator

from tidemill_contract.resource.validate import check_document
from tidemill_operator.resource import crd

Members = dict[str, Any]

# A constant list: later additions to the product must not change the drawn resources.
TYPES = {"customer": "string", "amount": "number", "items": "integer", "at": "timestamp", "ok": "boolean"}
NUMBERS, ORDERED = ("amount", "items"), ("customer", "amount", "items", "at")
WINDOWS = {"tumbling": ("size",), "hopping": ("size", "hop"), "session": ("gap", "maxLength")}
LENGTHS: Mapping[str, tuple[Any, ...]] = {
    "size": ("1m", "1h", "1d", "500ms", "120d"),
    "hop": ("1m", "15m", "7m", "1s", "100ms"),
    "gap": ("5m", "1s", "200ms", "2d"),
    "maxLength": ("1h", "2d", "1s", "120d"),
    "grace": ("0s", "10s", "1m", "89d"),
}
FUNCTIONS = (
    "count", "histogram", "sum", "avg", "rate", "min", "max", "first", "last", "min_by", "max_by", "variance", "stddev",
    "quantile", "median", "distinct", "topk",
)  # fmt: skip
PARAMETERS: Mapping[str, tuple[Any, ...]] = {
    "bounds": ([1, 10], [0.5], [5, 1], [], [3.0, 3.0]),
    "by": ("amount", "at", "ok", "nothing", "By"),
    "q": (0.5, 0.99, 0, 1, "half"),
    "k": (1, 10, 100, 0, 101, 2.5),
}
OF_FUNCTION = {"histogram": "bounds", "min_by": "by", "max_by": "by", "quantile": "q", "topk": "k"}
DETECTORS = {"auto": "", "zscore": "", "ewma": "weight", "mad": "span", "seasonal": "period", "changepoint": "",
             "isolation": ""}  # fmt: skip
SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "weight": (0.1, 0.5, 0, 1, "light"),
    "span": (5, 300, 500, 4, 501),
    "period": ("day", "week", "month"),
    "threshold": (3.0, 1, 1000, 0, 1001),
    "warmup": (2, 24, 1, 100_001),
    "cooldown": ("0s", "1h", "soon"),
}


class Drawer:
    """Draws the same resources for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def document(self) -> Members:
        """Draw a resource; about one of three has no fault."""
        rnd = self._random
        aggregations = [self._aggregation(f"a{number}") for number in range(rnd.choice((1, 1, 2)))]
        spec = {
            "source": {"fields": [{"name": name, "type": kind} for name, kind in TYPES.items()]},
            "aggregations": aggregations,
            "anomalies": [self._anomaly(f"r{number}") for number in range(rnd.choice((0, 0, 1, 2)))],
        }
        document = {
            "apiVersion": "tidemill.dev/v1alpha1",
            "kind": "AnalyticsPipeline",
            "metadata": {"name": "drawn", "namespace": "shop"},
            "spec": spec,
        }
        return copy.deepcopy(document)

    def _often(self, share: float) -> bool:
        return self._random.random() < share

    def _one(self, values: Mapping[str, tuple[Any, ...]], name: str) -> Any:
        """Draw a value of a member: mostly one of its first two values, which are valid."""
        return self._random.choice(values[name] if self._often(0.15) else values[name][:2])

    def _spoilt(self, members: Members, values: Mapping[str, tuple[Any, ...]]) -> Members:
        """Return members with no, one or several faults: added, removed, unknown, null or of a wrong type."""
        rnd = self._random
        while self._often(0.2):
            match rnd.choice(("more", "more", "less", "unheard", "null", "wrong")):
                case "more":
                    name = rnd.choice(list(values))
                    members[name] = self._one(values, name)
                case "less":
                    members.pop(rnd.choice([*members, "type"]), None)
                case "unheard":
                    members[rnd.choice(("unheardOf", "max_length", "Size"))] = 1
                case "null":
                    members[rnd.choice([*values, *members])] = None
                case "wrong":
                    members[rnd.choice([*values, *members])] = rnd.choice((True, [], {"a": 1}, 10**18, "", "x"))
        return members

    def _aggregation(self, name: str) -> Members:
        rnd = self._random
        metrics = [self._metric(f"m{number}") for number in range(rnd.choice((1, 2, 3)))]
        drawn: Members = {"name": name, "window": self._window(), "metrics": metrics}
        if self._often(0.3):
            drawn["retention"] = rnd.choice(("1d", "2d", "1h", "soon"))
        return drawn

    def _window(self) -> Members:
        kind = self._random.choice(list(WINDOWS))
        drawn = {"type": kind, **{name: self._one(LENGTHS, name) for name in WINDOWS[kind]}}
        if kind == "session" and self._often(0.5):
            del drawn["maxLength"]
        if self._often(0.5):
            drawn["grace"] = self._one(LENGTHS, "grace")
        return self._spoilt(drawn, LENGTHS)

    def _metric(self, name: str) -> Members:
        rnd = self._random
        function = rnd.choice(FUNCTIONS)
        drawn: Members = {"name": name, "function": function}
        if function != "count" or self._often(0.3):
            drawn["field"] = rnd.choice([*TYPES, "nothing"] if self._often(0.15) else NUMBERS)
        member = OF_FUNCTION.get(function)
        if member is not None and (member != "k" or self._often(0.5)):
            drawn[member] = self._one(PARAMETERS, member)
        spoilt = self._spoilt(drawn, PARAMETERS)
        if spoilt.get("function") not in FUNCTIONS and "function" in spoilt:
            spoilt["function"] = None  # Messages about unknown functions list all functions.
        return spoilt

    def _anomaly(self, name: str) -> Members:
        rnd = self._random
        watched: Members = {"aggregation": "a0", "metric": rnd.choice(("m0", "m1"))}
        if self._often(0.4):
            watched = {"field": rnd.choice(NUMBERS), "groupBy": ["customer"]}
        drawn = {"name": name, **watched}
        if self._often(0.8):
            drawn["detector"] = self._detector()
        return drawn

    def _detector(self) -> Members:
        rnd = self._random
        kind = rnd.choice(list(DETECTORS))
        drawn: Members = {"type": kind} if kind != "auto" or self._often(0.5) else {}
        if DETECTORS[kind] and self._often(0.6):
            drawn[DETECTORS[kind]] = self._one(SETTINGS, DETECTORS[kind])
        for name in ("threshold", "warmup", "cooldown"):
            if self._often(0.2):
                drawn[name] = self._one(SETTINGS, name)
        return self._spoilt(drawn or {"type": "auto"}, SETTINGS)


def model_faults(document: Members) -> list[str]:
    """Return the paths that the model refuses."""
    pipeline, faults = check_document(document)
    assert (pipeline is None) == bool(faults)
    return sorted(fault.path for fault in faults)


def crd_faults(document: Members) -> list[str]:
    """Return the paths that the CRD's schema refuses, or, if there are none, those that its rules refuse."""
    spec = _stored(document["spec"])
    wrong = {".".join(map(str, error.absolute_path)) for error in _validator().iter_errors(spec)}
    wrong |= set(_unheard_of(spec, _schema(), ""))
    return sorted(wrong) or sorted(_misplaced(spec))


def _stored(value: Any) -> Any:
    """Return a document as the API server stores it, without members that are null."""
    if isinstance(value, dict):
        return {name: _stored(member) for name, member in value.items() if member is not None}
    return [_stored(item) for item in value] if isinstance(value, list) else value


@cache
def _schema() -> Any:
    version = crd.definition()["spec"]["versions"][0]
    return version["schema"]["openAPIV3Schema"]["properties"]["spec"]


@cache
def _validator() -> Draft4Validator:
    return Draft4Validator(_schema())


def _unheard_of(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Return the paths of members that the schema does not have. kubectl refuses them."""
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _unheard_of(item, schema["items"], f"{path}.{index}")
    members = schema.get("properties")
    if isinstance(value, dict) and members is not None:
        for name, member in value.items():
            if name not in members:
                yield f"{path}.{name}"
            else:
                yield from _unheard_of(member, members[name], f"{path}.{name}")


def _misplaced(spec: Members) -> Iterator[str]:
    """Return the paths at which a rule about members of kinds is violated."""
    aggregation = _schema()["properties"]["aggregations"]["items"]
    metric = aggregation["properties"]["metrics"]["items"]
    detector = _schema()["properties"]["anomalies"]["items"]["properties"]["detector"]
    for index, item in enumerate(spec["aggregations"]):
        yield from _broken(item, aggregation, f"aggregations.{index}")
        for place, candidate in enumerate(item["metrics"]):
            yield from _broken(candidate, metric, f"aggregations.{index}.metrics.{place}")
    for index, rule in enumerate(spec.get("anomalies", [])):
        if "detector" in rule:
            yield from _broken(rule["detector"], detector, f"anomalies.{index}.detector")


def _broken(item: Members, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if re.search(r"self\.(window\.type|function|type)\b", rule["rule"]) and not rule_of(rule["rule"])(item):
            yield f"{path}{rule['fieldPath']}"


@cache
def rule_of(text: str) -> Callable[[Members], bool]:
    """Compile a rule of CEL to Python. The rule may only test whether members exist and compare them."""
    code = re.sub(r"\((has\(\S+\)) \? (\S+) : ([^\s)]+)\)", r"(\2 if \1 else \3)", text)
    code = re.sub(r"has\(self\.([\w.]+)\)", r"(get('\1') is not None)", code)
    code = re.sub(r"self\.([\w.]+)", r"get('\1')", code)
    code = re.sub(r"!(?!=)", " not ", code.replace("||", " or ").replace("&&", " and "))
    compiled = compile(code.strip(), text, "eval")

    def holds(item: Members) -> bool:
        def get(path: str) -> Any:
            value: Any = item
            for step in path.split("."):
                value = value.get(step) if isinstance(value, dict) else None
            return value

        return bool(eval(compiled, {"get": get}))  # noqa: S307 - rules of the repository

    return holds
