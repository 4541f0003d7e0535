"""Reads compose files. It knows the keys that this repository's files use, and refuses any other key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# Compose 1 (Debian's docker-compose) refuses all other keys, for example `name:`.
TOP_LEVEL = frozenset({"version", "services", "networks", "volumes", "secrets", "configs"})
# These keys have no effect here, because they only concern containers.
_CONTAINER_KEYS = frozenset(
    {"restart", "networks", "init", "hostname", "read_only", "cap_drop", "security_opt", "build"}
)
_KNOWN = _CONTAINER_KEYS | frozenset(
    {"image", "command", "environment", "volumes", "tmpfs", "ports", "healthcheck", "depends_on", "stop_grace_period"}
)
_SECONDS = re.compile(r"\d+(\.\d+)?s")
_VARIABLE = re.compile(r"\$(?:\$|(?P<name>\w+)|\{(?P<braced>\w+)(?:(?P<kind>:?-)(?P<default>[^}]*))?\})")


@dataclass(frozen=True)
class Mount:
    """A volume, folder or file that is mounted at a path of a container.

    Attributes:
        source: The name of a volume, or a path of this machine.
        target: The path in the container.
        read_only: Whether the container may not write to the mount.
    """

    source: str
    target: str
    read_only: bool

    @property
    def is_volume(self) -> bool:
        """Whether the source is a volume, not a folder or file of this machine."""
        return not self.source.startswith((".", "/", "~"))


@dataclass(frozen=True)
class Health:
    """The health check of a service.

    Attributes:
        test: The command in Compose's form, which begins with CMD or CMD-SHELL.
        seconds: The maximum time in seconds until the service is healthy.
        timeout: The maximum duration of one test in seconds.
        retries: The number of failures in a row that make the service unhealthy.
    """

    test: tuple[str, ...]
    seconds: float
    timeout: float
    retries: int


@dataclass(frozen=True)
class Service:
    """One service of a file.

    Attributes:
        name: The name of the service, which is also its host name.
        image: The image of the service.
        command: The command, which replaces the image's command or follows the image's entry point.
        environment: The environment variables of the service.
        mounts: The mounted volumes, folders and files.
        ports: The published ports.
        health: The health check, or None if the service has no health check.
        after: The services that start before this service, each with `service_healthy` or `service_started`.
        grace: The seconds from SIGTERM to SIGKILL.
    """

    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    mounts: tuple[Mount, ...]
    ports: tuple[int, ...]
    health: Health | None
    after: Mapping[str, str]
    grace: float


def load(path: Path, environ: Mapping[str, str]) -> dict[str, Service]:
    """Return the services of a file, by name.

    Args:
        path: The path of the file.
        environ: The values of the file's variables.

    Raises:
        ValueError: The file has a key that Compose 1 or this program does not know. The message names the key.
    """
    document = yaml.safe_load(path.read_text())
    unknown = [key for key in document if key not in TOP_LEVEL and not key.startswith("x-")]
    if unknown:
        raise ValueError(f"{path.name}: {unknown[0]}: Compose 1 refuses this key; use a command-line option")
    services = {name: _service(path, name, _resolve(body, environ)) for name, body in document["services"].items()}
    volumes = set(document.get("volumes") or {})
    for service in services.values():
        for mount in service.mounts:
            if mount.is_volume and mount.source not in volumes:
                raise ValueError(
                    f"{path.name}: services.{service.name}: volume {mount.source} is not declared in volumes"
                )
        for other in service.after:
            if other not in services:
                raise ValueError(f"{path.name}: services.{service.name}.depends_on: there is no service {other}")
    return services


def _resolve(value: Any, environ: Mapping[str, str]) -> Any:
    """Replace each `${NAME:-default}` with the value of the variable."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _variable(match, environ), value)
    if isinstance(value, Mapping):
        return {key: _resolve(item, environ) for key, item in value.items()}
    return [_resolve(item, environ) for item in value] if isinstance(value, list) else value


def _variable(match: re.Match[str], environ: Mapping[str, str]) -> str:
    name = match["name"] or match["braced"]
    if name is None:
        return "$"
    value = environ.get(name)
    takes_default = value is None or (match["kind"] == ":-" and not value)
    return (match["default"] or "") if takes_default else str(value)


def _service(path: Path, name: str, body: Mapping[str, Any]) -> Service:
    unknown = [key for key in body if key not in _KNOWN]
    if unknown:
        raise ValueError(f"{path.name}: services.{name}.{unknown[0]}: unknown key; add it to hack/compose/files.py")
    for key, value in (body.get("environment") or {}).items():
        if not isinstance(value, str):
            raise ValueError(f"{path.name}: services.{name}.environment.{key}: {value!r} is not a string; quote it")
    after = body.get("depends_on") or {}
    return Service(
        name=name,
        image=str(body["image"]),
        command=tuple(str(part) for part in body.get("command") or ()),
        environment=dict(body.get("environment") or {}),
        mounts=tuple(_mount(text) for text in body.get("volumes") or ()),
        ports=tuple(int(str(text).rpartition(":")[2]) for text in body.get("ports") or ()),
        health=_health(body.get("healthcheck")),
        after={item: "service_started" for item in after}
        if isinstance(after, list)
        else {other: str(how["condition"]) for other, how in after.items()},
        grace=_seconds(body.get("stop_grace_period", "10s")),
    )


def _mount(text: str) -> Mount:
    source, target, *mode = text.split(":")
    return Mount(source, target, mode == ["ro"])


def _health(body: Mapping[str, Any] | None) -> Health | None:
    if body is None:
        return None
    every, start, timeout = (
        _seconds(body.get(key, default))
        for key, default in {"interval": "30s", "start_period": "0s", "timeout": "30s"}.items()
    )
    retries = int(body.get("retries", 3))
    return Health(tuple(body["test"]), start + every * retries, timeout, retries)


def _seconds(text: str) -> float:
    if not _SECONDS.fullmatch(text):
        raise ValueError(f"{text!r} is not a number of seconds; write it like 90s")
    return float(text.removesuffix("s"))
