"""What docs/DEPLOYMENT.md tells people to type in a cluster, typed as it stands there, in a namespace of its own."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from documented import ROOT, commands

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]

PAGE = ROOT / "docs" / "DEPLOYMENT.md"
EXAMPLE = "crds/examples/flights.yaml"


def test_a_pipeline_is_made_asked_for_and_its_passwords_rotated(
    world: Any, tmp_path: Any, eventually: Callable[..., Any]
) -> None:
    """`kubectl create namespace`, `apply`, `get`, the first API key, `annotate` and `wait`."""
    namespace = world.new_namespace("documented")
    world.kubectl("delete", "namespace", namespace)
    file = tmp_path / "flights.yaml"
    file.write_text((ROOT / EXAMPLE).read_text().replace("namespace: analytics", f"namespace: {namespace}"))
    kubectl = shlex.join(world.kubectl._command)

    def type_in(beginning: str) -> str:
        (command,) = [command for command in commands(PAGE) if command.startswith(beginning)]
        command = command.replace(EXAMPLE, str(file)).replace("analytics", namespace)
        command = command.replace(f"{namespace}pipelines", "analyticspipelines")
        script = f'set -euo pipefail; kubectl() {{ {kubectl} "$@"; }}; {command}'
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=960)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    type_in("kubectl create namespace analytics")
    type_in("kubectl apply -f crds/examples/flights.yaml")
    world.kubectl("wait", "apl", "flights", "--namespace", namespace, "--for=condition=Ready", "--timeout=300s")
    assert f"{namespace} " in type_in("kubectl get analyticspipelines --all-namespaces")
    assert type_in("kubectl get secret flights-credentials").startswith("tm_")
    type_in("kubectl annotate apl flights")
    type_in("kubectl wait apl flights")
    rotated = eventually(lambda: world.get("apl", "flights", namespace)["status"]["credentials"], what="it is told")
    assert rotated["phase"] == "Complete"
