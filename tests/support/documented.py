"""The commands and files that pages show, as a reader would copy them."""

from __future__ import annotations

import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from demo.cluster import Kubectl

ROOT = Path(__file__).resolve().parents[2]
_DEPLOYMENT, _EXAMPLE = ROOT / "docs" / "DEPLOYMENT.md", "crds/examples/flights.yaml"


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: of a fenced one; empty: it is indented, as commands are.
    """

    page: Path
    language: str
    text: str

    def commands(self) -> list[str]:
        """Its commands, each with its continued lines and its here-document."""
        found: list[str] = []
        until, going_on = "", False
        for line in self.text.splitlines():
            if until or going_on:
                found[-1] += f"\n{line}"
                until = "" if until and line == until else until
            elif line.strip():
                found.append(line)
                here = re.search(r"<<'?(\w+)'?", line)
                until = here[1] if here else ""
            going_on = not until and line.endswith("\\")
        return found


def blocks(page: Path) -> Iterator[Block]:
    """All of a page, in their order."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    indented = re.compile(r"(?:(?<=\n\n)|\A)((?: {4}.*\n+)+)")
    text = page.read_text() + "\n"
    found = [(m.start(), m[1], m[2]) for m in fenced.finditer(text)]
    bare = fenced.sub(lambda m: re.sub(r"[^\n]", "#", m[0]), text)
    found += [(m.start(), "", textwrap.dedent(m[1])) for m in indented.finditer(bare)]
    for _, language, code in sorted(found):
        yield Block(page, language, code.rstrip("\n") + "\n")


def commands(page: Path) -> list[str]:
    """Every command of a page."""
    return [command for block in blocks(page) if not block.language for command in block.commands()]


@dataclass
class ClusterPage:
    """What docs/DEPLOYMENT.md tells people to type, typed for its example in a namespace of its own.

    Attributes:
        file: where the example of this namespace is written.
        told: what the commands have printed, by how they begin.
    """

    kubectl: Kubectl
    namespace: str
    file: Path
    told: dict[str, str] = field(default_factory=dict)

    def begin(self) -> None:
        """Make the pipeline, ask for it, and ask for other passwords; once."""
        if self.told:
            return
        text = (ROOT / _EXAMPLE).read_text()
        self.file.write_text(text.replace("namespace: analytics", f"namespace: {self.namespace}"))
        self.kubectl("delete", "namespace", self.namespace)
        self.type_in("kubectl create namespace analytics")
        self.type_in(f"kubectl apply -f {_EXAMPLE}")
        ready = ("--for=condition=Ready", "--timeout=300s")
        self.kubectl("wait", "apl", "flights", "--namespace", self.namespace, *ready)
        self.type_in("kubectl get analyticspipelines --all-namespaces")
        self.type_in("kubectl get secret flights-credentials")
        self.type_in("kubectl annotate apl flights")

    def type_in(self, beginning: str) -> None:
        """Type the one command of the page that begins so."""
        (command,) = [command for command in commands(_DEPLOYMENT) if command.startswith(beginning)]
        command = command.replace(_EXAMPLE, str(self.file)).replace("analytics", self.namespace)
        command = command.replace(f"{self.namespace}pipelines", "analyticspipelines")
        script = f'set -euo pipefail; kubectl() {{ {shlex.join(self.kubectl._command)} "$@"; }}; {command}'
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=960, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        self.told[beginning] = done.stdout
