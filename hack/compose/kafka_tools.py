"""Finds Kafka's command-line tools, which a broker does not need: in KAFKA_HOME, or fetched once from Maven Central."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tidemill_operator.laptop.servers.kafka_jars import KAFKA_VERSION
from tidemill_operator.processes.files import locked

# The classes that the scripts in bin/ run.
TOOLS = {"kafka-broker-api-versions.sh": "org.apache.kafka.tools.BrokerApiVersionsCommand"}
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
_FETCH_SECONDS = 300.0


def find_tools(jars: Path, environ: Mapping[str, str]) -> Path:
    """Return the jar of the tools.

    Args:
        jars: The folder with the jars of the broker.
        environ: The environment variables. Maven must be on the PATH.

    Raises:
        RuntimeError: The jar is not there and cannot be fetched.
    """
    whole = sorted(jars.glob("kafka-tools-[0-9]*.jar"))  # An unpacked Kafka contains the jar of the tools.
    if whole:
        return whole[-1]
    name = f"kafka-tools-{KAFKA_VERSION}"
    kept = jars.with_name(name) / f"{name}.jar"
    if not kept.exists():
        with locked(jars.with_name(f"{name}.lock"), wait_seconds=_FETCH_SECONDS):
            if not kept.exists():
                _fetch(kept, environ)
    return kept


def _fetch(jar: Path, environ: Mapping[str, str]) -> None:
    maven = shutil.which("mvn", path=environ.get("PATH"))
    if maven is None:
        raise RuntimeError("Kafka's tools are fetched with Maven and mvn is not on the PATH: install maven")
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
            "fetching Kafka's tools failed (is the Maven repository reachable?):\n"
            f"{(done.stdout + done.stderr)[-2000:]}"
        )
    partial.rename(jar.parent)
