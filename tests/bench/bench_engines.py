"""The engines beside Tidemill: their installation into `.cache/peers`, and their start.

The environment of an engine has the topic to read (BROKER, IN, GROUP), the topic to write (OUT), the folder of its
state (STATE) and the window (WINDOW_MS, GRACE_MS). On its first record, an engine prints `FIRST <its CPU seconds>`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tidemill_operator.laptop.servers import ServerError
from tidemill_operator.laptop.servers.kafka_jars import find_java

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).with_name("peers")
CACHE = ROOT / ".cache" / "peers"
_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_OPENED = ("java.lang", "java.util", "java.util.concurrent", "java.net", "java.nio", "java.time")


class NotRun(Exception):
    """An engine cannot be installed. The message has the reason."""


@dataclass(frozen=True)
class Peer:
    """An installed engine.

    Attributes:
        name: Name in options and tables.
        description: Version and settings.
        command: Command that starts the engine. `{state}` stands for the folder of its state.
        following: Additional arguments for an engine that follows a topic and is killed.
        prepare: Command that prepares a new state folder of such an engine.
        environment: Additional environment of such an engine. Flink SQL always gets it, for functions in Python.
        folder: Working directory of the commands.
    """

    name: str
    description: str
    command: tuple[str, ...]
    following: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    folder: Path = SOURCES

    def start(self, environment: dict[str, str], log: Path, *, follow: bool = False) -> subprocess.Popen[str]:
        """Start the engine as a process. The log gets its standard error."""
        state = Path(environment["STATE"])
        if follow and self.prepare and not state.exists():
            state.mkdir(parents=True)
            subprocess.run(self._filled(self.prepare, state), check=True, capture_output=True, cwd=self.folder)
        command = self.command + (self.following if follow else ())
        with log.open("ab") as file:
            return subprocess.Popen(
                self._filled(command, state), stdout=subprocess.PIPE, stderr=file, text=True, cwd=self.folder,
                env={**os.environ, **environment, **(dict(self.environment) if follow else {})},
            )  # fmt: skip

    @staticmethod
    def _filled(command: tuple[str, ...], state: Path) -> list[str]:
        return [part.replace("{state}", str(state)) for part in command]


def quix() -> Peer:
    """Return Quix Streams, which the development environment contains."""
    return Peer(
        "quix",
        f"Quix Streams {version('quixstreams')}, RocksDB with changelogs, commits every 5 s (its default)",
        (sys.executable, str(SOURCES / "quix_window.py")),
    )


def bytewax() -> Peer:
    """Install Bytewax in a separate environment, because it needs older libraries.

    Raises:
        NotRun: Bytewax cannot be installed.
    """
    python = _environment("peers")
    return Peer(
        "bytewax",
        "Bytewax 0.21.1, one worker; no recovery store when catching up, one with snapshots every 10 s when following",
        (str(python), "-m", "bytewax.run", "bytewax_window"),
        following=("-r", "{state}", "-s", "10", "-b", "0"),
        prepare=(str(python), "-m", "bytewax.recovery", "{state}", "1"),
        environment=(("TAIL", "1"),),
    )


def kafka_streams() -> Peer:
    """Build the program for Kafka Streams.

    Raises:
        NotRun: The program cannot be built.
    """
    java, classes = _built("kafka-streams")
    return Peer(
        "kafka-streams",
        "Kafka Streams 4.1.0, one thread, RocksDB with changelogs, at least once, commits every second",
        (java, "-Xmx2g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classes, "KafkaStreamsWindow"),
    )


def flink() -> Peer:
    """Build the program with an embedded Flink.

    Raises:
        NotRun: The program cannot be built.
    """
    java, classes = _built("flink")
    opened = [option for name in _OPENED for option in ("--add-opens", f"java.base/{name}=ALL-UNNAMED")]
    return Peer(
        "flink",
        "Flink 1.20.3, parallelism 1, state on the heap, at least once, checkpoints every 10 s",
        (java, "-Xmx2g", *opened, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classes, "FlinkWindow"),
    )


def flink_sql(*, functions: bool) -> Peer:
    """Build the program with an embedded Flink SQL.

    Args:
        functions: Whether to install an environment for functions in Python (1 GB).

    Raises:
        NotRun: The program cannot be built, or the environment cannot be installed.
    """
    java, classes = _built("flink-sql")
    opened = [option for name in _OPENED for option in ("--add-opens", f"java.base/{name}=ALL-UNNAMED")]
    environment: tuple[tuple[str, str], ...] = ()
    if functions:
        python = _environment("pyflink")
        (packages,) = python.parents[1].glob("lib/*/site-packages")
        # Flink resolves the link to the interpreter, and then does not find the packages of the environment.
        environment = (("PYTHON", str(python)), ("PYTHONPATH", f"{packages}:{SOURCES / 'flink-sql'}"))
    return Peer(
        "flink",
        "Flink SQL 1.20.3, parallelism 1, state on the heap, at least once, checkpoints every 10 s",
        (java, "-Xmx2g", *opened, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classes, "FlinkFormats"),
        environment=environment,
    )


PEERS: dict[str, Callable[[], Peer]] = {
    "quix": quix, "bytewax": bytewax, "kafka-streams": kafka_streams, "flink": flink,
}  # fmt: skip


def _built(name: str) -> tuple[str, str]:
    """Compile an engine's program with jars from Maven Central. Return the path of Java and the class path."""
    try:
        java = find_java(os.environ)
    except ServerError as error:
        raise NotRun(str(error)) from None
    missing = [tool for tool in ("mvn", "javac") if shutil.which(tool) is None]
    if missing:
        raise NotRun(f"{' and '.join(missing)} not on the PATH: install maven and openjdk-17-jdk-headless")
    pom, (program,) = SOURCES / name / "pom.xml", (SOURCES / name).glob("*.java")
    folder = CACHE / f"{name}-{_digest(pom, program)}"
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _run("mvn", "-B", "-q", "-f", str(pom), _DEPENDENCIES, f"-DoutputDirectory={partial / 'lib'}")
        _run("javac", "-d", str(partial / "classes"), "-cp", f"{partial / 'lib'}/*", str(program))
        partial.rename(folder)
    return java, f"{folder / 'classes'}:{folder / 'lib'}/*"


def _environment(locked: str) -> Path:
    """Install the packages of a lock into an environment, and return its interpreter."""
    lock = ROOT / "hack" / "requirements" / f"{locked}.txt"
    folder = CACHE / f"{locked}-{_digest(lock)}"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        uv = (sys.executable, "-m", "uv")
        _run(*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
        _run(*uv, "pip", "install", "--quiet", "--python", str(python), "--require-hashes", "-r", str(lock))
        (folder / "installed").touch()
    return python


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr).strip().splitlines()
        raise NotRun(f"{command[0].rpartition('/')[2]} failed: {' '.join(output[-3:])[:300]}")
