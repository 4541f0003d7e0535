"""Free loopback ports. They are stored, so that a second start uses the same ports."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
from pathlib import Path

from tidemill_contract.files import read_text
from tidemill_operator.processes.files import write_atomic

# These are below Linux' ephemeral range (32768 to 60999), so that no outgoing connection takes a port that we want.
_LOWEST, _HIGHEST = 20_000, 32_000


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class Ports:
    """The ports of one data folder by name. They are kept in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._ports: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._ports = {str(name): int(port) for name, port in json.loads(read_text(path)).items()}

    def get(self, name: str, *, wanted: int = 0) -> int:
        """Return the stored port of a name if it is free, else the first free one from `wanted` on. 0 means any port.

        Raises:
            RuntimeError: no port is free.
        """
        with self._lock:
            remembered = self._ports.get(name)
            if remembered is not None and is_free(remembered):
                return remembered
            taken = set(self._ports.values())
            candidates = range(wanted, wanted + 200) if wanted else random.sample(range(_LOWEST, _HIGHEST), 200)
            port = next((port for port in candidates if port not in taken and is_free(port)), None)
            if port is None:
                raise RuntimeError(
                    f"no free loopback port for {name} among {len(candidates)} tried; stop what listens there"
                )
            self._ports[name] = port
            write_atomic(self._path, json.dumps(self._ports, indent=1, sort_keys=True))
            return port

    def forget(self, name: str) -> None:
        """Forget the port of a name."""
        with self._lock:
            if self._ports.pop(name, None) is not None:
                write_atomic(self._path, json.dumps(self._ports, indent=1, sort_keys=True))
