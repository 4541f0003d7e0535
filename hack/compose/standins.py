"""Replaces images with installed programs, which are started like the images start them."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from compose.files import Service
from compose.kafka_tools import TOOLS, find_tools
from compose.stage import Stage
from tidemill_operator.laptop.servers.kafka_jars import find_jars, find_java
from tidemill_operator.laptop.servers.postgres import find_programs, server_user
from tidemill_operator.processes.child import Command

ROOT = Path(__file__).resolve().parents[2]
StandIn = Callable[[Stage, Service], Command]
# The image's scripts read these variables, which are not settings of the broker.
_NO_PROPERTIES = ("KAFKA_HEAP_OPTS", "KAFKA_OPTS", "KAFKA_JVM_PERFORMANCE_OPTS")
_JVM = ("-XX:+UseSerialGC", "-Xshare:auto", "-Dlog4j2.level=WARN")
_VERSIONS = "kafka-broker-api-versions.sh"


def command(stage: Stage, service: Service) -> Command | None:
    """Return the command for a service, or None if no program stands in for its image (Grafana).

    Raises:
        ValueError: The image has no stand-in.
    """
    repository = service.image.partition(":")[0]
    if repository not in _STAND_INS:
        names = ", ".join(sorted(_STAND_INS))
        raise ValueError(f"services.{service.name}.image: {repository} has no stand-in; use one of {names}")
    stand_in = _STAND_INS[repository]
    return replace(stand_in(stage, service), grace_seconds=service.grace) if stand_in is not None else None


def environment(stage: Stage, service: Service) -> dict[str, str]:
    """Return the service's variables, and the variables of this process that programs need."""
    inherited = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "JAVA_HOME", "KAFKA_HOME") if name in os.environ
    }
    own = {name: stage.text(service, value) for name, value in service.environment.items()}
    programs = stage.home(service) / "programs"
    return {
        **inherited,
        "PATH": f"{programs}:{inherited.get('PATH', '')}",
        "PGHOST": stage.addresses[service.name],
        **own,
    }


def _kafka(stage: Stage, service: Service) -> Command:
    """Do what the image apache/kafka does: KAFKA_A_B sets a.b, and the storage is formatted once."""
    variables = environment(stage, service)
    properties = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in variables.items()
        if name in service.environment and name.startswith("KAFKA_") and name not in _NO_PROPERTIES
    }
    properties.setdefault("log.dirs", str(stage.home(service) / "kraft-combined-logs"))
    file = stage.home(service) / "server.properties"
    file.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
    jars = find_jars(os.environ)
    java = [find_java(os.environ), *shlex.split(variables.get("KAFKA_HEAP_OPTS", "-Xms64m -Xmx384m")), *_JVM]
    tools = [*java, "-cp", f"{jars}/*:{find_tools(jars, os.environ)}", TOOLS[_VERSIONS]]
    program(stage.path(service, f"/opt/kafka/bin/{_VERSIONS}"), tools)
    java += ["-cp", f"{jars}/*"]
    cluster = variables.get("CLUSTER_ID", "5L6g3nShT-eMCtK--X86sw")
    formatting = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster, "-c", str(file)]
    _run([*java, *formatting])
    return Command(service.name, [*java, "kafka.Kafka", str(file)], environment=variables)


def _postgres(stage: Stage, service: Service) -> Command:
    """Do what the image postgres does: create POSTGRES_USER with POSTGRES_PASSWORD, and the database POSTGRES_DB."""
    variables, user, programs = environment(stage, service), server_user(), find_programs(os.environ)
    data = stage.path(service, "/var/lib/postgresql/data")
    data.mkdir(parents=True, exist_ok=True)
    password = stage.home(service) / "password"
    password.write_text(variables["POSTGRES_PASSWORD"])
    for path in (data, password):
        if user:
            shutil.chown(path, user)
    data.chmod(0o700)
    making = [str(programs / "initdb"), "-D", str(data), "-U", variables["POSTGRES_USER"], f"--pwfile={password}"]
    making += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
    _run(making, user=user, folder=data)
    password.unlink()
    with (data / "pg_hba.conf").open("a") as logins:
        logins.write("host all all all scram-sha-256\n")
    server = [str(programs / "postgres")]
    database = f'CREATE DATABASE "{variables["POSTGRES_DB"]}";\n\n'
    _run([*server, "--single", "-D", str(data), "-j", "postgres"], user=user, folder=data, stdin=database)
    program(stage.home(service) / "programs" / "pg_isready", [str(programs / "pg_isready")])
    settings = {"listen_addresses": stage.addresses[service.name], "unix_socket_directories": "", "port": "5432"}
    run = [*server, "-D", str(data), *(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))]
    run += [stage.text(service, part) for part in service.command[1:]]
    return Command(
        service.name,
        run,
        environment=variables,
        user=user,
        working_dir=data,
        stop_signal=signal.SIGINT,  # the image's stop signal: a fast shutdown
    )


def _redis(stage: Stage, service: Service) -> Command:
    address = stage.addresses[service.name]
    command = [stage.text(service, part) for part in service.command] or ["redis-server"]
    program(stage.home(service) / "programs" / "redis-cli", [str(shutil.which("redis-cli")), "-h", address])
    run = [str(shutil.which(command[0])), *command[1:], "--bind", address, "--port", "6379"]
    return Command(service.name, run, environment=environment(stage, service), working_dir=stage.home(service))


def _tidemill(stage: Stage, service: Service) -> Command:
    """Run the entry point of hack/images/local, with the resilience file that the image contains."""
    variables = environment(stage, service)
    if variables.get("TIDEMILL_RESILIENCE_FILE") == "/etc/tidemill/resilience.yaml":
        variables["TIDEMILL_RESILIENCE_FILE"] = str(ROOT / "config" / "resilience.yaml")
    run = [sys.executable, "-m", "tidemill_operator.cli", *(stage.text(service, part) for part in service.command)]
    run += [f"--port-ingest={stage.ports[8080]}", f"--port-api={stage.ports[8081]}"]
    program(stage.home(service) / "programs" / "python3", [sys.executable])
    return Command(service.name, run, environment=variables, working_dir=stage.home(service))


def _prometheus(stage: Stage, service: Service) -> Command:
    """Run Prometheus as a user who only owns the volume, so that unreadable files of other services are found."""
    command = [stage.text(service, part) for part in service.command]
    listen = f"--web.listen-address={stage.addresses[service.name]}:9090"
    user, data = "nobody" if os.geteuid() == 0 else None, stage.path(service, "/prometheus")
    if user:
        shutil.chown(data, user)
    run = [_find_program("prometheus"), *command, listen]
    return Command(service.name, run, environment=environment(stage, service), user=user, working_dir=data)


def _alertmanager(stage: Stage, service: Service) -> Command:
    """Run Alertmanager if it is installed, otherwise `receiver.py`."""
    address, variables = stage.addresses[service.name], environment(stage, service)
    program = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")
    if program is None:
        run = [sys.executable, str(Path(__file__).with_name("receiver.py")), address, "9093"]
    else:
        run = [program, *(stage.text(service, part) for part in service.command)]
        run += [f"--web.listen-address={address}:9093", "--cluster.listen-address="]
    return Command(service.name, run, environment=variables)


def _find_program(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise ValueError(f"{program} is not on the PATH; install it (Debian: apt install {program})")
    return path


def _run(arguments: list[str], *, user: str | None = None, folder: Path | None = None, stdin: str = "") -> None:
    """Run a command to its end, as the image does before it starts its server.

    Raises:
        RuntimeError: The command fails.
    """
    done = subprocess.run(
        arguments,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        user=user,
        group=pwd.getpwnam(user).pw_gid if user else None,
        extra_groups=[] if user else None,
        cwd=folder,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"{arguments[0]} failed with status {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}"
        )


def program(path: Path, arguments: list[str]) -> None:
    """Write a script that runs another command under the name of a program of the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.join(arguments)} "$@"\n')
    path.chmod(0o755)


_STAND_INS: Mapping[str, StandIn | None] = {
    "apache/kafka": _kafka,
    "postgres": _postgres,
    "redis": _redis,
    "tidemill/local": _tidemill,
    "prom/prometheus": _prometheus,
    "prom/alertmanager": _alertmanager,
    "grafana/grafana": None,
}
