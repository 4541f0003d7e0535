"""Finds the jar of Kafka's command-line tools in KAFKA_HOME, or fetches it once from Maven Central."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tidemill_operator.laptop.servers.kafka_jars import KAFKA_VERSION
from tidemill_operator.processes.files import locked

# The class that each script of Kafka's bin/ runs.
TOOLS = {"kafka-broker-api-versions.sh": "org.apache.kafka.tools.BrokerApiVersionsCommand"}
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
_FETCH_SECONDS = 300.0


def find_tools(jars: Path, environ: Mapping[str, str]) -> Path:
    """Return the jar of the tools.

    Args:
        jars: The folder with the jars of the broker.
        environ: The environment variables. Maven must be on the PATH.

    Raises:
        RuntimeError: The jar is missing and cannot be fetched.
    """
    unpacked = sorted(jars.glob("kafka-tools-[0-9]*.jar"))  # An unpacked Kafka contains the jar of the tools.
    if unpacked:
        return unpacked[-1]
    name = f"kafka-tools-{KAFKA_VERSION}"
    fetched = jars.with_name(name) / f"{name}.jar"
    if not fetched.exists():
        with locked(jars.with_name(f"{name}.lock"), wait_seconds=_FETCH_SECONDS):
            if not fetched.exists():
                _fetch(fetched, environ)
    return fetched


def _fetch(jar: Path, environ: Mapping[str, str]) -> None:
    maven = shutil.which("mvn", path=environ.get("PATH"))
    if maven is None:
        raise RuntimeError("mvn, which fetches Kafka's tools, is not on the PATH; install maven")
    partial = jar.parent.with_name(f"{jar.parent.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    command = [maven, "-B", "-q", _PLUGIN, f"-Dartifact=org.apache.kafka:kafka-tools:{KAFKA_VERSION}"]
    command += [f"-DoutputDirectory={partial}"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_FETCH_SECONDS, env=dict(environ), cwd=partial, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(
            "Kafka's tools cannot be fetched; check that Maven Central is reachable:\n"
            f"{(done.stdout + done.stderr)[-2000:]}"
        )
    partial.rename(jar.parent)
