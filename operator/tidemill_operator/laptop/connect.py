"""A Kafka Connect worker for `tidemill up`, which starts when a pipeline first names a connector."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tidemill_contract.files import read_text
from tidemill_operator.actuators.connect.client import ConnectClient
from tidemill_operator.actuators.connect.connectors import KafkaConnect, failed_outcome
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.laptop.servers.connect import NAME, connect_worker, secrets_folder
from tidemill_operator.laptop.servers.connect_jars import find_plugins
from tidemill_operator.laptop.servers.errors import ServerError
from tidemill_operator.laptop.servers.server import Server
from tidemill_operator.outcome import Outcome
from tidemill_operator.plan.connect.connectors import check_secret
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Connector
from tidemill_operator.processes.child import end_leftover
from tidemill_operator.processes.files import LockTaken, write_atomic
from tidemill_operator.processes.ports import Ports

_RETRY_SECONDS = 15.0


class LocalConnect:
    """The Kafka Connect worker of one data folder."""

    def __init__(
        self,
        data_dir: Path,
        *,
        environ: Mapping[str, str],
        brokers: str,
        secured: bool,
        references_root: Path,
        on_server: Callable[[Server | None], None],
        say: Callable[[str], None],
    ) -> None:
        self._data_dir = data_dir
        self._environ = environ
        self._brokers = brokers
        self._secured = secured
        self._references_root = references_root
        self._on_server = on_server
        self._say = say
        self._lock = threading.Lock()
        # the connector classes needed by pipelines, and the classes loaded by the running worker
        self._classes: frozenset[str] = frozenset()
        self._loaded: frozenset[str] = frozenset()
        self._server: Server | None = None
        self._client: ConnectClient | None = None
        self._connect: KafkaConnect | None = None
        self._starting: threading.Thread | None = None
        self._failure, self._retry_at = "", 0.0
        self._closed = False

    def ensure(self, connectors: Sequence[Connector], *, owner: Owner, adopt: bool = False) -> list[Outcome]:
        """Make a pipeline's connectors match the plan.

        Raises:
            TidemillError: the worker is still starting, cannot be started, or does not answer.
        """
        connect = self._worker(connectors)
        wanted, failed, renewed = [], [], set()
        for connector in connectors:
            try:
                changed = [self._copy_secret(owner.namespace, *secret) for secret in connector.secrets]
            except TidemillError as error:
                failed.append(failed_outcome(connector, error))
                continue
            wanted.append(connector)
            if any(changed):
                renewed.add(connector.name)
        keep = [outcome.name for outcome in failed]
        return [*connect.ensure(wanted, owner=owner, adopt=adopt, changed_secrets=renewed, keep=keep), *failed]

    def observe(self, connectors: Sequence[Connector]) -> list[Outcome]:
        """Return the outcomes of the running connectors.

        Raises:
            TidemillError: the worker is still starting, cannot be started, or does not answer.
        """
        return self._worker(connectors).observe(connectors)

    def remove(self, *, owner: Owner) -> list[Outcome]:
        """Delete all connectors of a pipeline.

        Raises:
            TidemillError: the worker is still starting, cannot be started, or does not answer.
        """
        return self._worker(()).remove(owner=owner)

    def close(self) -> None:
        """Stop the worker, and do not start it again."""
        with self._lock:
            self._closed = True
            server = self._server
        if server is not None:
            server.stop()
        if self._client is not None:
            self._client.close()

    def _copy_secret(self, namespace: str, name: str, key: str) -> bool:
        file = self._references_root / namespace / name / key
        try:
            # a line feed at the end of the file is not part of the value
            text = read_text(file).rstrip("\r\n")
        except (OSError, ValueError) as error:
            message = f"Secret {name} has no key {key}: {type(error).__name__}"
            raise TidemillError(Reason.WAITING, message, f"write the value into {file}") from None
        check_secret(name, key, text)
        copy = secrets_folder(self._data_dir) / namespace / name / key
        existed = copy.exists()
        return write_atomic(copy, text, mode=0o600) and existed

    def _worker(self, connectors: Sequence[Connector]) -> KafkaConnect:
        """Return the worker's connectors."""
        if self._secured:
            message = "tidemill up starts no Kafka Connect for a Kafka with TLS or a login"
            raise TidemillError(
                Reason.NOT_SUPPORTED, message, "start Kafka Connect yourself, and set TIDEMILL_CONNECT_URL"
            )
        classes = {connector.config["connector.class"] for connector in connectors}
        with self._lock:
            if self._starting is None and self._connect is not None and classes <= self._loaded:
                return self._connect
            if self._starting is None and not self._closed:
                if time.monotonic() < self._retry_at:
                    raise TidemillError(Reason.REFUSED, self._failure)
                self._classes |= classes
                self._starting = threading.Thread(target=self._start, name="tidemill-connect", daemon=True)
                self._starting.start()
        raise TidemillError(Reason.WAITING, "Kafka Connect starts")

    def _start(self) -> None:
        try:
            classes = self._classes
            plugins = find_plugins(classes, self._environ, self._say)
            if self._server is not None:
                self._connect, self._loaded = None, frozenset()
                self._on_server(None)
                self._server.stop()
            end_leftover(self._data_dir / "run" / f"{NAME}.pid")
            server = connect_worker(
                self._data_dir,
                Ports(self._data_dir / NAME / "ports.json"),
                brokers=self._brokers,
                plugins=plugins,
                environ=self._environ,
                on_progress=self._say,
            )
            with self._lock:
                if self._closed:
                    return
                self._server = server
                server.spawn()
            server.wait_ready()
            if self._client is not None:
                self._client.close()
            self._client = ConnectClient(f"http://127.0.0.1:{server.port}")
            self._connect, self._loaded = KafkaConnect(self._client), classes
            self._on_server(server)
        except (ServerError, LockTaken, OSError, RuntimeError) as error:
            self._failure = f"Kafka Connect cannot be started: {' '.join(str(error).split())}"
            self._retry_at = time.monotonic() + _RETRY_SECONDS
        finally:
            with self._lock:
                self._starting = None
