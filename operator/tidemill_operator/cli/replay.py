"""The command `tidemill replay`, which computes aggregations again from the events in the topic."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tidemill_operator.cli.explain import find_pipeline
from tidemill_operator.cli.main import EXIT_ERROR, CommandError
from tidemill_operator.cli.options import add_data_dir
from tidemill_operator.cli.status import is_running, progress_text, read_state
from tidemill_operator.errors import TidemillError
from tidemill_operator.laptop.requests import Requests
from tidemill_operator.plan.replay import DONE, REPLAY, name_prefix, read_request

EXIT_MISSED = 3
_POLL_SECONDS = 0.5
_PRINT_SECONDS = 5.0
# `up` may have to finish a running pass before it handles the request.
_BEGIN_SECONDS = 60.0
_DESCRIPTION = """\
Fill the next version of aggregations from the events that the topic still holds, with the current spec, and switch to
it when it has caught up. Live traffic continues: until the switch, events are counted into the current version, and the
API reads it. Events that were late the first time count as well. Progress is printed; Ctrl-C ends the printing, not the
replay. Exit code 0: done, 1: not done, 3: done, but without events that the topic no longer held.
"""
_EPILOG = """\
examples:
  tidemill replay flights
  tidemill replay flights --aggregation by_carrier --from 2026-03-01T00:00:00Z --rate 20000
  tidemill replay flights --cancel
"""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "replay",
        help="compute aggregations again from the events in the topic",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline", metavar="NAME", help="the pipeline: name, or namespace/name")
    parser.add_argument(
        "--aggregation",
        dest="aggregations",
        action="append",
        metavar="NAME",
        help="aggregation to compute again; may be repeated; default: all aggregations of the pipeline",
    )
    parser.add_argument(
        "--from",
        dest="start",
        default="earliest",
        metavar="WHERE",
        help="start of the replay: earliest, or an arrival time in Kafka (RFC 3339); default: earliest",
    )
    parser.add_argument(
        "--rate", type=int, default=0, metavar="N", help="at most N events per second; default: no limit"
    )
    parser.add_argument("--cancel", action="store_true", help="cancel the running replay")
    parser.add_argument("--no-wait", action="store_true", help="request the replay and return")
    add_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """Request a replay from the running `up`, and print its progress.

    Raises:
        CommandError: `up` is not running, the pipeline or aggregation does not exist, or the replay was cancelled.
    """
    key, pipeline = _pipeline(args.data_dir, args.pipeline)
    requests, (namespace, _, name) = Requests(args.data_dir / "requests"), key.partition("/")
    if args.cancel:
        requests.write(namespace, name, REPLAY, None)
        print(f"{key}: the replay request is withdrawn")
        return 0
    running = pipeline["replay"]
    if running and running["phase"] != DONE:
        raise CommandError(
            f"{key} is being replayed: {progress_text(running)}; wait for the replay, or cancel it with --cancel"
        )
    request = {"from": args.start, "rate": args.rate, "at": dt.datetime.now(dt.UTC).isoformat()}
    if args.aggregations:
        request["aggregations"] = args.aggregations
    text = json.dumps(request)
    try:
        read_request(text, [item["name"] for item in pipeline["aggregations"]])
    except TidemillError as error:
        raise CommandError(str(error)) from error
    requests.write(namespace, name, REPLAY, text)
    if args.no_wait:
        print(f"{key}: requested; `tidemill status` shows the progress")
        return 0
    return _follow(key, name_prefix(text), lambda: _pipeline(args.data_dir, key)[1])


def _pipeline(data_dir: Path, name: str) -> tuple[str, Mapping[str, Any]]:
    state = read_state(data_dir)
    if state is None or not is_running(state):
        raise CommandError(f"nothing runs with --data-dir {data_dir}: start it with `tidemill up -f FILE`")
    return find_pipeline(state["pipelines"], name)


def _follow(key: str, reader_prefix: str, read_pipeline: Callable[[], Mapping[str, Any]]) -> int:
    began_at, printed_at, text, started = time.monotonic(), -_PRINT_SECONDS, "", False
    while True:
        pipeline = read_pipeline()
        replay = pipeline["replay"] if pipeline["replay"].get("reader", "").startswith(reader_prefix) else {}
        if replay.get("phase") == DONE:
            versions = ", ".join(f"{item['name']} version {item['version']}" for item in pipeline["aggregations"])
            missed = replay.get("missed", "")
            print(f"{key}: done; in force: {versions}" + (f"; but {missed}" if missed else ""), flush=True)
            return EXIT_MISSED if missed else 0
        if replay and progress_text(replay) != text and time.monotonic() - printed_at >= _PRINT_SECONDS:
            printed_at, text = time.monotonic(), progress_text(replay)
            print(f"{key}: {text}", flush=True)
        started = started or bool(replay)
        if not replay and (started or time.monotonic() - began_at > _BEGIN_SECONDS):
            print(f"{key}: {'cancelled' if started else 'not started: see `tidemill status`'}", flush=True)
            return EXIT_ERROR
        time.sleep(_POLL_SECONDS)
