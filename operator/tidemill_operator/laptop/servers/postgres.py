"""Starts Postgres on loopback, with SCRAM passwords."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import sql

from tidemill_contract.files import read_text
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.laptop.servers.errors import ServerError
from tidemill_operator.laptop.servers.server import Progress, Server
from tidemill_operator.processes.child import Command
from tidemill_operator.processes.files import write_atomic
from tidemill_operator.processes.ports import Ports

_ADMIN = "postgres"
_DATABASE = "tidemill"
# If Postgres' user cannot enter the data folder of `up`, Postgres' data is below _ROOT_HOME.
_ROOT_HOME = Path("/var/lib/tidemill")
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "client_connection_check_interval": "5s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def postgres_server(
    data_dir: Path,
    ports: Ports,
    *,
    environ: Mapping[str, str] = os.environ,
    durable: bool = True,
    settings: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> tuple[Server, PostgresAddress]:
    """Return a Postgres server, ready to be started, and its address with the administrator's login.

    Raises:
        ServerError: the programs are missing, or the data folder cannot be created.
    """
    programs = find_programs(environ)
    user = server_user()
    home = _home(data_dir, user)
    port = ports.get("postgres")
    address = admin_address(data_dir, port)
    _initialise(programs, home, address.password, user=user)
    all_settings = {**_SETTINGS, "port": str(port), **({} if durable else _NOT_DURABLE), **(settings or {})}
    arguments = [str(programs / "postgres"), "-D", str(home / "data")]
    arguments += [part for key, value in all_settings.items() for part in ("-c", f"{key}={value}")]
    command = Command(
        "postgres",
        arguments,
        environment=environ,
        user=user,
        working_dir=home,
        death_signal=signal.SIGINT,  # a fast, clean shutdown; after SIGKILL, child processes keep running
        stop_signal=signal.SIGINT,
        grace_seconds=20.0,
    )
    server = Server(
        command, port=port, data_dir=data_dir, ready=lambda: _ensure_database(address), on_progress=on_progress
    )
    return server, address


def admin_address(data_dir: Path, port: int) -> PostgresAddress:
    """Return the address and the administrator's login for the server in a data folder."""
    return PostgresAddress("127.0.0.1", port, _DATABASE, _ADMIN, _password(data_dir / "postgres-admin.password"))


def remove_data(data_dir: Path) -> None:
    """Delete the files that `postgres_server` keeps for a data folder."""
    link = data_dir / "postgres"
    target = link.resolve()
    if link.is_symlink():
        link.unlink()
    shutil.rmtree(target, ignore_errors=True)


def answers(address: PostgresAddress) -> bool:
    """Return whether the database accepts the login."""
    return not connection_error(address)


def connection_error(address: PostgresAddress) -> str:
    """Return why the database does not accept the login, or an empty text if it does."""
    try:
        with psycopg.connect(address.url, connect_timeout=2):
            return ""
    except psycopg.Error as error:
        return " ".join(str(error).split()) or type(error).__name__


def _ensure_database(address: PostgresAddress) -> bool:
    """Return whether the server answers, and create the database if it does not exist yet."""
    if answers(address):
        return True
    maintenance = PostgresAddress(address.host, address.port, "postgres", address.user, address.password)
    try:
        with psycopg.connect(maintenance.url, connect_timeout=2, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(address.database)))
    except psycopg.Error:
        return False
    return answers(address)


def find_programs(environ: Mapping[str, str]) -> Path:
    """Return the folder of `initdb` and `postgres`.

    The search order is: the PATH, the folder of `pg_config --bindir`, Debian's folders. Among Debian's folders, the
    newest Postgres version comes first.

    Raises:
        ServerError: the programs are not installed.
    """
    folders: list[Path] = []
    path = environ.get("PATH")
    if program := shutil.which("postgres", path=path):
        folders.append(Path(program).resolve().parent)
    if config := shutil.which("pg_config", path=path):
        bindir = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False).stdout.strip()
        folders.append(Path(bindir or "/nonexistent"))
    versions = [folder for folder in Path("/usr/lib/postgresql").glob("*") if folder.name.isdigit()]
    folders += [folder / "bin" for folder in sorted(versions, key=lambda folder: -int(folder.name))]
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise ServerError(
        "Postgres' initdb and postgres are not found: install postgresql (apt) or set TIDEMILL_POSTGRES_URL"
    )


def server_user() -> str | None:
    """Return the user that runs the server, or None for the current user.

    Raises:
        ServerError: there is no suitable user.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ServerError(
        "Postgres refuses to run as root and there is neither a user postgres nor nobody: run as another user"
    )


def _home(data_dir: Path, user: str | None) -> Path:
    link = data_dir / "postgres"
    home = link
    if link.is_symlink():
        home = link.resolve()
    elif user and not link.exists() and not _may_enter(data_dir.resolve(), user):
        home = _ROOT_HOME / hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
        _ROOT_HOME.mkdir(mode=0o711, parents=True, exist_ok=True)
        link.symlink_to(home)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if user:
        shutil.chown(home, user)
    return home


def _may_enter(folder: Path, user: str) -> bool:
    entry = pwd.getpwnam(user)
    for ancestor in (folder, *folder.parents):
        status = ancestor.stat()
        shift = 6 if status.st_uid == entry.pw_uid else 3 if status.st_gid == entry.pw_gid else 0
        if not status.st_mode >> shift & 1:
            return False
    return True


def _password(path: Path) -> str:
    if not path.exists():
        write_atomic(path, secrets.token_urlsafe(24), mode=0o600)
    return read_text(path).strip()


def _initialise(programs: Path, home: Path, password: str, *, user: str | None) -> None:
    data, partial, password_file = home / "data", home / "data.partial", home / "initdb.password"
    if data.exists():
        return
    shutil.rmtree(partial, ignore_errors=True)
    write_atomic(password_file, password, mode=0o600)
    if user:
        shutil.chown(password_file, user)
    command = [str(programs / "initdb"), "-D", str(partial), "-U", _ADMIN, f"--pwfile={password_file}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    group = pwd.getpwnam(user).pw_gid if user else None
    extra: list[str] | None = [] if user else None
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=home, user=user, group=group, extra_groups=extra
    )
    password_file.unlink()
    if result.returncode != 0:
        raise ServerError(f"initdb in {data} failed:\n{(result.stdout + result.stderr)[-2000:]}")
    partial.rename(data)
