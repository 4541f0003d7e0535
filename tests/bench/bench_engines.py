"""The engines beside Tidemill: how each is installed into `.cache/peers` (once) and started.

Each is told by the environment where to read (BROKER, IN, GROUP), where to write (OUT), where its state may be (STATE)
and what window to make (WINDOW_MS, GRACE_MS); it says `FIRST <its CPU seconds>` on its first record.
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
    """An engine cannot be had here; the text says why."""


@dataclass(frozen=True)
class Peer:
    """An engine that is ready to be started.

    Attributes:
        name: as options and tables have it.
        told: version and what is to be known of how it is set up.
        command: `{state}` stands for the folder of its state.
        following: what the command gets further when it is to follow a topic and to survive a kill.
        prepare: commands to run once on a new state folder before that.
        environment: when following; of Flink SQL for functions in Python, always.
    """

    name: str
    told: str
    command: tuple[str, ...]
    following: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    folder: Path = SOURCES

    def start(self, environment: dict[str, str], log: Path, *, follow: bool = False) -> subprocess.Popen[str]:
        """The engine as a process whose output has the mark; what it complains of goes to the log."""
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
    """Quix Streams, which is installed anyway."""
    return Peer(
        "quix",
        f"Quix Streams {version('quixstreams')}, RocksDB with changelogs, commits every 5 s (its default)",
        (sys.executable, str(SOURCES / "quix_window.py")),
    )


def bytewax() -> Peer:
    """Bytewax, in an environment of its own: it is held to older libraries.

    Raises:
        NotRun: it cannot be installed.
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
    """Kafka Streams.

    Raises:
        NotRun: it cannot be built.
    """
    java, classes = _built("kafka-streams")
    return Peer(
        "kafka-streams",
        "Kafka Streams 4.1.0, one thread, RocksDB with changelogs, at least once, commits every second",
        (java, "-Xmx2g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classes, "KafkaStreamsWindow"),
    )


def flink() -> Peer:
    """Flink, embedded.

    Raises:
        NotRun: it cannot be built.
    """
    java, classes = _built("flink")
    opened = [option for name in _OPENED for option in ("--add-opens", f"java.base/{name}=ALL-UNNAMED")]
    return Peer(
        "flink",
        "Flink 1.20.3, parallelism 1, state on the heap, at least once, checkpoints every 10 s",
        (java, "-Xmx2g", *opened, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classes, "FlinkWindow"),
    )


def flink_sql(*, functions: bool) -> Peer:
    """Flink SQL, embedded; with `functions`, an environment for functions in Python is installed too (1 GB).

    Raises:
        NotRun: it cannot be built.
    """
    java, classes = _built("flink-sql")
    opened = [option for name in _OPENED for option in ("--add-opens", f"java.base/{name}=ALL-UNNAMED")]
    environment: tuple[tuple[str, str], ...] = ()
    if functions:
        python = _environment("pyflink")
        (packages,) = python.parents[1].glob("lib/*/site-packages")
        # Flink follows the link to the interpreter, and so leaves the environment.
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
    """Java and the class path of an engine's program, compiled against jars from Maven Central."""
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
    """Python of an environment with the packages of a lock."""
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
        said = (done.stdout + done.stderr).strip().splitlines()
        raise NotRun(f"{command[0].rpartition('/')[2]} failed: {' '.join(said[-3:])[:300]}")
