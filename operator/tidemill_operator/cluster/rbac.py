"""The minimal permissions of the operator, as the chart's roles grant them."""

from __future__ import annotations

from typing import Any

from tidemill_operator.actuators.kubernetes.api import KAFKA_CONNECTOR, WEBHOOKS
from tidemill_operator.resource.crd import GROUP, PLURAL

Rule = dict[str, Any]
# Server-side apply of a new object needs `create` and `patch`. `update` allows PUT requests.
# The operator uses PUT to remove fields that other managers have added.
_CHILD = ["get", "list", "watch", "create", "patch", "update", "delete"]


def _rule(group: str, resources: list[str], verbs: list[str], *, names: list[str] | None = None) -> Rule:
    rule: Rule = {"apiGroups": [group], "resources": resources, "verbs": verbs}
    return rule | ({"resourceNames": names} if names else {})


def pipeline_rules() -> list[Rule]:
    """Return the rules for namespaces with pipelines."""
    return [
        _rule(GROUP, [PLURAL], ["get", "list", "watch", "patch"]),
        _rule(GROUP, [f"{PLURAL}/status"], ["patch"]),
        _rule("apps", ["deployments"], _CHILD),
        _rule("", ["configmaps", "services", "serviceaccounts"], _CHILD),
        _rule("policy", ["poddisruptionbudgets"], _CHILD),
        _rule("networking.k8s.io", ["networkpolicies", "ingresses"], _CHILD),
        # The operator reads Secrets by name only, so it needs neither `list` nor `watch`.
        _rule("", ["secrets"], ["get", "create", "patch", "update", "delete"]),
        # With `list`, the operator sees whether a pipeline's last pods have ended. With `patch`, the operator changes
        # an annotation, so that nodes update the pods' mounted files at once.
        _rule("", ["pods"], ["list", "patch"]),
        _rule("", ["events"], ["create"]),
    ]


def home_rules(*, lease: str, webhook_secret: str) -> list[Rule]:
    """Return the rules for the namespace in which the operator runs."""
    return [
        _rule("coordination.k8s.io", ["leases"], ["create"]),
        _rule("coordination.k8s.io", ["leases"], ["get", "update"], names=[lease]),
        _rule("", ["secrets"], ["create"]),
        _rule("", ["secrets"], ["get", "patch"], names=[webhook_secret]),
        # the watchdog writes its canary object
        _rule("", ["configmaps"], ["create", "patch"]),
    ]


def webhook_rules(configuration: str) -> list[Rule]:
    """Return the rules of the webhook's ClusterRole."""
    resources = [kind.plural for kind in WEBHOOKS]
    return [_rule("admissionregistration.k8s.io", resources, ["get", "update"], names=[configuration])]


def strimzi_rules() -> list[Rule]:
    """Return the rules for the namespace of Strimzi's `KafkaConnect`."""
    group = KAFKA_CONNECTOR.api_version.partition("/")[0]
    return [_rule(group, [KAFKA_CONNECTOR.plural], ["get", "list", "create", "patch", "update", "delete"])]
