"""What docs/DEPLOYMENT.md tells people to type in a cluster, typed as it stands there, in a namespace of its own."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]


def test_a_pipeline_is_made_and_asked_for(page: Any) -> None:
    """`kubectl create namespace`, `apply`, `get`, the first API key; `annotate`, for test_passwords.py."""
    page.begin()
    assert f"{page.namespace} " in page.told["kubectl get analyticspipelines --all-namespaces"]
    assert page.told["kubectl get secret flights-credentials"].startswith("tm_")
