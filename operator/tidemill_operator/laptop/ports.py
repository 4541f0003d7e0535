"""The ports of ingest and API on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tidemill_operator.laptop.servers.errors import ServerError
from tidemill_operator.processes.child import end_leftover
from tidemill_operator.processes.ports import HIGHEST_PORT, bind_error

_DEFAULTS = {"ingest": 8080, "api": 8081}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare an option for each port."""
    for component, default in _DEFAULTS.items():
        parser.add_argument(
            f"--port-{component}",
            type=_port,
            metavar="N",
            help=f"port of the {component} service; 0: any free port; default: {default}, or the next free port",
        )


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:6]) <= HIGHEST_PORT):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: write 1 to {HIGHEST_PORT}, or 0 for any free port")
    return int(text)


@dataclass(frozen=True)
class WantedPorts:
    """The requested ports. None means the default port, or the next free port. 0 means any free port."""

    ingest: int | None = None
    api: int | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> WantedPorts:
        """Create the ports from parsed arguments."""
        return cls(args.port_ingest, args.port_api)

    @property
    def requested(self) -> dict[str, int]:
        """The port numbers that the user requested, by component."""
        return {component: port for component, port in self._by_component() if port}

    @property
    def preferred(self) -> Mapping[str, int]:
        """The first port to try, by component."""
        return {component: _DEFAULTS[component] if port is None else port for component, port in self._by_component()}

    def arguments(self) -> list[str]:
        """Return the options of `tidemill up` that name the requested ports."""
        return [f"--port-{component}={port}" for component, port in self._by_component() if port is not None]

    def check(self, data_dir: Path, host: str, say: Callable[[str], None]) -> None:
        """End leftover processes of a killed run, and check that the requested ports are free.

        Raises:
            ServerError: a requested port is in use. The message names the port, the process and the option.
        """
        if self.ingest and self.ingest == self.api:
            raise ServerError(f"--port-ingest and --port-api are both {self.api}: write two different ports")
        for pid_file in (data_dir / "run").glob("*.*-*.pid"):
            end_leftover(pid_file)
        for component, port in self.preferred.items():
            error = bind_error(port, host) if port else ""
            if error and component in self.requested:
                remedy = f"stop that process, or write another --port-{component} (0: any free port)"
                raise ServerError(f"--port-{component} {port}: {error}; {remedy}")
            if error:
                say(f"port {port}: {error}; {component} takes the next free port (to choose one: --port-{component} N)")

    def _by_component(self) -> tuple[tuple[str, int | None], ...]:
        return ("ingest", self.ingest), ("api", self.api)
