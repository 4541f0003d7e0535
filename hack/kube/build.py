"""Builds the cluster's programs from the Go module proxy: one multi-call binary, helm, and the pause program.

    PYTHONPATH=hack .venv/bin/python -m kube.build

The first build takes about ten minutes on two cores, a build with a warm Go cache some seconds. If the sources are
unchanged, nothing is built.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kube import binaries
from tidemill_operator.processes.files import locked

_PROGRESS_SECONDS = 20.0
_LOCK_SECONDS = 3600.0
_VERSION_PACKAGE = "k8s.io/component-base/version"

Say = Callable[[str], None]


class BuildError(RuntimeError):
    """The programs cannot be built; the message says why."""


def build(*, force: bool = False, say: Say = print) -> Path:
    """Build the programs if they are missing or outdated.

    Returns:
        The folder with the programs.

    Raises:
        BuildError: Go is missing or too old, or the compiler fails.
    """
    with locked(binaries.CACHE / "build.lock", wait_seconds=_LOCK_SECONDS):
        folder = binaries.find()
        if folder is not None and not force:
            return folder
        go = find_go()
        binaries.FOLDER.mkdir(parents=True, exist_ok=True)
        version = binaries.kubernetes_version()
        major, minor, _ = version[1:].split(".", 2)
        stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
        flags = " ".join(f"-X {_VERSION_PACKAGE}.{name}={value}" for name, value in stamps.items())
        _compile(go, ".", binaries.MULTI_CALL, linker_flags=flags, say=say)
        _compile(go, "helm.sh/helm/v3/cmd/helm", binaries.HELM, say=say)
        _compile(go, "./pause", binaries.PAUSE, say=say)
        for name in binaries.LINKS:
            _link(binaries.FOLDER / name)
        binaries.stamp_file().write_text(binaries.fingerprint() + "\n")
        return binaries.FOLDER


def find_go() -> str:
    """Return the Go command.

    Raises:
        BuildError: There is no Go, or its version is older than go.mod requires.
    """
    needed = re.search(r"^go (\d+)\.(\d+)", (binaries.MODULE / "go.mod").read_text(), re.MULTILINE)
    if needed is None:
        raise BuildError(f"{binaries.MODULE / 'go.mod'} has no line `go X.Y`; add the required Go version")
    least = (int(needed[1]), int(needed[2]))
    remedy = (
        f"Kubernetes needs Go {least[0]}.{least[1]} or later (Debian 12's own package golang is too old):"
        " install a newer one below /usr/local/go or have it on the PATH, then run this again"
    )
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise BuildError(f"go is not on the PATH. {remedy}")
    go_version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout.strip()
    version = re.match(r"go(\d+)\.(\d+)", go_version)
    if version is None or (int(version[1]), int(version[2])) < least:
        raise BuildError(f"{go} is {go_version or 'of an unknown version'}. {remedy}")
    return go


def _compile(go: str, package: str, name: str, *, linker_flags: str = "", say: Say) -> None:
    target = binaries.FOLDER / name
    partial = target.with_name(f".{name}.partial")
    command = ["nice", "-n", "15", go, "build", "-v", "-trimpath", "-p", str(max(2, (os.cpu_count() or 2) - 2))]
    command += ["-ldflags", f"-s -w {linker_flags}".strip(), "-o", str(partial), package]
    say(f"building {name}")
    began = time.monotonic()
    _run(command, on_progress=lambda count: say(f"building {name}: {count} packages, {time.monotonic() - began:.0f} s"))
    partial.replace(target)  # A running program keeps using the replaced file.
    say(f"built {name} ({target.stat().st_size / 1e6:.0f} MB, {time.monotonic() - began:.0f} s)")


def _run(command: Sequence[str], *, on_progress: Callable[[int], None]) -> None:
    """Run `go build -v`, which prints a line for each package that it compiles or downloads."""
    process = subprocess.Popen(
        command,
        cwd=binaries.MODULE,
        env={**os.environ, "CGO_ENABLED": "0", "GOOS": "linux"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        while reader.is_alive():
            reader.join(_PROGRESS_SECONDS)
            if reader.is_alive():
                on_progress(sum("/" in line.partition(" ")[0] for line in lines))
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code != 0:
        output = "".join(line for line in lines if not re.fullmatch(r"\S+\n", line))
        raise BuildError(f"{' '.join(command)} failed:\n{output[-4000:]}")


def _link(link: Path) -> None:
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(binaries.MULTI_CALL)
    partial.replace(link)


def main() -> int:
    """Run the program, and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="kube.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="build even if the programs are up to date")
    arguments = parser.parse_args()
    try:
        folder = build(force=arguments.force, say=lambda text: print(text, flush=True))
    except BuildError as error:
        print(f"kube.build: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"the cluster's programs are in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
