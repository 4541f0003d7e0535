"""The command `tidemill up`: runs pipelines on this machine until the command is stopped.

`up` starts Kafka, Postgres and Redis unless the environment names them. `up` also applies edits of the
pipelines' files.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tidemill_operator.cli.main import EXIT_USAGE, CommandError
from tidemill_operator.cli.options import add_data_dir
from tidemill_operator.laptop import ports
from tidemill_operator.laptop.options import Options
from tidemill_operator.laptop.pipeline_files import FilesContent, PipelineFiles
from tidemill_operator.laptop.run import Run
from tidemill_operator.laptop.servers import ServerError
from tidemill_operator.processes.files import LockTaken, locked
from tidemill_operator.settings import Platform

_TICK_SECONDS = 0.2
_DESCRIPTION = """\
Run pipelines on this machine. TIDEMILL_KAFKA_BROKERS, TIDEMILL_POSTGRES_URL (with an administrator's login) and
TIDEMILL_REDIS_URL name the servers. A server that is not named is started on a free loopback port, with its data below
--data-dir. Edits of the files are applied while it runs. Ctrl-C or SIGTERM stops everything. The data is kept, and the
next `up` continues from there.
"""
_EPILOG = """\
examples:
  tidemill up -f crds/examples/flights.yaml
  tidemill up -f a.yaml -f b.yaml --data-dir /tmp/demo --ready-file ready.json
"""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "up",
        help="run pipelines on this machine",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-f",
        "--file",
        dest="files",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="YAML or JSON file of one or more pipelines; may be repeated",
    )
    add_data_dir(parser, "folder for state, logs and the local servers' data")
    parser.add_argument(
        "--ready-file",
        type=Path,
        metavar="PATH",
        help="file for the endpoints, written as soon as every pipeline is ready or has failed",
    )
    ports.add_options(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address where the processes listen; default: 127.0.0.1 (in containers, use 0.0.0.0 and auth.required)",
    )
    parser.add_argument("--targets-file", type=Path, metavar="PATH", help="file for Prometheus' scrape targets")
    parser.add_argument(
        "--resilience",
        type=Path,
        metavar="FILE",
        help="file with settings of circuit breakers, retries and timeouts;"
        " default: config/resilience.yaml if it exists",
    )


def run(args: argparse.Namespace) -> int:
    """Run the pipelines until a signal arrives.

    Raises:
        CommandError: a file is invalid, the data folder or a port is in use, or a server cannot be started.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    options = Options.of(args)
    try:
        files = PipelineFiles(args.files, limits=Platform.from_env(os.environ).limits)
        content = files.poll()
        if content is None or content.faults:
            raise CommandError("\n".join(content.faults if content else ()), code=EXIT_USAGE)
        with _StopSignals() as stopping, locked(options.data_dir / "lock"):
            _run(options, files, content, stopping)
    except LockTaken as error:
        where = f"another `tidemill up` uses {options.data_dir} ({error})"
        raise CommandError(f"{where}; stop it, or choose another --data-dir") from error
    except (ServerError, ValueError) as error:
        raise CommandError(str(error)) from error
    return 0


class _InterruptedStart(BaseException):
    """The exception for a signal that arrives while `up` is still starting."""


class _StopSignals:
    """Turns SIGINT and SIGTERM into a clean stop."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._starting = True
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        return kind is _InterruptedStart

    def mark_started(self) -> None:
        self._starting = False

    def wait(self, seconds: float) -> bool:
        return self._requested.wait(seconds)

    def _handle(self, _number: int, _frame: object) -> None:
        self._requested.set()
        if self._starting:
            self._starting = False
            raise _InterruptedStart


def _run(options: Options, files: PipelineFiles, content: FilesContent, stopping: _StopSignals) -> None:
    _remove(options.ready_file)
    current = Run.start(options, environ=os.environ, say=_say)
    try:
        stopping.mark_started()
        _say("requests need an API key only if spec.auth.required is true (on a laptop the default is false)")
        current.submit(content)
        _loop(current, files, stopping)
    finally:
        _say("stopping")
        _remove(options.ready_file)
        current.close()


def _loop(current: Run, files: PipelineFiles, stopping: _StopSignals) -> None:
    while not stopping.wait(_TICK_SECONDS):
        content = files.poll()
        if content is not None:
            current.submit(content)
        current.step()


def _remove(path: Path | None) -> None:
    if path is not None:
        path.unlink(missing_ok=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
