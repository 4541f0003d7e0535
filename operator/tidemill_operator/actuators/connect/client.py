"""A client of Kafka Connect's REST interface, with deadlines and a size limit for responses."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.connect.states import LiveConnector, LiveTask, mask_secrets

_CONNECT_SECONDS = 3.0
_READ_SECONDS = 10.0
# Connect may query a database to check a config. A check may therefore take longer than other requests.
_CHECK_SECONDS = 60.0
_MAX_BYTES = 16 * 1024 * 1024
_MAX_ERROR_CHARS = 600
_NO_CLASS = "Failed to find any class"


class _Task(BaseModel):
    model_config = ConfigDict(extra="ignore")
    id: int
    state: str
    trace: str = ""


class _Connector(BaseModel):
    model_config = ConfigDict(extra="ignore")
    state: str
    trace: str = ""


class _Status(BaseModel):
    model_config = ConfigDict(extra="ignore")
    connector: _Connector
    tasks: list[_Task] = []


_NAMES = TypeAdapter(list[str])
_CONFIG = TypeAdapter(dict[str, str | None])
_STATUS = TypeAdapter(_Status)


class ConnectClient:
    """A thread-safe client of Kafka Connect at one URL."""

    def __init__(self, url: str, *, seconds: float = _READ_SECONDS) -> None:
        """Create a client for Kafka Connect at `url`, without sending a request."""
        self._seconds = seconds
        self.url = url.rstrip("/")
        # With trust_env=False, httpx ignores proxy variables. SSL_CERT_FILE still works through create_default_context.
        self._http = httpx.Client(base_url=self.url, trust_env=False, verify=ssl.create_default_context())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def names(self) -> list[str]:
        """List all connector names."""
        names: list[str] = self._read(_NAMES, self._call("GET", "/connectors"))
        return names

    def get(self, name: str) -> LiveConnector | None:
        """Return a connector, or None if it does not exist."""
        config = self._call("GET", f"{_path(name)}/config")
        if config is None:
            return None
        configs: Mapping[str, str | None] = self._read(_CONFIG, config)
        properties = {key: text for key, text in configs.items() if text is not None}
        status_json = self._call("GET", f"{_path(name)}/status")
        if status_json is None:  # a new connector has no status until a worker runs it
            return LiveConnector(name, properties)
        status: _Status = self._read(_STATUS, status_json)
        tasks = tuple(LiveTask(task.id, task.state, task.trace) for task in sorted(status.tasks, key=lambda t: t.id))
        return LiveConnector(name, properties, status.connector.state, tasks, status.connector.trace)

    def create(self, name: str, config: Mapping[str, str], *, paused: bool) -> None:
        """Create a connector."""
        body = {"name": name, "config": dict(config), **({"initial_state": "PAUSED"} if paused else {})}
        self._call("POST", "/connectors", body, seconds=_CHECK_SECONDS)

    def configure(self, name: str, config: Mapping[str, str]) -> None:
        """Replace a connector's config."""
        self._call("PUT", f"{_path(name)}/config", dict(config), seconds=_CHECK_SECONDS)

    def pause(self, name: str) -> None:
        """Pause a connector."""
        self._call("PUT", f"{_path(name)}/pause")

    def resume(self, name: str) -> None:
        """Resume a connector."""
        self._call("PUT", f"{_path(name)}/resume")

    def restart(self, name: str, *, only_failed: bool = True) -> None:
        """Restart a connector."""
        failed = "true" if only_failed else "false"
        self._call("POST", f"{_path(name)}/restart?includeTasks=true&onlyFailed={failed}")

    def delete(self, name: str) -> None:
        """Delete a connector."""
        self._call("DELETE", _path(name))

    def _call(self, method: str, path: str, body: object = None, *, seconds: float | None = None) -> bytes | None:
        """Return the body of Connect's response, or None for the status 404."""
        seconds = seconds or self._seconds
        timeout = httpx.Timeout(seconds, connect=_CONNECT_SECONDS)
        deadline = time.monotonic() + seconds
        try:
            with self._http.stream(method, path, json=body, timeout=timeout) as response:
                content = b""
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > _MAX_BYTES or time.monotonic() > deadline:
                        raise self._unreachable_error(f"the response takes longer than {seconds:.0f} s")
        except httpx.HTTPError as error:
            raise self._unreachable_error(str(error) or type(error).__name__) from None
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.is_success:
            return content
        raise self._error(response.status_code, content)

    def _read(self, adapter: TypeAdapter[Any], content: bytes | None) -> Any:
        try:
            return adapter.validate_json(content or b"")
        except ValidationError:  # hide pydantic's message, which contains the configs
            what = f"what answers at {self.url} is not Kafka Connect"
            raise TidemillError(Reason.REFUSED, what, "correct connect.url (TIDEMILL_CONNECT_URL)") from None

    def _unreachable_error(self, why: str) -> TidemillError:
        return TidemillError(Reason.UNREACHABLE, f"Kafka Connect at {self.url} does not answer: {mask_secrets(why)}")

    def _error(self, status: int, content: bytes) -> TidemillError:
        try:
            message = mask_secrets(str(json.loads(content)["message"]))[:_MAX_ERROR_CHARS]
        except (ValueError, KeyError, TypeError):
            message = "no message"
        if _NO_CLASS in message:
            message = message.partition(", available connectors")[0]
            remedy = "install the connector's plugin on Connect's workers, or correct spec.source.connectors[].class"
            return TidemillError(Reason.REFUSED, f"Kafka Connect at {self.url}: {message}", remedy)
        if status == httpx.codes.CONFLICT:
            return TidemillError(Reason.WAITING, f"Kafka Connect at {self.url} is rebalancing: {message}")
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            remedy = "let the operator use Connect's REST interface without a login"
            return TidemillError(Reason.REFUSED, f"Kafka Connect at {self.url} refuses access ({status})", remedy)
        if status < httpx.codes.INTERNAL_SERVER_ERROR:
            remedy = "correct spec.source.connectors"
            return TidemillError(Reason.REFUSED, f"Kafka Connect refuses the connector: {message}", remedy)
        return self._unreachable_error(f"status {status}: {message}")


def _path(name: str) -> str:
    return f"/connectors/{quote(name, safe='')}"
