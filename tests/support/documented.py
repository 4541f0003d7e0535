"""Commands and blocks of code of documentation pages, as a reader would copy them."""

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
        language: the language of a fenced block, or empty for an indented block, which has commands.
    """

    page: Path
    language: str
    text: str

    def commands(self) -> list[str]:
        """Return the commands, each with its continued lines and its here-document."""
        commands: list[str] = []
        here_end, continued = "", False
        for line in self.text.splitlines():
            if here_end or continued:
                commands[-1] += f"\n{line}"
                here_end = "" if here_end and line == here_end else here_end
            elif line.strip():
                commands.append(line)
                here = re.search(r"<<'?(\w+)'?", line)
                here_end = here[1] if here else ""
            continued = not here_end and line.endswith("\\")
        return commands


def blocks(page: Path) -> Iterator[Block]:
    """Return the blocks of code of a page, in order."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    indented = re.compile(r"(?:(?<=\n\n)|\A)((?: {4}.*\n+)+)")
    text = page.read_text() + "\n"
    matches = [(m.start(), m[1], m[2]) for m in fenced.finditer(text)]
    without_fenced = fenced.sub(lambda m: re.sub(r"[^\n]", "#", m[0]), text)
    matches += [(m.start(), "", textwrap.dedent(m[1])) for m in indented.finditer(without_fenced)]
    for _, language, code in sorted(matches):
        yield Block(page, language, code.rstrip("\n") + "\n")


def commands(page: Path) -> list[str]:
    """Return all commands of a page."""
    return [command for block in blocks(page) if not block.language for command in block.commands()]


@dataclass
class ClusterPage:
    """Runs the commands of docs/DEPLOYMENT.md, with its example in another namespace.

    Attributes:
        file: the file for the example with this namespace.
        outputs: the output of each command, by the beginning of the command.
    """

    kubectl: Kubectl
    namespace: str
    file: Path
    outputs: dict[str, str] = field(default_factory=dict)

    def begin(self) -> None:
        """Create the pipeline, list it, and request new passwords. Later calls do nothing."""
        if self.outputs:
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
        """Run the one command of the page with this beginning."""
        (command,) = [command for command in commands(_DEPLOYMENT) if command.startswith(beginning)]
        command = command.replace(_EXAMPLE, str(self.file)).replace("analytics", self.namespace)
        command = command.replace(f"{self.namespace}pipelines", "analyticspipelines")
        script = f'set -euo pipefail; kubectl() {{ {shlex.join(self.kubectl._command)} "$@"; }}; {command}'
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=960, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        self.outputs[beginning] = done.stdout
