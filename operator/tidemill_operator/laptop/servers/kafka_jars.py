"""Finds the broker's jars in KAFKA_HOME, in an installation on the PATH, or in Maven Central."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tidemill_operator.laptop.servers.errors import ServerError
from tidemill_operator.laptop.servers.server import Progress
from tidemill_operator.processes.files import locked

KAFKA_VERSION = "4.1.0"
_POM = Path(__file__).with_name("kafka-pom.xml")
FETCH_SECONDS = 600.0


def find_java(environ: Mapping[str, str]) -> str:
    """Return the path of the Java launcher.

    Raises:
        ServerError: Java is not on the PATH.
    """
    home = environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").exists():
        return str(Path(home) / "bin" / "java")
    java = shutil.which("java", path=environ.get("PATH"))
    if java is None:
        raise ServerError(
            "Kafka needs Java 17 or later, and no Java is on the PATH: install openjdk-17-jre-headless, "
            "or set TIDEMILL_KAFKA_BROKERS"
        )
    return java


def find_jars(environ: Mapping[str, str] = os.environ, on_progress: Progress | None = None) -> Path:
    """Return the folder of the broker's jars, which are downloaded if necessary.

    Raises:
        ServerError: the jars are missing and cannot be downloaded.
    """
    home = environ.get("KAFKA_HOME")
    if home:
        libs = Path(home) / "libs"
        if not libs.is_dir():
            raise ServerError(
                f"KAFKA_HOME={home} has no libs folder: set KAFKA_HOME to an unpacked Kafka, or unset KAFKA_HOME"
            )
        return libs
    script = shutil.which("kafka-server-start.sh", path=environ.get("PATH"))
    if script and (libs := Path(script).resolve().parent.parent / "libs").is_dir():
        return libs
    libs = cache_folder(environ) / f"kafka-{KAFKA_VERSION}"
    what = f"Kafka {KAFKA_VERSION} from Maven Central (once, about 45 MB)"
    return ensure_jars(libs, _POM, what=what, environ=environ, on_progress=on_progress)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder that keeps downloads of this user."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidemill"


def ensure_jars(libs: Path, pom: Path, *, what: str, environ: Mapping[str, str], on_progress: Progress | None) -> Path:
    """Return the cached folder `libs`. If the folder is missing, download the jars first.

    Raises:
        ServerError: the jars cannot be downloaded.
    """
    if not libs.is_dir():
        with locked(libs.with_name(libs.name + ".lock"), wait_seconds=FETCH_SECONDS):
            if not libs.is_dir():
                _fetch(libs, pom, what, environ, on_progress)
    return libs


def _fetch(libs: Path, pom: Path, what: str, environ: Mapping[str, str], on_progress: Progress | None) -> None:
    if on_progress:
        on_progress(f"fetching {what}")
    partial = libs.with_name(libs.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copy(pom, partial / "pom.xml")
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
    options = ["-f", str(partial / "pom.xml"), f"-Dkafka.version={KAFKA_VERSION}"]
    run_maven([*options, goal, f"-DoutputDirectory={partial}", "-DincludeScope=runtime"], environ)
    partial.rename(libs)


def run_maven(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Run Maven.

    Raises:
        ServerError: the program `mvn` is missing, fails, or does not end in time.
    """
    maven = shutil.which("mvn", path=environ.get("PATH"))
    if maven is None:
        raise ServerError(
            "Kafka's jars are fetched with Maven, but mvn is not on the PATH: install maven, "
            "or set KAFKA_HOME or TIDEMILL_KAFKA_BROKERS"
        )
    try:
        result = subprocess.run(
            [maven, "-B", "-q", *arguments],
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
            env=dict(environ),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ServerError(
            f"Maven did not fetch Kafka's jars within {FETCH_SECONDS:.0f} s: check the repository"
        ) from None
    if result.returncode != 0:
        output = (result.stdout + result.stderr)[-2000:]
        raise ServerError(f"fetching Kafka's jars failed (is the Maven repository reachable?):\n{output}")
