"""Random pipelines, and random edits of them."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from typing import Any

from drawn.metrics import functions_for, parameters_for
from oracle.cells import kind_of
from oracle.draw_expressions import NUMERIC, TAME, Drawer
from oracle.expressions import compiled
from oracle.places import draw_place
from oracle.windows import draw_window, is_long
from tidemill_contract.functions.registry import FIELD_OPTIONAL

FIELDS = {
    "ts": "timestamp", "k": "string", "s": "string", "i": "integer", "j": "integer", "big": "integer", "f": "number",
    "z": "number", "b": "boolean", "t": "timestamp",
}  # fmt: skip
NAMESPACE = "fuzz"
_GROUPS = ("k", "s", "j", "z", "b", "t")
_EDITS = ("metric", "metric", "list", "window", "groups", "filter", "derive", "grace", "policy", "new")
_BEYOND_DOUBLES = ("quantile", "median", "variance", "stddev")

_COMPOSED = (
    "{a} / {b}", "({a} - {b}) / {b}", "COALESCE({a}, 0) + {b}", "ROUND({a} / {b}, 2)", "100.0 * {a}", "{a} * {b}",
    "CASE WHEN {a} > {b} THEN {a} WHEN {b} IS NULL THEN -1.5 END", "SQRT(ABS({a} - {b}))", "GREATEST({a}, {b}) / 7",
    "-({a})", "NULLIF({a}, 0) / {b} + 0.5",
)  # fmt: skip

Spec = dict[str, Any]


class SpecDrawer:
    """Draws specs and edits.

    Args:
        rnd: the source of randomness.
        avoid: names of parts to leave out: `spread` (variance, stddev), `big` (doubles of integers beyond 2^53).
    """

    def __init__(self, rnd: random.Random, avoid: frozenset[str] = frozenset()) -> None:
        self._rnd, self._avoid = rnd, avoid
        self._names = 0

    def document(self, name: str) -> dict[str, Any]:
        """Draw a resource."""
        rnd = self._rnd
        spec: Spec = {
            "source": {
                "topic": {"partitions": rnd.randint(1, 3)},
                "fields": [
                    {"name": n, "type": kind, "required": n == "ts", **draw_place(rnd, n, kind)}
                    for n, kind in FIELDS.items()
                ],
                "eventTime": {
                    "field": "ts", "maxDisorder": rnd.choice(["0s", "5s", "1m"]), "idleTimeout": "5h",
                    "maxAdvance": "90d",
                },
            },
            "transform": {"derive": []},
            "aggregations": [],
            "processor": {"flushInterval": "100ms", "replicas": 1},
            "ingest": {"enabled": False},
            "api": {"cacheTtl": "0s"},
            "auth": {"required": False},
        }  # fmt: skip
        spec["processor"]["replicas"] = rnd.randint(1, spec["source"]["topic"]["partitions"])
        for _ in range(rnd.randint(0, 3)):
            self._add_derive(spec)
        if rnd.random() < 0.5:
            spec["transform"]["filter"] = self._filter(spec)
        for number in range(rnd.randint(2, 4)):
            spec["aggregations"].append(self._aggregation(spec, f"a{number}"))
        return {
            "apiVersion": "tidemill.dev/v1alpha1",
            "kind": "AnalyticsPipeline",
            "metadata": {"name": name, "namespace": NAMESPACE, "uid": f"uid-{name}", "generation": 1},
            "spec": spec,
        }

    def edit(self, spec: Spec) -> tuple[str, Spec]:
        """Draw an edit; return its description, and the edited spec."""
        rnd, spec = self._rnd, copy.deepcopy(spec)
        aggregation = rnd.choice(spec["aggregations"])
        name = aggregation["name"]
        match rnd.choice(_EDITS):
            case "metric":
                aggregation["metrics"].append(self._metric(types_of(spec)))
                if rnd.random() < 0.5:
                    aggregation["metrics"].append(self._composed(aggregation["metrics"], types_of(spec)))
                return f"{name}: one more metric", spec
            case "list":
                for metric in aggregation["metrics"]:
                    if metric["function"] == "quantile":
                        metric["q"] = self._q()
                return f"{name}: other quantiles", spec
            case "window":
                aggregation["window"] = draw_window(self._rnd)
                return f"{name}: another window", spec
            case "groups":
                aggregation["groupBy"] = self._groups(types_of(spec))
                return f"{name}: other groups", spec
            case "filter":
                spec["transform"].pop("filter", None)
                if rnd.random() < 0.7:
                    spec["transform"]["filter"] = self._filter(spec)
                return "another filter", spec
            case "derive":
                self._add_derive(spec)
                aggregation["metrics"].append(self._metric(types_of(spec)))
                return f"one more derive; {name}: one more metric", spec
            case "grace":
                aggregation["window"]["grace"] = rnd.choice(["0s", "10s", "2m"])
                return f"{name}: another grace", spec
            case "policy":
                aggregation |= self._policy(aggregation["window"])
                return f"{name}: another late policy", spec
        spec["aggregations"].append(self._aggregation(spec, f"b{len(spec['aggregations'])}"))
        return "one more aggregation", spec

    def _add_derive(self, spec: Spec) -> None:
        kind = self._rnd.choice(["integer", "number", "string", "boolean"])
        drawer = Drawer(self._rnd, types_of(spec) | {"big": "none"}, TAME)
        derive = {"name": self._name("d"), "expression": drawer.draw(kind, 2)}
        spec["transform"]["derive"].append(derive)

    def _filter(self, spec: Spec) -> str:
        condition = Drawer(self._rnd, types_of(spec), TAME).draw("boolean", 2)
        # Most events shall pass the filter.
        return f"i IS NULL OR i % 5 <> 0 OR {condition}" if self._rnd.random() < 0.8 else condition

    def _aggregation(self, spec: Spec, name: str) -> dict[str, Any]:
        types = types_of(spec)
        metrics = [{"name": self._name("m"), "function": "count"}]
        metrics += [self._metric(types) for _ in range(self._rnd.randint(1, 7))]
        self._rnd.shuffle(metrics)
        for _ in range(self._rnd.choice([0, 0, 1, 2])):
            metrics.append(self._composed(metrics, types))
        groups, window = self._groups(types), draw_window(self._rnd)
        return {"name": name, "groupBy": groups, "window": window, "metrics": metrics, **self._policy(window)}

    def _groups(self, types: Mapping[str, str]) -> list[str]:
        columns = [*_GROUPS, *(name for name in types if name not in FIELDS)]
        return self._rnd.sample(columns, self._rnd.choice([0, 1, 1, 2]))

    def _policy(self, window: Mapping[str, Any]) -> dict[str, str]:
        policy = self._rnd.choice(["deadLetter", "deadLetter", "drop", "reopen"])
        # Without maxLength, a session lasts up to a day. Retention must be at least the length of a window.
        return {"latePolicy": policy, "retention": self._rnd.choice(["10d" if is_long(window) else "2h", "90d"])}

    def _metric(self, types: Mapping[str, str]) -> dict[str, Any]:
        rnd = self._rnd
        while True:
            field = rnd.choice(list(types))
            kind = types[field]
            function = rnd.choice(functions_for(kind))
            wide = field == "big" or (field not in FIELDS and kind in ("integer", "number"))
            if "spread" in self._avoid and function in ("variance", "stddev"):
                continue
            if "big" in self._avoid and wide and function in _BEYOND_DOUBLES:
                continue
            metric: dict[str, Any] = {"name": self._name("m"), "function": function, "field": field}
            if function in FIELD_OPTIONAL and rnd.random() < 0.5:
                del metric["field"]
            if rnd.random() < 0.3:
                metric["where"] = Drawer(rnd, dict(types), TAME).draw("boolean", 2)
            metric |= parameters_for(function, types, rnd.choice)
            if function == "quantile":
                metric["q"] = self._q()
            if function == "topk":
                metric["k"] = rnd.randint(1, 5)
                if rnd.random() < 0.5:
                    del metric["k"]  # Use the default.
            return metric

    def _composed(self, metrics: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> dict[str, Any]:
        """Draw a metric by expression over numeric metrics."""
        rnd = self._rnd
        numeric = [m["name"] for m in metrics if m["function"] == "expression" or kind_of(m, types) in NUMERIC]
        a, b = rnd.choice(numeric), rnd.choice(numeric)
        return {"name": self._name("x"), "function": "expression", "expression": rnd.choice(_COMPOSED).format(a=a, b=b)}

    def _q(self) -> float:
        return self._rnd.choice([0.5, 0.9, 0.01, 0.25, 0.999])

    def _name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}{self._names}"


def types_of(spec: Spec) -> dict[str, str]:
    """Return the types of fields and derives by name."""
    types = {item["name"]: item["type"] for item in spec["source"]["fields"]}
    for derive in spec["transform"]["derive"]:
        types[derive["name"]] = compiled(derive["expression"], types)[0]
    return types
