"""`tidemill up`: runs pipelines on this machine until it is told to stop.

Starts what is missing of Kafka, Postgres and Redis, reconciles each pipeline of the given files through the same
`reconcile()` that serves Kubernetes, follows edits of the files, and ends everything it started.
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
from tidemill_operator.cli.sources import Sources
from tidemill_operator.cli.up_run import Run
from tidemill_operator.local.files import LockTaken, locked
from tidemill_operator.servers import ServerError

_TICK_SECONDS = 0.2
_DESCRIPTION = """\
Run pipelines on this machine. Kafka, Postgres and Redis are those named by TIDEMILL_KAFKA_BROKERS,
TIDEMILL_POSTGRES_URL (with an administrator's login) and TIDEMILL_REDIS_URL; what is not named is started, on free
loopback ports, with its data below --data-dir. Edits of the files are applied while it runs. Ctrl-C or SIGTERM stops
everything; the data stays, and the next `up` goes on from there.
"""
_EPILOG = """\
examples:
  tidemill up -f crds/examples/flights.yaml
  tidemill up -f a.yaml -f b.yaml --data-dir /tmp/demo --ready-file ready.json
"""


class _Stopped(BaseException):
    """A signal asked us to end while we were still starting."""


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
        "-f", "--file", dest="files", type=Path, action="append", required=True, metavar="FILE", help="may be repeated"
    )
    parser.add_argument("--data-dir", type=Path, default=Path(".tidemill"), metavar="DIR", help="default: .tidemill")
    parser.add_argument("--ready-file", type=Path, metavar="PATH", help="write the endpoints here when all is ready")
    parser.add_argument(
        "--port-ingest", type=int, default=8080, metavar="N", help="default: 8080, or the next free one"
    )
    parser.add_argument("--port-api", type=int, default=8081, metavar="N", help="default: 8081, or the next free one")
    parser.add_argument(
        "--resilience", type=Path, metavar="FILE", help="default: config/resilience.yaml if it is there"
    )


def run(args: argparse.Namespace) -> int:
    """Run until a signal comes.

    Raises:
        CommandError: a file is invalid, the data folder is in use, or a server cannot be started.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    sources = Sources(args.files)
    reading = sources.poll()
    if reading is None or reading.faults:
        raise CommandError("\n".join(reading.faults if reading else ()), code=EXIT_USAGE)
    if args.ready_file is not None:
        args.ready_file.unlink(missing_ok=True)
    stopping = threading.Event()
    starting = threading.Event()
    starting.set()

    def stop(_number: int, _frame: object) -> None:
        stopping.set()
        if starting.is_set():
            starting.clear()
            raise _Stopped

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    data_dir = args.data_dir.absolute()
    current: Run | None = None
    try:
        with locked(data_dir / "lock"):
            try:
                current = Run(data_dir, args=args, environ=os.environ, say=_say)
                current.start()
                starting.clear()
                current.take(reading)
                _loop(current, sources, stopping)
            except _Stopped:
                pass
            finally:
                starting.clear()
                if current is not None:
                    _say("stopping")
                    current.close()
                if args.ready_file is not None:
                    args.ready_file.unlink(missing_ok=True)
    except _Stopped:
        return 0
    except LockTaken as error:
        raise CommandError(
            f"another `tidemill up` uses {data_dir} ({error}); stop it, or choose another --data-dir"
        ) from error
    except (ServerError, ValueError) as error:
        raise CommandError(str(error)) from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _loop(current: Run, sources: Sources, stopping: threading.Event) -> None:
    while not stopping.is_set():
        reading = sources.poll()
        if reading is not None:
            current.take(reading)
        current.step()
        stopping.wait(_TICK_SECONDS)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
