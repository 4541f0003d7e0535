"""Test of the commands for a cluster in docs/DEPLOYMENT.md, in a separate namespace."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]


def test_the_documented_commands_create_a_pipeline_and_show_its_api_key(page: Any) -> None:
    """The commands are `kubectl create namespace`, `apply`, `get` and `annotate`.

    `annotate` requests the rotation of passwords that test_passwords.py checks.
    """
    page.begin()
    assert f"{page.namespace} " in page.outputs["kubectl get analyticspipelines --all-namespaces"]
    assert page.outputs["kubectl get secret flights-credentials"].startswith("tm_")
