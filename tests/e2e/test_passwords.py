"""Test of the commands in docs/DEPLOYMENT.md that rotate passwords.

The former logins are retired two minutes after the start of the new logins. `test_documented.py` requests the rotation,
so that the tests of the examples run during these minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]


def test_the_documented_commands_rotate_the_passwords_of_a_pipeline(
    world: Any, page: Any, eventually: Callable[..., Any]
) -> None:
    """The commands are `kubectl annotate` and `kubectl wait`."""
    page.begin()
    page.type_in("kubectl wait apl flights")
    rotated = eventually(
        lambda: world.get("apl", "flights", page.namespace)["status"]["credentials"], what="the status has the rotation"
    )
    assert rotated["phase"] == "Complete"
    world.begin_to_delete_namespaces([page.namespace])
