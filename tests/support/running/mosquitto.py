"""An MQTT broker: mosquitto as a process, which a test may stop and start."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from waiting import eventually

# Debian installs it in /usr/sbin, which is often not in PATH.
PROGRAM = shutil.which("mosquitto") or "/usr/sbin/mosquitto"


@dataclass
class Mosquitto:
    """A broker, which keeps sessions and their messages over a restart.

    Attributes:
        options: further lines of the configuration.
    """

    folder: Path
    options: tuple[str, ...] = ("allow_anonymous true",)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    login: tuple[str, str] | None = None
    _clients: list[Any] = field(default_factory=list)

    @property
    def log(self) -> str:
        return (self.folder / "mosquitto.log").read_text()

    def start(self) -> None:
        """Start the broker on the same port as before, and wait until it accepts connections."""
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        lines = [
            f"listener {self.port} 127.0.0.1", "persistence true", f"persistence_location {self.folder}/",
            "max_queued_messages 0", "set_tcp_nodelay true", *self.options,
        ]  # fmt: skip
        if not any(line.startswith("user ") for line in lines):
            lines.append("user root")
        (self.folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        with (self.folder / "mosquitto.log").open("ab") as log:
            command = [PROGRAM, "-c", str(self.folder / "mosquitto.conf")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(self._listens, seconds=20, what=lambda: f"mosquitto listens:\n{self.log}")

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """Stop the broker, which first writes sessions and messages to its file."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    @contextmanager
    def sender(self) -> Iterator[Any]:
        """Yield a client that publishes, and that reconnects after a lost connection."""
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="sender", clean_session=False)
        if self.login is not None:
            client.username_pw_set(*self.login)
        client.reconnect_delay_set(1, 1)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        try:
            yield client
        finally:
            client.disconnect()
            client.loop_stop()

    def publish(self, topic: str, *payloads: bytes, qos: int = 1, retain: bool = False) -> None:
        """Publish messages, and wait until the broker has them."""
        with self.sender() as client:
            for payload in payloads:
                client.publish(topic, payload, qos=qos, retain=retain).wait_for_publish(20)
