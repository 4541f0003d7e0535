"""Finds the broker's jars: in KAFKA_HOME, in an installation on the PATH, or in Maven Central (cached)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tidemill_operator.laptop.servers.errors import ServerError
from tidemill_operator.laptop.servers.server import Progress
from tidemill_operator.processes.files import locked

KAFKA_VERSION = "4.1.0"
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_POM = Path(__file__).with_name("kafka-pom.xml")
_FETCH_SECONDS = 600.0


def find_java(environ: Mapping[str, str]) -> str:
    """Return the path of the Java launcher.

    Raises:
        ServerError: Java is not on the PATH.
    """
    home = environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").exists():
        return str(Path(home) / "bin" / "java")
    found = shutil.which("java", path=environ.get("PATH"))
    if found is None:
        raise ServerError(
            "Kafka needs Java 17 or later, and no Java is on the PATH: install openjdk-17-jre-headless, "
            "or set TIDEMILL_KAFKA_BROKERS"
        )
    return found


def find_jars(environ: Mapping[str, str] = os.environ, on_progress: Progress | None = None) -> Path:
    """Return the folder of the broker's jars.

    The jars are downloaded if necessary. Several processes may call this function at once.

    Raises:
        ServerError: the jars are missing and cannot be downloaded.
    """
    home = environ.get("KAFKA_HOME")
    if home:
        libs = Path(home) / "libs"
        if not libs.is_dir():
            raise ServerError(f"KAFKA_HOME={home} has no libs folder: point it at an unpacked Kafka, or unset it")
        return libs
    script = shutil.which("kafka-server-start.sh", path=environ.get("PATH"))
    if script and (libs := Path(script).resolve().parent.parent / "libs").is_dir():
        return libs
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidemill"
    libs = cache / f"kafka-{KAFKA_VERSION}"
    if not libs.is_dir():
        with locked(cache / f"kafka-{KAFKA_VERSION}.lock", wait_seconds=_FETCH_SECONDS):
            if not libs.is_dir():
                _fetch(libs, environ, on_progress)
    return libs


def _fetch(libs: Path, environ: Mapping[str, str], on_progress: Progress | None) -> None:
    maven = shutil.which("mvn", path=environ.get("PATH"))
    if maven is None:
        raise ServerError(
            "Kafka's jars are fetched with Maven, but mvn is not on the PATH: install maven, "
            "or set KAFKA_HOME or TIDEMILL_KAFKA_BROKERS"
        )
    if on_progress:
        on_progress(f"fetching Kafka {KAFKA_VERSION} from Maven Central (once, about 45 MB)")
    partial = libs.with_name(libs.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copy(_POM, partial / "pom.xml")
    command = [maven, "-B", "-q", "-f", str(partial / "pom.xml"), f"-Dkafka.version={KAFKA_VERSION}"]
    command += [_PLUGIN, f"-DoutputDirectory={partial}", "-DincludeScope=runtime"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_FETCH_SECONDS, env=dict(environ), check=False
    )
    if done.returncode != 0:
        raise ServerError(
            f"fetching Kafka's jars failed (is the Maven repository reachable?):\n{(done.stdout + done.stderr)[-2000:]}"
        )
    partial.rename(libs)
