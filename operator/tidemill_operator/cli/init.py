"""The command `tidemill init`: drafts a pipeline from a file or a topic.

With `--run`, the command also runs the pipeline.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from tidemill_contract.events.timestamps import check_zone
from tidemill_contract.files import read_text
from tidemill_contract.resource.documents import MAX_BYTES
from tidemill_contract.resource.faults import one_line
from tidemill_operator.actuators.kafka.samples import newest_values
from tidemill_operator.cli.main import EXIT_USAGE, CommandError
from tidemill_operator.cli.options import add_data_dir
from tidemill_operator.cli.status import is_running, read_state
from tidemill_operator.errors import TidemillError
from tidemill_operator.event_files.content import EventFileError
from tidemill_operator.event_files.event_file import FORMATS, EventFile, ReadOptions, decode_or_none
from tidemill_operator.inference.columns import Sample, collect
from tidemill_operator.inference.document import NothingFound, Origin, draft
from tidemill_operator.inference.envelopes import unwrap_events
from tidemill_operator.inference.naming import pipeline_name
from tidemill_operator.inference.zone import local_zone
from tidemill_operator.laptop import ports
from tidemill_operator.settings import Platform

_MAX_RECORDS = 10_000
_FILE_NAME = (os.sep, ".csv", ".tsv", ".txt", ".json", ".ndjson", ".jsonl", ".parquet", ".gz")
_DESCRIPTION = """\
Draft a pipeline from your own events. Fields, paths, types, time formats, a key, the event time, a window and metrics
are chosen from a sample of the events. The pipeline is valid and has comments. Without --output it is written to
standard output. With --run, `up` runs it, `send` sends the file, and Ctrl-C stops both.
"""
_EPILOG = """\
examples:
  tidemill init --from orders.csv
  tidemill init --from orders.csv --run
  tidemill init --from events.ndjson --output events.yaml --name clicks --zone Europe/Berlin
  TIDEMILL_KAFKA_BROKERS=broker:9092 tidemill init --from shop.clicks --output clicks.yaml
"""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "init",
        help="draft a pipeline from your own events",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="FILE|TOPIC",
        help="CSV, NDJSON, JSON or Parquet file, - for standard input, or the name of a topic in Kafka",
    )
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="file to write; an existing file is never overwritten; default"
        " with --run: NAME.yaml"
    )  # fmt: skip
    parser.add_argument("--name", metavar="NAME", help="the pipeline's name; default: from the file's or topic's name")
    parser.add_argument(
        "--zone",
        metavar="ZONE",
        help="time zone, such as Europe/Berlin, for times that name no zone; default: this machine's time zone",
    )
    parser.add_argument(
        "--run",
        action="store_true",
        dest="run_pipeline",
        help="also run the pipeline (`up`) and send the events to it (`send`)",
    )
    add_data_dir(parser, "data folder of the running `up`, or of the `up` that --run starts")
    ports.add_options(parser.add_argument_group("options of `up`, for --run"))
    add_read_options(parser)


def add_read_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options for reading a file."""
    parser.add_argument(
        "--format", choices=FORMATS, help="format of the file; default: detected from the file's beginning and name"
    )
    parser.add_argument(
        "--encoding", metavar="NAME", help="encoding of a CSV or JSON file, such as cp1252; default: detected"
    )
    parser.add_argument(
        "--delimiter", metavar="CHARACTER", help="character that separates the cells of CSV; default: detected"
    )


def read_options(args: argparse.Namespace) -> ReadOptions:
    """Return the options for reading a file.

    Raises:
        CommandError: the delimiter is not a single character.
    """
    delimiter = "\t" if args.delimiter in ("\\t", "tab") else args.delimiter
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise CommandError(f"--delimiter {args.delimiter!r}: write one character, or tab", code=EXIT_USAGE)
    return ReadOptions(args.format, args.encoding, delimiter)


def run(args: argparse.Namespace) -> int:
    """Draft the pipeline, write or print it, and run it if requested.

    Raises:
        CommandError: the source is missing or has no event, or the output exists with different content.
    """
    if args.run_pipeline and (args.source == "-" or Path(args.source).is_fifo()):
        problem = "--run cannot read a pipe twice: write the pipe's content to a file"
        raise CommandError(problem, code=EXIT_USAGE)
    if args.name and pipeline_name(args.name) != args.name:
        remedy = "use at most 40 characters (a-z, 0-9 and -), such as " + pipeline_name(args.name)
        raise CommandError(f"--name {args.name}: not a valid pipeline name; {remedy}", code=EXIT_USAGE)
    zone = args.zone or local_zone()
    try:
        check_zone(zone)
    except ValueError as error:
        raise CommandError(f"--zone {zone}: {error}", code=EXIT_USAGE) from None
    path = _source_path(args.source)
    name = args.name or pipeline_name(_stem(path) if path is not None else _topic_stem(args.source))
    output = args.output or (Path(f"{name}.yaml") if args.run_pipeline else None)
    try:
        is_topic = path is None and args.source != "-"
        text = _draft_from_topic(args, name, zone) if is_topic else _draft_from_file(args, path, name, zone)
    except (EventFileError, NothingFound, TidemillError) as error:
        raise CommandError(str(error)) from None
    if output is None:
        print(text, end="")
        return 0
    _write(output, text)
    print(f"wrote {output}: types, event time, groups and metrics are guesses, so check them", flush=True)
    if not args.run_pipeline:
        return 0
    from tidemill_operator.cli.init_run import run_and_send  # avoids an import cycle

    return run_and_send(args, output, name, path)


def _source_path(source: str) -> Path | None:
    """Return the file that `source` names, or None for the standard input or a topic."""
    if source == "-":
        return None
    path = Path(source)
    if path.is_dir():
        raise CommandError(f"{source} is a folder; name a file in it")
    if path.exists():
        return path
    if any(part in source.lower() for part in _FILE_NAME):
        raise CommandError(f"{source}: there is no such file; check the path")
    return None


def _draft_from_file(args: argparse.Namespace, path: Path | None, name: str, zone: str) -> str:
    with EventFile(path, read_options(args)) as file:
        table = file.table
        decimals = None if table is None else dict(zip(table.columns, table.dialect.decimals, strict=True))
        values = (value for _, value in file.numbered_values())
        envelope, rows = unwrap_events(values) if table is None else ("none", values)
        sample = collect(rows, decimals=decimals)
        format_description = file.description
        for warning in file.warnings:
            print(f"tidemill init: {file.name}: {warning}", file=sys.stderr)
    output = shlex.quote(str(args.output or f"{name}.yaml"))
    hints = f"tidemill up -f {output}", f"tidemill send -f {shlex.quote(args.source)} --pipeline {name}"
    origin = Origin(
        label=args.source if path is not None else "standard input",
        envelope=envelope,
        format_description=format_description,
        name=name,
        zone=zone,
        zone_assumed=args.zone is None,
        hints=tuple(map(one_line, hints)),
    )
    return draft(sample, origin, _now_ms())


def _draft_from_topic(args: argparse.Namespace, name: str, zone: str) -> str:
    """Draft a pipeline that reads an existing topic."""
    topic, state = args.source, read_state(args.data_dir)
    platform = _platform()
    brokers = platform.kafka_brokers
    if not brokers and state is not None and is_running(state):
        brokers = str(state["addresses"]["kafka"])
    if not brokers:
        remedy = "set TIDEMILL_KAFKA_BROKERS to host:port of the Kafka that has the topic, or correct the path"
        raise CommandError(f"{topic} is not a file, and no Kafka address is set for reading a topic; {remedy}")
    print(f"{topic} is not a file: reading the newest {_MAX_RECORDS:,} records of the topic", file=sys.stderr)
    values = list(newest_values(brokers, topic, limit=_MAX_RECORDS, config=platform.kafka_config))
    if sum(value[:1] == b"\0" for value in values) > len(values) / 2:
        remedy = "write source.format with its type and registry (docs/record-formats.md), and the fields of the schema"
        reason = "its records were written with a schema registry, but `init` can read only JSON records"
        raise CommandError(f"{topic}: {reason}; {remedy}")
    envelope, rows = unwrap_events(map(decode_or_none, values))
    sample: Sample = collect(rows)
    namespace = topic.partition(".")[0] if "." in topic else None
    has_namespace = topic.startswith(f"{namespace}.") and pipeline_name(namespace or "") == namespace
    hints = [f"tidemill up -f {shlex.quote(str(args.output or f'{name}.yaml'))}"]
    if not has_namespace and not platform.limits.may_manage(topic, "default") and not platform.limits.may_read(topic):
        hints.insert(0, f"export TIDEMILL_READABLE_TOPICS={shlex.quote(topic)}  # allows reading a topic of this name")
    origin = Origin(
        label=f"topic {topic}",
        format_description="JSON records, the newest of each partition",
        name=name,
        namespace=namespace if has_namespace else None,
        topic=topic,
        envelope=envelope,
        zone=zone,
        zone_assumed=args.zone is None,
        hints=tuple(map(one_line, hints)),
    )
    return draft(sample, origin, _now_ms())


def _platform() -> Platform:
    try:
        return Platform.from_env(os.environ)
    except ValueError as error:
        raise CommandError(str(error), code=EXIT_USAGE) from None


def _now_ms() -> int:
    return int(time.time() * 1000)


def _stem(path: Path) -> str:
    return path.name.partition(".")[0] or path.name


def _topic_stem(topic: str) -> str:
    """Return `orders` for the topic `shop.orders.events`."""
    return topic.partition(".")[2].removesuffix(".events") or topic


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        if _content(path) != text:
            remedy = "name another --output, or remove the file"
            raise CommandError(f"{path} exists, and differs from the new draft; {remedy}") from None
    except OSError as error:
        raise CommandError(f"{path} cannot be written ({error.strerror}); name another --output") from None


def _content(path: Path) -> str | None:
    try:
        return read_text(path, MAX_BYTES)
    except (OSError, UnicodeDecodeError):
        return None
