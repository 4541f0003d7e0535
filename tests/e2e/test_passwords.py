"""The rotation of passwords that docs/DEPLOYMENT.md tells people to type.

The former logins are retired two minutes after the new ones are in force. `test_documented.py` has asked for it: these
minutes go by beside the examples' tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]


def test_the_passwords_of_a_pipeline_are_rotated(world: Any, page: Any, eventually: Callable[..., Any]) -> None:
    """`kubectl annotate` and `wait`."""
    page.begin()
    page.type_in("kubectl wait apl flights")
    rotated = eventually(
        lambda: world.get("apl", "flights", page.namespace)["status"]["credentials"], what="it is told"
    )
    assert rotated["phase"] == "Complete"
    world.drop_namespaces([page.namespace])
