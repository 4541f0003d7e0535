"""Fetches on the host what local builds need: the base image, wheels and Kafka's jars.

Thus builds need no network, and no certificate that only the host trusts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from images.catalogue import CACHE, ROOT
from images.engine import BuildError, Engine
from images.install import read_blocks
from images.packages import install_missing
from tidemill_operator.laptop.servers.connect_jars import PLUGINS, find_connect_jars, find_plugins
from tidemill_operator.laptop.servers.kafka_jars import find_jars

BASE_PACKAGES = ("ca-certificates", "netbase", "python3", "python-is-python3", "tzdata")
_SUITE = "bookworm"
_PATTERNS = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_LOCKS = (
    "hack/requirements/bootstrap.txt",
    "workloads/contract/requirements.txt",
    "workloads/chassis/requirements.txt",
    "workloads/ingest/requirements.txt",
    "workloads/processor/requirements.txt",
    "workloads/api/requirements.txt",
    "operator/requirements.txt",
)


def base_reference() -> str:
    """Return the reference of the local base image, with a tag that identifies its packages."""
    digest = hashlib.sha256("\n".join((_SUITE, *BASE_PACKAGES, *_PATTERNS)).encode()).hexdigest()[:12]
    return f"tidemill-dev/base:{_SUITE}-{digest}"


def ensure_base(engine: Engine) -> str:
    """Build the base image from Debian's packages, unless the engine has the image.

    Returns:
        The reference of the base image.

    Raises:
        BuildError: Debian's packages cannot be fetched.
    """
    reference = base_reference()
    if engine.has(reference):
        return reference
    install_missing({"mmdebstrap": "mmdebstrap"})
    archive = CACHE / "base.tar"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _PATTERNS]
    command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright", _SUITE, str(archive)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"mmdebstrap failed: {done.stderr.strip()[-2000:]}")
    engine.import_tar(archive, reference)
    archive.unlink()
    return reference


def fetch_wheels() -> Path:
    """Fetch all locked wheels by their hashes, unless the locks are unchanged since the last call.

    Returns:
        The folder of the wheels.

    Raises:
        BuildError: A wheel cannot be fetched, or this Python has another version than the images' Python.
    """
    if sys.version_info[:2] != (3, 11):
        raise BuildError(f"wheels for the images need Python 3.11, this is {sys.version.split()[0]}; use --pull")
    folder = CACHE / "wheels"
    digest = hashlib.sha256(b"".join((ROOT / lock).read_bytes() for lock in _LOCKS)).hexdigest()
    done_file = CACHE / "wheels.done"
    if folder.is_dir() and done_file.exists() and done_file.read_text() == digest:
        return folder
    partial = CACHE / "wheels.partial"
    shutil.rmtree(partial, ignore_errors=True)
    # All locks have the same versions, and most packages are in several locks.
    blocks = {name: lines for lock in _LOCKS for name, lines in read_blocks(ROOT / lock).items()}
    wanted = CACHE / "wheels.txt"
    wanted.parent.mkdir(parents=True, exist_ok=True)
    wanted.write_text("\n".join(line for lines in blocks.values() for line in lines) + "\n")
    # pip uses wheels of the last call again, and also checks their hashes.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(partial)]
    command += ["--find-links", str(folder)] if folder.is_dir() else []
    done = subprocess.run([*command, "-r", str(wanted)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"the locked wheels cannot be fetched: {done.stderr.strip()[-2000:]}")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    done_file.write_text(digest)
    return folder


def gather_jars() -> Path:
    """Copy Kafka's jars into a folder that builds can read.

    Raises:
        tidemill_operator.laptop.servers.errors.ServerError: The jars cannot be fetched.
    """
    folder = CACHE / "kafka-jars"
    source = find_jars()
    wanted = {jar.name for jar in source.glob("*.jar")}
    if not folder.is_dir() or {jar.name for jar in folder.glob("*.jar")} != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for jar in source.glob("*.jar"):
            shutil.copy2(jar, folder)
    return folder


def gather_connect() -> Path:
    """Copy the jars of Kafka Connect and the plugins of the tested connectors into a folder that builds can read.

    Raises:
        tidemill_operator.laptop.servers.errors.ServerError: A jar or a plugin cannot be fetched.
    """
    folder, partial = CACHE / "connect", CACHE / "connect.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(find_connect_jars(os.environ), partial / "libs")
    for plugin in find_plugins(PLUGINS, os.environ):
        shutil.copytree(plugin, partial / "plugins" / plugin.name)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder
