"""Writes the requirement files with hashes for development, for benchmarks, and for the image of each distribution.

Locked versions are kept. With `--upgrade`, the newest compatible versions are chosen. The files name no package index.
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
    """Return the third-party requirements of a distribution, and of the distributions here that it needs."""
    needs: list[str] = []
    for requirement in tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["dependencies"]:
        if requirement.startswith("tidemill-"):
            sibling = "workloads/" + requirement.removeprefix("tidemill-")
            needs += third_party(sibling)
        else:
            needs.append(requirement)
    return sorted(set(needs))


def compile_lock(needs: list[str], output: Path, *, constraints: list[Path], upgrade: bool) -> None:
    """Resolve requirements, and write the versions with hashes into a file.

    Raises:
        subprocess.CalledProcessError: The requirements conflict. uv has printed the reason.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes"]
    command += ["--python-version", "3.11", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate"]
    command += ["--custom-compile-command", "make lock", "--output-file", str(output.relative_to(ROOT))]
    for path in constraints:
        command += ["--constraints", str(path.relative_to(ROOT))]
    if upgrade:
        command.append("--upgrade")
    text = "\n".join([*needs, ""])
    # The files name no package index, so that the settings of pip and uv choose the index.
    subprocess.run([*command, "-"], input=text, text=True, check=True, cwd=ROOT)


def main() -> int:
    """Run the program, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--upgrade", action="store_true", help="choose the newest compatible versions")
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
