"""Resources drawn around their kinds (windows, detectors, metrics), and what model and CRD say of each.

A window, detector or metric is drawn as its kind wants it, and then often spoilt: a member of another kind, one that is
missing, unheard of, null or of a wrong value. The CRD's word is that of its schema and of its rules about members of
kinds, which are read here: they only ask whether a member is there, and what the kind is.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from jsonschema import Draft4Validator

from tidemill_contract.resource.validate import check
from tidemill_operator.resource import crd

Members = dict[str, Any]

# Written out, so that what is added later draws nothing else.
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
    """Draws resources from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def document(self) -> Members:
        """A resource; about one of three has no fault."""
        rnd = self._random
        aggregations = [self._aggregation(f"a{number}") for number in range(rnd.choice((1, 1, 2)))]
        spec = {
            "source": {"fields": [{"name": name, "type": kind} for name, kind in TYPES.items()]},
            "aggregations": aggregations,
            "anomalies": [self._anomaly(f"r{number}") for number in range(rnd.choice((0, 0, 1, 2)))],
        }
        made = {
            "apiVersion": "tidemill.dev/v1alpha1",
            "kind": "AnalyticsPipeline",
            "metadata": {"name": "drawn", "namespace": "shop"},
            "spec": spec,
        }
        return copy.deepcopy(made)

    def _often(self, share: float) -> bool:
        return self._random.random() < share

    def _one(self, values: Mapping[str, tuple[Any, ...]], name: str) -> Any:
        """A value of a member, mostly one of its first two, which are good."""
        return self._random.choice(values[name] if self._often(0.15) else values[name][:2])

    def _spoilt(self, members: Members, values: Mapping[str, tuple[Any, ...]]) -> Members:
        """The members, often as they were, else with one too many, too few, unheard of, null or of no such type."""
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
        made: Members = {"name": name, "window": self._window(), "metrics": metrics}
        if self._often(0.3):
            made["retention"] = rnd.choice(("1d", "2d", "1h", "soon"))
        return made

    def _window(self) -> Members:
        kind = self._random.choice(list(WINDOWS))
        made = {"type": kind, **{name: self._one(LENGTHS, name) for name in WINDOWS[kind]}}
        if kind == "session" and self._often(0.5):
            del made["maxLength"]
        if self._often(0.5):
            made["grace"] = self._one(LENGTHS, "grace")
        return self._spoilt(made, LENGTHS)

    def _metric(self, name: str) -> Members:
        rnd = self._random
        function = rnd.choice(FUNCTIONS)
        made: Members = {"name": name, "function": function}
        if function != "count" or self._often(0.3):
            made["field"] = rnd.choice([*TYPES, "nothing"] if self._often(0.15) else NUMBERS)
        member = OF_FUNCTION.get(function)
        if member is not None and (member != "k" or self._often(0.5)):
            made[member] = self._one(PARAMETERS, member)
        spoilt = self._spoilt(made, PARAMETERS)
        if spoilt.get("function") not in FUNCTIONS and "function" in spoilt:
            spoilt["function"] = None  # which functions there are is told, and will be others
        return spoilt

    def _anomaly(self, name: str) -> Members:
        rnd = self._random
        watched: Members = {"aggregation": "a0", "metric": rnd.choice(("m0", "m1"))}
        if self._often(0.4):
            watched = {"field": rnd.choice(NUMBERS), "groupBy": ["customer"]}
        made = {"name": name, **watched}
        if self._often(0.8):
            made["detector"] = self._detector()
        return made

    def _detector(self) -> Members:
        rnd = self._random
        kind = rnd.choice(list(DETECTORS))
        made: Members = {"type": kind} if kind != "auto" or self._often(0.5) else {}
        if DETECTORS[kind] and self._often(0.6):
            made[DETECTORS[kind]] = self._one(SETTINGS, DETECTORS[kind])
        for name in ("threshold", "warmup", "cooldown"):
            if self._often(0.2):
                made[name] = self._one(SETTINGS, name)
        return self._spoilt(made or {"type": "auto"}, SETTINGS)


def model_faults(document: Members) -> list[str]:
    """The places that the model finds at fault."""
    pipeline, faults = check(document)
    assert (pipeline is None) == bool(faults)
    return sorted(fault.path for fault in faults)


def crd_faults(document: Members) -> list[str]:
    """The places that the CRD finds at fault: where its schema does not fit, else where its rules of kinds do not."""
    spec = _stored(document["spec"])
    wrong = {".".join(map(str, error.absolute_path)) for error in _validator().iter_errors(spec)}
    wrong |= set(_unheard_of(spec, _schema(), ""))
    return sorted(wrong) or sorted(_misplaced(spec))


def _stored(value: Any) -> Any:
    """A document as the API server reads it: members that are null are dropped."""
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
    """Members that kubectl refuses."""
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
    """Places at which a rule about members of kinds does not hold."""
    aggregation = _schema()["properties"]["aggregations"]["items"]
    metric = aggregation["properties"]["metrics"]["items"]
    detector = _schema()["properties"]["anomalies"]["items"]["properties"]["detector"]
    for index, item in enumerate(spec["aggregations"]):
        yield from _broken(item, aggregation, f"aggregations.{index}")
        for at, found in enumerate(item["metrics"]):
            yield from _broken(found, metric, f"aggregations.{index}.metrics.{at}")
    for index, rule in enumerate(spec.get("anomalies", [])):
        if "detector" in rule:
            yield from _broken(rule["detector"], detector, f"anomalies.{index}.detector")


def _broken(item: Members, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if re.search(r"self\.(window\.type|function|type)\b", rule["rule"]) and not rule_of(rule["rule"])(item):
            yield f"{path}{rule['fieldPath']}"


@cache
def rule_of(text: str) -> Callable[[Members], bool]:
    """A rule of CEL that only asks what is there and what it is, as Python."""
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

        return bool(eval(compiled, {"get": get}))  # noqa: S307 - the repository's own rules

    return holds
