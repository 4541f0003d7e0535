"""Tests of the removal of the operator's own objects, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_operator.cluster.removal.uninstall import Installation, remove_operator_objects

NAMES = {"TIDEMILL_LEASE_NAME": "tidemill", "TIDEMILL_WEBHOOK_SECRET": "tidemill-webhook"}
HOME = {"TIDEMILL_OPERATOR_NAMESPACE": "home", "TIDEMILL_OPERATOR_DEPLOYMENT": "tidemill"}


class Api:
    """An API that records deletions."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    def delete(self, kind: Any, namespace: str, name: str) -> bool:
        self.deleted.append(f"{kind.kind} {namespace}/{name}")
        return True


INSTALLATIONS: list[tuple[dict[str, str], list[str], str]] = [
    (
        {**HOME, **NAMES},
        ["Lease home/tidemill", "Secret home/tidemill-webhook", "ConfigMap home/tidemill-watchdog"],
        "all namespaces",
    ),
    (
        {**HOME, **NAMES, "TIDEMILL_WATCH_NAMESPACES": "shop,bank"},
        ["Lease home/tidemill", "Secret home/tidemill-webhook", "ConfigMap shop/tidemill-watchdog"],
        "the canary is in the watched namespaces",
    ),
    (HOME, ["ConfigMap home/tidemill-watchdog"], "without a webhook and a lease"),
]


@pytest.mark.parametrize(("environ", "deleted", "case"), INSTALLATIONS, ids=[case for *_, case in INSTALLATIONS])
def test_the_operators_own_objects_are_deleted(environ: dict[str, str], deleted: list[str], case: str) -> None:
    api: Any = Api()
    remove_operator_objects(api, Installation.from_env(environ))
    assert api.deleted == deleted, case
