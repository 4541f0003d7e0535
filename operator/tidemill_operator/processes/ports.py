"""Finds free ports, and the process that uses a port."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import socket
import threading
from collections.abc import Collection, Iterable
from pathlib import Path

from tidemill_contract.files import read_text
from tidemill_operator.processes.files import write_atomic

# Linux gives the ports 32768 to 60999 to outgoing connections, so choose lower ports
_LOWEST, _HIGHEST = 20_000, 32_000
HIGHEST_PORT = 65_535
_LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp."""


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on the port."""
    return not bind_error(port, host)


def bind_error(port: int, host: str = "127.0.0.1") -> str:
    """Return why no server can listen on the port. The text is empty for a usable port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"{_listener(port)} listens on this port"
            return f"no process can listen on this port ({error.strerror})"
    return ""


def is_served_by(port: int, pids: Iterable[int]) -> bool:
    """Return whether one of the processes listens on the port.

    If the listener is unknown, as on systems other than Linux, the result is True.
    """
    sockets = _listening_sockets(port)
    return not sockets or any(not (owned := _process_sockets(pid)) or owned & sockets for pid in pids)


def _listener(port: int) -> str:
    sockets = _listening_sockets(port)
    for entry in Path("/proc").glob("[0-9]*") if sockets else ():
        if _process_sockets(int(entry.name)) & sockets:
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"process {entry.name} ({command[:100]})"
    return "another process"


def _listening_sockets(port: int) -> set[str]:
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{columns[9]}]")
    return sockets


def _process_sockets(pid: int) -> set[str]:
    sockets = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(entry.path))
    return sockets


class Ports:
    """The ports of the servers that use one data folder, by name.

    `get` returns a reserved port only if the caller names that port.
    """

    def __init__(self, path: Path, *, reserved: Collection[int] = ()) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._reserved = frozenset(reserved)
        self._assigned: dict[str, int] = {}
        self._ports: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._ports = {str(name): int(port) for name, port in json.loads(read_text(path)).items()}

    def get(self, name: str, *, wanted: int = 0) -> int:
        """Return a free port for a name.

        The stored port comes first, then the first free port from `wanted` upwards. If no port is stored and `wanted`
        is 0, the result is a random free port.

        Raises:
            RuntimeError: no port is free, or another process listens on the reserved port.
        """
        with self._lock:
            self._assigned[name] = port = self._choose(name, wanted)
            if self._ports.get(name) != port:
                others = {other: number for other, number in self._ports.items() if number != port}
                self._ports = {**others, name: port}
                write_atomic(self._path, json.dumps(self._ports, indent=1, sort_keys=True))
            return port

    def _choose(self, name: str, wanted: int) -> int:
        others = {port for other, port in self._assigned.items() if other != name}
        if wanted in self._reserved and wanted not in others:
            if error := bind_error(wanted):
                raise RuntimeError(f"port {wanted} for {name}: {error}; stop it")
            return wanted
        taken = self._reserved | others
        stored = self._ports.get(name)
        if stored is not None and stored not in taken and is_free(stored):
            return stored
        taken |= set(self._ports.values())
        candidates: Collection[int] = random.sample(range(_LOWEST, _HIGHEST), 200)
        if wanted:
            candidates = range(wanted, min(wanted + 200, HIGHEST_PORT + 1))
        port = next((port for port in candidates if port not in taken and is_free(port)), None)
        if port is None:
            raise RuntimeError(f"no free loopback port for {name} among {len(candidates)} ports; stop another process")
        return port

    def forget(self, name: str) -> None:
        """Forget the port of a name."""
        with self._lock:
            self._assigned.pop(name, None)
            if self._ports.pop(name, None) is not None:
                write_atomic(self._path, json.dumps(self._ports, indent=1, sort_keys=True))
