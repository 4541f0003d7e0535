"""Runs in an image's build stage: installs hashed requirements into a folder, then compiles them.

If there are wheels beside this file, only these wheels are used; otherwise, the package index is used. Packages of an
earlier layer (`--without`) are left out, because all locks have the same versions.
"""

from __future__ import annotations

import argparse
import compileall
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from py_compile import PycInvalidationMode

BUILD = Path(__file__).resolve().parent


def read_blocks(path: Path) -> dict[str, list[str]]:
    """Return the lines of each requirement `name==version`, including its hashes."""
    blocks: dict[str, list[str]] = {}
    current: list[str] = []
    for line in path.read_text().splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            current = blocks.setdefault(line.rstrip(" \\"), [])
        if line and not line.startswith("#"):
            current.append(line)
    return blocks


def find_uv(wheels: list[Path], folder: Path) -> list[str]:
    """Return the command of uv, from its wheel, or installed from the package index by its hash."""
    for wheel in wheels:
        if wheel.name.startswith("uv-"):
            with zipfile.ZipFile(wheel) as files:
                files.extractall(folder)
            program = next(folder.glob("uv-*.data/scripts/uv"))
            program.chmod(0o755)
            return [str(program)]
    bootstrap = ["--quiet", "--no-cache-dir", "--require-hashes", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *bootstrap, "-r", str(BUILD / "bootstrap.txt")], check=True)
    return [str(folder / "bin" / "uv")]


def main() -> int:
    """Run the program, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("requirements", type=Path, nargs="+")
    parser.add_argument("--without", type=Path, help="requirements of an earlier layer")
    arguments = parser.parse_args()
    blocks = {name: lines for path in arguments.requirements for name, lines in read_blocks(path).items()}
    for present in read_blocks(arguments.without) if arguments.without else ():
        blocks.pop(present, None)
    wheels = sorted(BUILD.glob("*.whl"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = folder / "wanted.txt"
        wanted.write_text("\n".join(line for block in blocks.values() for line in block) + "\n")
        command = [*find_uv(wheels, folder), "pip", "install", "--no-cache", "--no-deps", "--require-hashes"]
        command += ["--python", sys.executable, "--target", str(arguments.target), "-r", str(wanted)]
        if wheels:
            command += ["--no-index", "--find-links", str(BUILD)]
        subprocess.run(command, check=True)
    shutil.rmtree(arguments.target / "bin", ignore_errors=True)
    # Containers have a read-only root file system, so modules without bytecode would be compiled at each start.
    compileall.compile_dir(str(arguments.target), quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
