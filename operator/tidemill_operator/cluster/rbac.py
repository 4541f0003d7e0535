"""The rights that the operator needs, no verb more. The chart's roles grant them; the tests run with these alone."""

from __future__ import annotations

from typing import Any

from tidemill_operator.actuators.kubernetes.api import WEBHOOKS
from tidemill_operator.resource.crd import GROUP, PLURAL

Rule = dict[str, Any]
# PATCH is how things are applied, and needs `create` where there is nothing yet; PUT takes out what others put in.
_CHILD = ["get", "list", "watch", "create", "patch", "update", "delete"]


def _rule(group: str, resources: list[str], verbs: list[str], *, names: list[str] | None = None) -> Rule:
    rule: Rule = {"apiGroups": [group], "resources": resources, "verbs": verbs}
    return rule | ({"resourceNames": names} if names else {})


def pipeline_rules() -> list[Rule]:
    """In every namespace with pipelines: of a ClusterRole, or of a Role in each watched namespace."""
    return [
        _rule(GROUP, [PLURAL], ["get", "list", "watch", "patch"]),
        _rule(GROUP, [f"{PLURAL}/status"], ["patch"]),
        _rule("apps", ["deployments"], _CHILD),
        _rule("", ["configmaps", "services", "serviceaccounts"], _CHILD),
        _rule("policy", ["poddisruptionbudgets"], _CHILD),
        _rule("networking.k8s.io", ["networkpolicies", "ingresses"], _CHILD),
        # Looked at by name: nothing of others can be listed.
        _rule("", ["secrets"], ["get", "create", "patch", "update", "delete"]),
        # Whether a pipeline's last pods have ended, and to have changed files shown to pods at once.
        _rule("", ["pods"], ["list", "patch"]),
        _rule("", ["events"], ["create"]),
    ]


def home_rules(*, lease: str, webhook_secret: str) -> list[Rule]:
    """In the operator's own namespace."""
    return [
        _rule("coordination.k8s.io", ["leases"], ["create"]),
        _rule("coordination.k8s.io", ["leases"], ["get", "update"], names=[lease]),
        _rule("", ["secrets"], ["create"]),
        _rule("", ["secrets"], ["get", "patch"], names=[webhook_secret]),
        # The watchdog's object.
        _rule("", ["configmaps"], ["create", "patch"]),
    ]


def webhook_rules(configuration: str) -> list[Rule]:
    """Of a ClusterRole, where the webhook is served."""
    resources = [kind.plural for kind in WEBHOOKS]
    return [_rule("admissionregistration.k8s.io", resources, ["get", "update"], names=[configuration])]
