"""Writes the hashed requirement files: for development, for benchmarks, and next to each distribution for its image.

Locked versions are kept; `--upgrade` takes the newest compatible ones. The files have no addresses of indexes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "hack" / "requirements"
DISTRIBUTIONS = (
    "workloads/contract",
    "workloads/chassis",
    "workloads/ingest",
    "workloads/processor",
    "workloads/api",
    "operator",
)
BACKEND = "hatchling>=1.27"


def third_party(folder: str) -> list[str]:
    """Return a distribution's requirements from other projects, including those of its siblings here."""
    needs: list[str] = []
    for requirement in tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["dependencies"]:
        if requirement.startswith("tidemill-"):
            sibling = "workloads/" + requirement.removeprefix("tidemill-")
            needs += third_party(sibling)
        else:
            needs.append(requirement)
    return sorted(set(needs))


def compile_lock(needs: list[str], output: Path, *, constraints: list[Path], upgrade: bool) -> None:
    """Resolve requirements into a file with hashes.

    Raises:
        subprocess.CalledProcessError: they do not fit together; uv has said why.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes"]
    command += ["--python-version", "3.11", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate"]
    command += ["--custom-compile-command", "make lock", "--output-file", str(output.relative_to(ROOT))]
    for path in constraints:
        command += ["--constraints", str(path.relative_to(ROOT))]
    if upgrade:
        command.append("--upgrade")
    text = "\n".join([*needs, ""])
    # A lock has no address of an index: the settings of pip and uv decide where files come from.
    subprocess.run([*command, "-"], input=text, text=True, check=True, cwd=ROOT)


def main() -> int:
    """Run the program, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--upgrade", action="store_true", help="take the newest compatible versions")
    upgrade = parser.parse_args().upgrade
    tools = (REQUIREMENTS / "dev.in").read_text().splitlines()
    imported = {need for folder in DISTRIBUTIONS for need in third_party(folder)}
    development = REQUIREMENTS / "dev.txt"
    compile_lock([*tools, BACKEND, *sorted(imported)], development, constraints=[], upgrade=upgrade)
    for name in ("peers", "pyflink"):
        needs = (REQUIREMENTS / f"{name}.in").read_text().splitlines()
        compile_lock(needs, REQUIREMENTS / f"{name}.txt", constraints=[], upgrade=upgrade)
    for folder in DISTRIBUTIONS:
        compile_lock(
            third_party(folder), ROOT / folder / "requirements.txt", constraints=[development], upgrade=upgrade
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
