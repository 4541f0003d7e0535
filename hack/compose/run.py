"""Starts the services of a compose file in their order, runs their health checks, and ends them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from compose.files import Service, load
from compose.stage import Stage
from compose.standins import command, environment
from tidemill_operator.processes.child import Child

_HEALTHY = "service_healthy"
_PAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class Ended:
    """The result of ending a service.

    Attributes:
        seconds: The time until the service ended.
        killed: Whether the service was killed because it exceeded its grace period.
    """

    seconds: float
    killed: bool


class Running:
    """The services of one file.

    Attributes:
        services: The services by name.
        stage: The folder and the addresses of the services.
        children: The processes of the services.
        seconds: The time until each service was healthy.
        ended: How each service ended.
    """

    def __init__(self, services: Mapping[str, Service], stage: Stage) -> None:
        self.services, self.stage = services, stage
        self.children: dict[str, Child] = {}
        self.seconds: dict[str, float] = {}
        self.ended: dict[str, Ended] = {}
        self._waves: list[list[str]] = []

    def url(self, service: str, port: int) -> str:
        """Return the URL of a service's published port.

        Raises:
            ValueError: The service does not publish the port.
        """
        if port not in self.services[service].ports:
            raise ValueError(f"services.{service}.ports: {port} is missing; publish it")
        return f"http://{self.stage.addresses[service]}:{self.stage.ports.get(port, port)}"

    def start(self) -> None:
        """Start all services, each after the services of its `depends_on`.

        Raises:
            RuntimeError: A service ended, or did not become healthy within the limits of its health check.
        """
        waiting = dict(self.services)
        while waiting:
            ready = [service for service in waiting.values() if not set(service.after) & set(waiting)]
            if not ready:
                raise RuntimeError(f"services.*.depends_on: {', '.join(waiting)} wait for each other; remove one")
            self._waves.append([])
            for service in ready:
                del waiting[service.name]
                self._await(name for name, condition in service.after.items() if condition == _HEALTHY)
                self._spawn(service)
        self._await(self.children)

    def _spawn(self, service: Service) -> None:
        self.stage.prepare(service)
        wanted = command(self.stage, service)
        if wanted is None:
            return
        child = Child(wanted, run_dir=self.stage.folder / "run", log_dir=self.stage.folder / "logs")
        child.spawn()
        self.children[service.name] = child
        self._waves[-1].append(service.name)

    def _await(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.seconds:
                self._await_one(self.services[name], self.children[name])

    def _await_one(self, service: Service, child: Child) -> None:
        limit = service.health.seconds if service.health else 0.0
        while trouble := self.failure(service):
            over = not child.running or time.monotonic() - child.started_at > limit
            if over:
                how = f"not healthy within {limit:g} s" if child.running else f"ended with {child.exit_code}"
                report = f"its check: {trouble}\nits log ends with:\n{child.log_tail()}"
                raise RuntimeError(f"services.{service.name}: {how}; {report}")
            time.sleep(_PAUSE_SECONDS)
        self.seconds[service.name] = time.monotonic() - child.started_at

    def failure(self, service: Service) -> str:
        """Return why a service's health check fails, or an empty text if it passes or there is no check."""
        if service.health is None:
            return ""
        kind, *command = (self.stage.text(service, part) for part in service.health.test)
        variables = environment(self.stage, service)
        if kind == "CMD-SHELL":
            programs = self.stage.path(service, "/opt")
            arguments = ["/bin/sh", "-c", command[0].replace("/opt/", f"{programs}/")]
        else:
            arguments = [shutil.which(command[0], path=variables["PATH"]) or command[0], *command[1:]]
        try:
            done = subprocess.run(
                arguments, env=variables, capture_output=True, text=True, check=False, timeout=service.health.timeout
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {service.health.timeout:g} s"
        return "" if done.returncode == 0 else f"status {done.returncode} {(done.stdout + done.stderr)[-500:].strip()}"

    def failures(self) -> dict[str, str]:
        """Return the fault of each started service that has ended, or whose check fails in all retries."""
        troubles = {name: self._lasting_failure(name) for name in self.children}
        return {name: trouble for name, trouble in troubles.items() if trouble}

    def _lasting_failure(self, name: str) -> str:
        service, child, trouble = self.services[name], self.children[name], ""
        for _ in range(service.health.retries if service.health else 1):
            trouble = self.failure(service) if child.running else f"ended with {child.exit_code}"
            if not trouble:
                break
        return trouble

    def overdue(self) -> dict[str, float]:
        """Return the services that were killed after their grace period, with the seconds until then.

        A minority of killed brokers is left out. A broker asks the controllers' quorum before it ends, and gets no
        answer if the other brokers ended first.
        """
        killed = {name: ended.seconds for name, ended in self.ended.items() if ended.killed}
        brokers = [name for name, service in self.services.items() if service.image.startswith("apache/kafka:")]
        stranded = [name for name in brokers if name in killed]
        if len(stranded) > (len(brokers) - 1) // 2:
            return killed
        return {name: seconds for name, seconds in killed.items() if name not in stranded}

    def stop(self) -> None:
        """End all services in reverse order. Services that were started together end together."""
        for wave in reversed(self._waves):
            with ThreadPoolExecutor(len(wave) or 1) as pool:
                list(pool.map(self._stop_one, wave))

    def _stop_one(self, name: str) -> None:
        child, begun = self.children[name], time.monotonic()
        was_running = child.running
        child.stop()
        self.ended[name] = Ended(time.monotonic() - begun, killed=was_running and child.exit_code == -signal.SIGKILL)


@contextmanager
def running(file: Path, folder: Path, environ: Mapping[str, str]) -> Iterator[Running]:
    """Run the services of a file while the block runs.

    Args:
        file: The compose file.
        folder: The folder of all files of the services, which every user may enter.
        environ: The values of the file's variables.
    """
    services = load(file, environ)
    stage = Stage.of(services, file.resolve().parent, folder)
    stack = Running(services, stage)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
