"""Finds the jars of a Kafka Connect worker and its plugins.

Missing files are downloaded from Maven Central.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tidemill_operator.laptop.servers.errors import ServerError
from tidemill_operator.laptop.servers.kafka_jars import (
    FETCH_SECONDS,
    KAFKA_VERSION,
    cache_folder,
    ensure_jars,
    run_maven,
)
from tidemill_operator.laptop.servers.server import Progress
from tidemill_operator.plan.connect.connectors import FILES, POSTGRES
from tidemill_operator.processes.files import locked

_POM = Path(__file__).with_name("connect-pom.xml")
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"


@dataclass(frozen=True)
class Plugin:
    """A plugin with connectors (an archive or a jar file)."""

    artifact: str
    file: str
    sha256: str
    description: str

    @property
    def folder(self) -> str:
        """The name of the plugin's folder in the cache."""
        return self.file.removesuffix(".tar.gz").removesuffix(".jar")


_DEBEZIUM = "3.6.1.Final"
PLUGINS: Mapping[str, Plugin] = {
    POSTGRES: Plugin(
        f"io.debezium:debezium-connector-postgres:{_DEBEZIUM}:tar.gz:plugin",
        f"debezium-connector-postgres-{_DEBEZIUM}-plugin.tar.gz",
        "408b00c073b27ddaa7af34684f60fcf5bbf6605de68a8662ec9462f2a88880d2",
        f"Debezium {_DEBEZIUM} for Postgres from Maven Central (once, about 25 MB)",
    ),
    FILES: Plugin(
        f"org.apache.kafka:connect-file:{KAFKA_VERSION}",
        f"connect-file-{KAFKA_VERSION}.jar",
        "0aac0a37c9654a12bc1a5c9bf48f9497ba0faeba8cd7663705b0342bc6dc983d",
        f"Kafka's FileStream connectors {KAFKA_VERSION} from Maven Central (once)",
    ),
}
"""Downloadable plugins by the class of the connector."""


def find_connect_jars(environ: Mapping[str, str], on_progress: Progress | None = None) -> Path:
    """Return the folder with the worker's jars, from KAFKA_HOME or else downloaded.

    Raises:
        ServerError: the jars cannot be downloaded.
    """
    libs = Path(environ.get("KAFKA_HOME") or "/nonexistent") / "libs"
    if any(libs.glob("connect-runtime-*.jar")):
        return libs
    what = f"Kafka Connect {KAFKA_VERSION} from Maven Central (once, about 40 MB)"
    folder = cache_folder(environ) / f"connect-{KAFKA_VERSION}"
    return ensure_jars(folder, _POM, what=what, environ=environ, on_progress=on_progress)


def find_plugins(classes: Iterable[str], environ: Mapping[str, str], on_progress: Progress | None = None) -> list[Path]:
    """Return the plugin folders of the given connector classes.

    Raises:
        ServerError: a plugin cannot be downloaded, or is not the expected file.
    """
    plugins = {PLUGINS[name].folder: PLUGINS[name] for name in classes if name in PLUGINS}
    return [_plugin(plugin, environ, on_progress) for _, plugin in sorted(plugins.items())]


def _plugin(plugin: Plugin, environ: Mapping[str, str], on_progress: Progress | None) -> Path:
    # The path contains the checksum of the expected file. If the checksum changes, the old file is not used.
    folder = cache_folder(environ) / "connect-plugins" / f"{plugin.folder}-{plugin.sha256[:12]}"
    if not folder.is_dir():
        with locked(folder.with_name(folder.name + ".lock"), wait_seconds=FETCH_SECONDS):
            if not folder.is_dir():
                _fetch(plugin, folder, environ, on_progress)
    return folder


def _fetch(plugin: Plugin, folder: Path, environ: Mapping[str, str], on_progress: Progress | None) -> None:
    if on_progress:
        on_progress(f"fetching {plugin.description}")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    run_maven([_COPY, f"-Dartifact={plugin.artifact}", f"-DoutputDirectory={partial}"], environ)
    file = partial / plugin.file
    if not file.is_file():
        raise ServerError(f"Maven has not fetched {plugin.file} for {plugin.artifact}")
    with open(file, "rb") as content:
        checksum = hashlib.file_digest(content, "sha256").hexdigest()
    if checksum != plugin.sha256:
        raise ServerError(f"{plugin.artifact} has the checksum {checksum}, not {plugin.sha256}: the file is not used")
    if plugin.file.endswith(".tar.gz"):
        with tarfile.open(file) as archive:
            archive.extractall(partial, filter="data")
        file.unlink()
    partial.rename(folder)
