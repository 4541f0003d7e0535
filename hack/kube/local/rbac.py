"""Manifests that grant read rights to a program of the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LABELS = {"app.kubernetes.io/managed-by": "tidemill"}
_GROUP = "rbac.authorization.k8s.io"


def may_watch(user: str, resources: Mapping[str, Sequence[str]], *, verbs: Sequence[str]) -> list[dict[str, object]]:
    """Return a ClusterRole and its binding to one user.

    Args:
        user: The user's name, which both manifests also have.
        resources: The resources by API group.
        verbs: The verbs that the user may use on these resources, in every namespace.
    """
    rules = [
        {"apiGroups": [group], "resources": list(names), "verbs": list(verbs)} for group, names in resources.items()
    ]
    metadata = {"name": user, "labels": LABELS}
    role: dict[str, object] = {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "ClusterRole",
        "metadata": metadata,
        "rules": rules,
    }
    binding: dict[str, object] = {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": _GROUP, "kind": "ClusterRole", "name": user},
        "subjects": [{"apiGroup": _GROUP, "kind": "User", "name": user}],
    }
    return [role, binding]
