"""The command `tidemill down`, which stops a running `tidemill up` and can delete the data."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from tidemill_operator.cli.main import CommandError
from tidemill_operator.cli.options import add_data_dir
from tidemill_operator.cli.status import is_running, read_state
from tidemill_operator.laptop.servers.postgres import remove_data
from tidemill_operator.processes.files import LockTaken, locked

_STOP_SECONDS = 60.0
# everything that `up` creates in its folder; other files in the folder are kept
_DATA_FOLDERS = ("kafka", "redis", "pipelines", "secrets", "state", "logs", "run")
_DATA_FILES = ("ports.json", "status.json", "postgres-admin.password", "lock")


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "down",
        help="stop a running `up`",
        description="Stop the `tidemill up` of a data folder. Data stays unless --delete-data is given.",
        epilog="example:\n  tidemill down --delete-data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_dir(parser, "data folder of the `up` to stop")
    parser.add_argument(
        "--delete-data",
        action="store_true",
        help="also delete the local servers' data (not topics and schemas on servers that the environment names)",
    )


def run(args: argparse.Namespace) -> int:
    """Stop `up`, and delete the data if requested.

    Raises:
        CommandError: `up` does not stop in time, or the folder is in use.
    """
    data_dir: Path = args.data_dir
    state = read_state(data_dir)
    if state is not None and is_running(state):
        _stop(state["pid"], state["started"])
        print(f"stopped (pid {state['pid']})")
    else:
        print(f"nothing runs with --data-dir {data_dir}")
    if args.delete_data:
        _delete(data_dir)
    return 0


def _stop(pid: int, started: str) -> None:
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while is_running({"pid": pid, "started": started}):
        if time.monotonic() > deadline:
            raise CommandError(f"process {pid} did not end within {_STOP_SECONDS:.0f} s: end it with kill -9 {pid}")
        time.sleep(0.1)


def _delete(data_dir: Path) -> None:
    if not (data_dir / "lock").exists():
        print(f"{data_dir} has no data of Tidemill")
        return
    try:
        with locked(data_dir / "lock", wait_seconds=5.0):
            remove_data(data_dir)
            for name in _DATA_FOLDERS:
                shutil.rmtree(data_dir / name, ignore_errors=True)
            for name in _DATA_FILES:
                (data_dir / name).unlink(missing_ok=True)
    except LockTaken as error:
        raise CommandError(f"{error}; stop that process first") from error
    with contextlib.suppress(OSError):  # rmdir fails if the folder has other files
        data_dir.rmdir()
    print(f"deleted the data in {data_dir}")
