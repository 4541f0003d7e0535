"""The CustomResourceDefinition, made from the model: `python -m tidemill_operator.crd > crds/analyticspipelines.yaml`.

Owns the rules that the API server checks itself (CEL) and what kubectl shows. Durations cannot be compared there
(CEL knows no days), nor expressions typed: those are checked by `tidemill validate`, the webhook and at reconcile.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import yaml

from tidemill_contract.name_rules import SYSTEM_COLUMNS
from tidemill_contract.rules import RESERVED
from tidemill_contract.spec import KIND, PipelineSpec
from tidemill_operator.crd_schema import structural
from tidemill_operator.crd_status import STATUS

GROUP, VERSION = "tidemill.dev", "v1alpha1"
PLURAL, SINGULAR, SHORT = "analyticspipelines", "analyticspipeline", "apl"

_RESERVED = "[" + ", ".join(f"'{name}'" for name in RESERVED) + "]"
_NOT_RESERVED = (f"!(self.name in {_RESERVED})", f"the names {', '.join(RESERVED)} are reserved")
_SYSTEM_COLUMNS = "[" + ", ".join(f"'{name}'" for name in SYSTEM_COLUMNS) + "]"
_DERIVES = "(has(self.transform) && has(self.transform.derive) ? self.transform.derive : [])"
# Put together once and looked through with `in`: comparing one by one costs the server more than it allows.
_NAMES = f"self.source.fields.map(f, f.name) + {_DERIVES}.map(d, d.name)"
_NOT_FOUND = "is neither in source.fields nor in transform.derive; `tidemill validate FILE` names it"

# CEL rules by place (`[]`: each item of a list): (rule, message).
RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("size(self.metadata.name) <= 40", "metadata.name must have at most 40 characters"),
        (
            "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name must be of a-z, 0-9 and -, a letter or digit first and last",
        ),
    ),
    "spec": (
        (
            "!has(oldSelf.source.topic) || !has(oldSelf.source.topic.name) || (has(self.source.topic) &&"
            " has(self.source.topic.name) && self.source.topic.name == oldSelf.source.topic.name)",
            "source.topic.name cannot change once it is set; make a new pipeline",
        ),
        (
            "!has(oldSelf.source.topic) || !has(oldSelf.source.topic.partitions) || (has(self.source.topic) &&"
            " has(self.source.topic.partitions) && self.source.topic.partitions >= oldSelf.source.topic.partitions)",
            "source.topic.partitions may grow but never fall or be taken out",
        ),
        (
            "has(self.source.key) == has(oldSelf.source.key) && (!has(self.source.key) ||"
            " self.source.key == oldSelf.source.key)",
            "source.key cannot change; make a new pipeline",
        ),
        (
            f"{_DERIVES}.all(d, !self.source.fields.exists(f, f.name == d.name))",
            "a derive is named like a field; rename the derive",
        ),
        (
            "self.aggregations.all(a, !has(a.groupBy) || a.groupBy.all(g, self.source.fields.exists(f, f.name == g)"
            f" || {_DERIVES}.exists(d, d.name == g)))",
            f"a groupBy column {_NOT_FOUND}",
        ),
        (
            f"[{_NAMES}].all(names, self.aggregations.all(a, a.metrics.all(m, !has(m.field) || m.field in names)))",
            f"a metric's field {_NOT_FOUND}",
        ),
        (
            "!has(self.anomalies) || self.anomalies.all(x, !has(x.aggregation) || !has(x.metric) ||"
            " self.aggregations.exists(a, a.name == x.aggregation && a.metrics.exists(m, m.name == x.metric)))",
            "an anomaly rule names an aggregation or metric that is not there; `tidemill validate FILE` names it",
        ),
        (
            f"!has(self.anomalies) || [{_NAMES}].all(names, self.anomalies.all(x, (!has(x.field) || x.field in names)"
            " && (!has(x.groupBy) || x.groupBy.all(g, g in names))))",
            f"an anomaly rule's field or groupBy column {_NOT_FOUND}",
        ),
        (
            "!has(self.source.topic) || !has(self.source.topic.partitions) || !has(self.processor) ||"
            " (has(self.processor.scaling) ? ((!has(self.processor.scaling.maxReplicas) ||"
            " self.processor.scaling.maxReplicas <= self.source.topic.partitions) &&"
            " (!has(self.processor.scaling.minReplicas) ||"
            " self.processor.scaling.minReplicas <= self.source.topic.partitions)) : (!has(self.processor.replicas) ||"
            " self.processor.replicas <= self.source.topic.partitions))",
            "more replicas than source.topic.partitions; a replica without a partition idles",
        ),
    ),
    "spec.source": (
        ("!has(self.key) || self.fields.exists(f, f.name == self.key)", "key is not in fields"),
        (
            "!has(self.eventTime) || !has(self.eventTime.field) ||"
            " self.fields.exists(f, f.name == self.eventTime.field && f.type == 'timestamp')",
            "eventTime.field must be one of fields, with type timestamp",
        ),
    ),
    "spec.source.fields[]": (_NOT_RESERVED,),
    "spec.transform.derive[]": (_NOT_RESERVED,),
    "spec.aggregations[]": (
        (
            "!has(self.groupBy) || self.metrics.all(m, !(m.name in self.groupBy))",
            "a metric is named like a group column; rename the metric",
        ),
        (
            f"!has(self.groupBy) || !self.groupBy.exists(g, g in {_SYSTEM_COLUMNS})",
            f"a group column cannot be called {', '.join(SYSTEM_COLUMNS)}: every table of Postgres has these already;"
            " derive it under another name",
        ),
    ),
    "spec.aggregations[].window": (
        (
            "self.type == 'session' || (has(self.size) && !has(self.gap) && !has(self.maxLength))",
            "a tumbling or hopping window needs size, and takes neither gap nor maxLength",
        ),
        ("has(self.hop) == (self.type == 'hopping')", "hop belongs to hopping windows, and they need it"),
        (
            "self.type != 'session' || (has(self.gap) && !has(self.size))",
            "a session window needs gap, and takes no size",
        ),
    ),
    "spec.aggregations[].metrics[]": (
        _NOT_RESERVED,
        ("self.function == 'count' || has(self.field)", "every function but count needs a field"),
        ("has(self.q) == (self.function == 'quantile')", "q belongs to quantile, and quantile needs it"),
        ("!has(self.k) || self.function == 'topk'", "k belongs to topk; take it out, or use that function"),
    ),
    "spec.anomalies[]": (
        ("has(self.metric) != has(self.field)", "an anomaly rule watches either a metric or a field"),
        (
            "has(self.metric) == has(self.aggregation)",
            "aggregation belongs to metric, and metric needs it; a field takes groupBy",
        ),
        (
            "!has(self.groupBy) || size(self.groupBy) == 0 || has(self.field)",
            "groupBy belongs to field; windows have their aggregation's groups",
        ),
    ),
    "spec.anomalies[].detector": (
        ("!has(self.weight) || self.type == 'ewma'", "weight belongs to ewma; take it out, or use that type"),
        ("!has(self.span) || self.type == 'mad'", "span belongs to mad; take it out, or use that type"),
        (
            "!has(self.period) || self.type == 'seasonal'",
            "period belongs to seasonal; take it out, or use that type",
        ),
    ),
    "spec.processor": (
        (
            "!has(self.scaling) || !has(oldSelf.scaling) || self.replicas == oldSelf.replicas",
            "replicas cannot change while scaling is set; change scaling, or take it out first",
        ),
    ),
    "spec.processor.scaling": (
        (
            "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "minReplicas must not be more than maxReplicas",
        ),
        (
            "!has(self.minReplicas) || self.minReplicas > 0 || has(self.scaleToZeroAfter) || self.mode == 'external'",
            "minReplicas 0 needs scaleToZeroAfter",
        ),
    ),
}

_CONDITION = '.status.conditions[?(@.type=="{}")].status'
COLUMNS: tuple[tuple[str, str, str, int, str], ...] = (
    ("READY", "string", _CONDITION.format("Ready"), 0, "Whether the pipeline works as specified."),
    ("LAG", "integer", ".status.lag", 0, "Events in the topic that are not counted yet, to two digits."),
    ("REPLICAS", "integer", ".status.replicas", 0, "Processors that run."),
    (
        "FRESHNESS",
        "string",
        ".status.freshness",
        0,
        "From an event's arrival to the commit that counts it, rounded up; blank while nothing arrives.",
    ),
    ("AGE", "date", ".metadata.creationTimestamp", 0, "Time since it was made."),
    ("PAUSED", "string", _CONDITION.format("ReconciliationPaused"), 1, "Whether reconciliation is paused."),
    ("TOPICS", "string", _CONDITION.format("TopicsReady"), 1, "Whether the topics are as specified."),
    ("API", "string", _CONDITION.format("APIReady"), 1, "Whether queries are served."),
)


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as a document."""
    spec = structural(PipelineSpec)
    # With replicas unset the scale subresource fails, and nested defaults apply only where the parent is there.
    spec["properties"]["processor"]["default"] = {}
    schema: dict[str, Any] = {
        "type": "object",
        "description": "A real-time analytics pipeline: events in, windowed aggregates and anomalies out.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": STATUS,
        },
    }
    for place, rules in RULES.items():
        target = _find(schema, place)
        target["x-kubernetes-validations"] = [{"rule": rule, "message": message} for rule, message in rules]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT],
                "categories": ["tidemill"],
            },
            "scope": "Namespaced",
            "versions": [_version(schema)],
        },
    }


def _version(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "priority": priority, "description": description}
            for name, kind, path, priority, description in COLUMNS
        ],
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.processor.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "schema": {"openAPIV3Schema": schema},
    }


def _find(schema: dict[str, Any], place: str) -> dict[str, Any]:
    for step in place.split(".") if place else []:
        schema = schema["properties"][step.removesuffix("[]")]
        if step.endswith("[]"):
            schema = schema["items"]
    return schema


class _Dumper(yaml.SafeDumper):
    """No aliases: equal parts are written out each time."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always."""
        return True


def render() -> str:
    """The definition as YAML; the same text each time."""
    text = yaml.dump(definition(), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    return f"# Generated by `python -m tidemill_operator.crd`; do not edit.\n{text}"


def main(_arguments: Sequence[str] = ()) -> int:
    """Print the definition."""
    sys.stdout.write(render())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
