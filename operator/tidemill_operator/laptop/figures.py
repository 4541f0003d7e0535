"""How far the pipelines of a run of `up` are behind: looked at in a thread, told by `status.json` and to Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tidemill_chassis.status_server import StatusServer
from tidemill_operator.actuators.kafka.log import KafkaLog
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.keys import Key
from tidemill_operator.laptop.store import Stored
from tidemill_operator.observer import figures
from tidemill_operator.observer.figures import Seen
from tidemill_operator.observer.observer import KAFKA_SECONDS, Observer, Tell


class LocalFigures:
    """Figures of one run; `start` begins to look.

    Args:
        kafka: bootstrap brokers.
        postgres: the database and its administrator's login.
        host: address to tell Prometheus at.
        say: tells the user when figures are not known, and when they are again.
        progress: gets how far each pipeline is at each look.
    """

    def __init__(
        self,
        kafka: str,
        postgres: PostgresAddress,
        *,
        host: str,
        say: Callable[[str], None],
        progress: Tell = lambda *_: None,
    ) -> None:
        log = KafkaLog(kafka, timeout_seconds=KAFKA_SECONDS)
        self._observer = Observer(log, postgres, self._show, progress=progress)
        self._server = StatusServer(host, 0, lambda: (200, {"status": "healthy"}), lambda: True, lambda: True)
        self._say = say
        self._told: dict[Key, dict[str, Any]] = {}
        self._watched: set[Key] = set()

    @property
    def port(self) -> int:
        """Where Prometheus is told."""
        return self._server.port

    def start(self) -> None:
        """Look and tell from now on."""
        self._server.start()
        self._observer.start()

    def close(self) -> None:
        """Look and tell no more."""
        self._observer.stop()
        self._server.stop()

    def watch(self, pipelines: Iterable[Stored]) -> None:
        """Look at these, as far as they have a schema and a topic, and at no others."""
        wanted = {key_of(stored): stored.status for stored in pipelines}
        for key, status in wanted.items():
            if status.get("schema") and status.get("topics"):
                self._observer.watch(key, status["schema"], status["topics"][0]["name"])
        for key in self._watched - wanted.keys():
            self._observer.forget(key)
            self._told.pop(key, None)
        self._watched = set(wanted)

    def status(self, stored: Stored) -> Mapping[str, Any]:
        """What a pipeline's status says of it; empty: it was not looked at yet."""
        return self._told.get(key_of(stored), {})

    def target(self, host: str) -> dict[str, object]:
        """Where Prometheus finds it; as the operator, whose figures these are in a cluster."""
        return {"targets": [f"{host}:{self.port}"], "labels": {"component": "operator"}}

    def _show(self, key: Key, seen: Seen) -> None:
        shown = self._told.get(key, {})
        self._told[key] = found = figures.told(seen, shown, 1)
        if figures.changed(shown, found):
            self._say(f"{key}: figures are {'not known: ' + seen.fault if seen.figures is None else 'known again'}")


def key_of(stored: Stored) -> Key:
    """What the observer calls a pipeline."""
    return Key(stored.namespace, stored.name, str(stored.document["metadata"].get("uid", "")))
