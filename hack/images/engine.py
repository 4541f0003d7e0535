"""A client of a Docker engine, which is already running or runs only during a build."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from images.catalogue import CACHE, ROOT, Image
from images.packages import install_missing

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


class BuildError(RuntimeError):
    """An image cannot be built. The message contains the reason."""


class Engine:
    """Runs the Docker client against one engine.

    Args:
        host: The engine's address. If it is empty, the client uses its default address.
    """

    def __init__(self, host: str = "") -> None:
        self._environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}

    def answers(self) -> bool:
        """Return whether the engine answers."""
        if shutil.which("docker") is None:
            return False
        return self._run(["version", "--format", "{{.Server.Version}}"]).returncode == 0

    def has(self, reference: str) -> bool:
        """Return whether an image exists."""
        return self._run(["image", "inspect", reference]).returncode == 0

    def size_bytes(self, reference: str) -> int:
        """Return an image's size, including shared layers."""
        return int(self._must(["image", "inspect", "--format", "{{.Size}}", reference]))

    def import_tar(self, archive: Path, reference: str) -> None:
        """Create an image from the archive of a root file system."""
        environment = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8"
        self._must(["import", "--change", environment, str(archive), reference])

    def build(
        self, image: Image, reference: str, arguments: Mapping[str, str], log: Path, *, context: Path = ROOT
    ) -> None:
        """Build an image.

        Args:
            image: The image. Its Dockerfile is below the context.
            reference: The name and tag of the built image.
            arguments: The build arguments.
            log: The file for Docker's output.
            context: The folder that the build copies files from.

        Raises:
            BuildError: The build fails. The message contains the end of Docker's output.
        """
        command = ["build", "--network", "host", "--force-rm", "--tag", reference]
        command += ["--file", str(context / image.dockerfile)]
        for name, value in arguments.items():
            command += ["--build-arg", f"{name}={value}"]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            done = subprocess.run(
                ["docker", *command, str(context)], env=self._environment, stdout=output, stderr=output, check=False
            )
        if done.returncode != 0:
            raise BuildError(f"{reference}: docker build failed; the end of {log}:\n{log.read_text()[-3000:]}")

    def save(self, references: Sequence[str], archive: Path) -> None:
        """Write images into one archive, which contains shared layers once."""
        partial = archive.with_suffix(".partial")
        self._must(["save", "--output", str(partial), *references])
        partial.replace(archive)

    def forget_others(self, references: Sequence[str]) -> None:
        """Remove other tags of the same repositories, and untagged images that are older than a day."""
        names = {reference.rpartition(":")[0] for reference in references}
        listed = self._must(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).splitlines()
        former = [image for image in listed if image.rpartition(":")[0] in names and image not in references]
        if former:
            self._must(["image", "rm", "--no-prune", *former])
        self._must(["image", "prune", "--force", "--filter", "until=24h"])

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", *arguments], env=self._environment, capture_output=True, text=True, check=False
        )

    def _must(self, arguments: Sequence[str]) -> str:
        done = self._run(arguments)
        if done.returncode != 0:
            raise BuildError(f"docker {' '.join(arguments)} failed: {done.stderr.strip()[-2000:]}")
        return done.stdout.strip()


@contextlib.contextmanager
def own_engine() -> Iterator[Engine]:
    """Run an engine with a separate data folder while the block runs.

    The engine creates no network and no firewall rules, because builds use the host's network.

    Raises:
        BuildError: The engine does not start, or this program does not run as root.
    """
    if os.geteuid() != 0:
        raise BuildError("no Docker engine answers, and starting one needs root; start Docker, or run this as root")
    install_missing({"dockerd": "docker.io"})
    # Linux limits the path of a socket to 107 bytes, which a folder of the repository may exceed.
    run = Path(tempfile.mkdtemp(prefix="tidemill-docker-", dir="/run"))
    log = CACHE / "dockerd.log"
    CACHE.mkdir(parents=True, exist_ok=True)
    host = f"unix://{run}/docker.sock"
    command = ["dockerd", "--host", host, "--data-root", str(CACHE / "docker"), "--exec-root", str(run / "exec")]
    command += ["--pidfile", str(run / "docker.pid"), "--iptables=false", "--ip6tables=false", "--bridge=none"]
    command += ["--oom-score-adjust=0", "--log-level=warn"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    engine = Engine(host)
    try:
        _await_engine(engine, process, log)
        yield engine
    finally:
        _end(process)
        _unmount_below(run)
        shutil.rmtree(run)


def _await_engine(engine: Engine, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not engine.answers():
        if process.poll() is not None or time.monotonic() > deadline:
            raise BuildError(f"dockerd does not answer; the end of {log}:\n{log.read_text()[-3000:]}")
        time.sleep(0.2)


def _unmount_below(folder: Path) -> None:
    """Unmount what an engine leaves mounted, such as the namespace of the host's network."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", point], check=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
