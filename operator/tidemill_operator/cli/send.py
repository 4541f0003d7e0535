"""The command `tidemill send`, which sends the events of a file to a pipeline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill_contract.files import read_text
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.cli.explain import find_pipeline
from tidemill_operator.cli.init import add_read_options, read_options
from tidemill_operator.cli.main import EXIT_ERROR, EXIT_USAGE, CommandError
from tidemill_operator.cli.options import add_data_dir
from tidemill_operator.cli.status import is_running, read_state
from tidemill_operator.event_files.content import EventFileError
from tidemill_operator.event_files.event_file import CSV, NDJSON, EventFile, ReadOptions
from tidemill_operator.laptop.pipeline_files import PipelineFiles
from tidemill_operator.laptop.store import Store
from tidemill_operator.sending.client import Client, SendError
from tidemill_operator.sending.progress import Progress
from tidemill_operator.sending.sender import Sender, SendOptions, Summary

EXIT_REFUSED = 3
_MAX_WORKERS = 32
_DESCRIPTION = """\
Send the events of a file to a pipeline: CSV, NDJSON, a JSON array or Parquet, also compressed with gzip. The pipeline's
fields define how the cells of CSV are read. Each batch has an Idempotency-Key, made from the file and the batch's place
in it, so events that are sent again within a day count once. Exit code 0: all events were accepted, 3: some became dead
letters, 1: not all were sent.
"""
_EPILOG = """\
examples:
  tidemill send -f orders.csv
  tidemill send -f events.ndjson.gz --pipeline clicks --rate 2000 --workers 4
  tidemill send -f big.parquet --pipeline clicks --resume big.position
  tidemill send -f orders.csv --pipeline orders --url https://ingest.example.com --spec orders.yaml --api-key-file key
  producer | tidemill send -f - --pipeline clicks
"""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "send",
        help="send the events of a file to a pipeline",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-f",
        "--file",
        required=True,
        metavar="FILE",
        help="file with the events; - for standard input (default format: NDJSON)",
    )
    parser.add_argument(
        "--pipeline", metavar="NAME", help="the pipeline: name, or namespace/name; default: the only pipeline that runs"
    )
    _add_target(parser)
    parser.add_argument("--rate", type=float, metavar="N", help="at most N events per second; default: no limit")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="number of requests at a time; with more than 1, batches may arrive out of order; default: 1",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="PATH",
        help="resume file: stores how far FILE was sent, and the next run continues from there",
    )
    parser.add_argument("--again", action="store_true", help="send events that were sent before, and count them again")
    add_data_dir(parser)
    add_read_options(parser)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", metavar="INGEST", help="URL of ingest; default: the URL of the running `up`")
    parser.add_argument(
        "--spec",
        type=Path,
        metavar="FILE",
        help="YAML file of the pipeline, required for CSV with --url; default: the YAML of the running `up`",
    )
    parser.add_argument("--api-key-file", type=Path, metavar="PATH", help="file with an API key of the pipeline")


@dataclass(frozen=True)
class Target:
    """The pipeline to which events are sent, with the URLs of ingest and the API."""

    url: str
    pipeline: str
    fields: Sequence[FieldSpec]
    api: str = ""


def run(args: argparse.Namespace) -> int:
    """Send the file, and print how many of its events were accepted.

    Raises:
        CommandError: the file, the pipeline or ingest does not exist, or an option is wrong.
    """
    _check(args)
    path = None if args.file == "-" else Path(args.file)
    file_options = read_options(args)
    if path is None and file_options.format is None:
        file_options = ReadOptions(NDJSON, file_options.encoding, file_options.delimiter)
    target = _target(args)
    options = SendOptions(
        path=path,
        pipeline=target.pipeline,
        fields=target.fields,
        rate=args.rate,
        workers=args.workers,
        resume=args.resume,
        resend=args.again,
    )
    client = Client(target.url, target.pipeline, api_key=_api_key(args.api_key_file))
    try:
        with EventFile(path, file_options) as file:
            if file.format == CSV and not target.fields:
                raise CommandError(
                    "the fields of the pipeline are unknown; name its YAML: --spec FILE", code=EXIT_USAGE
                )
            return send(file, client, options, api=target.api)
    except EventFileError as error:
        raise CommandError(str(error)) from None
    finally:
        client.close()


def send(file: EventFile, client: Client, options: SendOptions, *, api: str, sender: Sender | None = None) -> int:
    """Send an open file, print the summary, and return the exit code.

    Args:
        file: the open file.
        client: the client of ingest.
        options: the pipeline that gets the events, and options such as the rate.
        api: URL of the API for the message about dead letters, or empty if unknown.
        sender: sender of the events, or None to create a sender from `client` and `options`.
    """
    if file.table is not None:
        _print_unused_columns(file, options)
    sender = sender or Sender(file, client, options, Progress(lambda: file.fraction_read))
    problem = ""
    try:
        sender.run()
    except (SendError, EventFileError) as error:
        problem = str(error)
    except KeyboardInterrupt:
        problem = "interrupted"
    print(_summary_text(sender.summary, file.name, options, api), flush=True)
    for warning in file.warnings:
        print(f"tidemill send: {file.name}: {warning}", file=sys.stderr, flush=True)
    if file.incomplete_line is not None:
        line = f"{file.event_label} {file.incomplete_line}"
        message = f"{line} is incomplete and was not sent; complete it, and run the command again"
        print(f"tidemill send: {message}", file=sys.stderr, flush=True)
    if problem:
        print(f"tidemill send: {problem}; {_resume_hint(options)}", file=sys.stderr, flush=True)
        return EXIT_ERROR
    return EXIT_REFUSED if sender.summary.refused else 0


def _check(args: argparse.Namespace) -> None:
    problem = ""
    if args.rate is not None and not 0 < args.rate < 1e9:
        problem = f"--rate {args.rate:g}: write a number of events above 0"
    elif not 1 <= args.workers <= _MAX_WORKERS:
        problem = f"--workers {args.workers}: write 1 to {_MAX_WORKERS}"
    elif args.resume is not None and (args.file == "-" or Path(args.file).is_fifo()):
        problem = "--resume: a pipe cannot be read again; write its content to a file first"
    elif args.url is not None and args.pipeline is None:
        problem = "--url needs --pipeline NAME too"
    if problem:
        raise CommandError(problem, code=EXIT_USAGE)


def _target(args: argparse.Namespace) -> Target:
    """Return the address of ingest: from the options, or else from the process of `tidemill up`."""
    spec = None if args.spec is None else _fields_of(args.spec, args.pipeline)
    if args.url is not None:
        return Target(args.url, args.pipeline.rpartition("/")[2], spec or ())
    state = read_state(args.data_dir)
    if state is None or not is_running(state):
        remedy = "start it with `tidemill up -f FILE`, or give the URL of ingest with --url"
        raise CommandError(f"nothing runs with --data-dir {args.data_dir}: {remedy}")
    pipelines = state["pipelines"]
    if args.pipeline is None and len(pipelines) != 1:
        raise CommandError(f"several pipelines run: write --pipeline with one of {', '.join(sorted(pipelines))}")
    key, pipeline = find_pipeline(pipelines, args.pipeline or next(iter(pipelines)))
    endpoints = pipeline["endpoints"]
    stored = next((stored for stored in Store(args.data_dir / "state") if stored.key == key), None)
    source = None if stored is None else AnalyticsPipeline.model_validate(stored.document).spec.source
    if source is not None and source.is_multi_topic:
        what, topics = ("list", ", ".join(source.topics)) if source.topics else ("pattern", source.topic_pattern)
        remedy = f"write to one of {topics}" if source.topics else f"write to a topic that {topics} matches"
        raise CommandError(f"{key} reads a {what} of topics, so it takes no events over HTTP; {remedy}")
    if "ingest" not in endpoints:
        raise CommandError(f"{key} takes no events over HTTP; set spec.ingest.enabled, or wait until it is ready")
    fields = spec or ([] if source is None else source.fields)
    return Target(endpoints["ingest"], key.partition("/")[2], fields, endpoints.get("api", ""))


def _fields_of(path: Path, name: str | None) -> Sequence[FieldSpec]:
    content = PipelineFiles([path]).poll()
    if content is None or content.faults:
        raise CommandError("\n".join(content.faults if content else ()), code=EXIT_USAGE)
    documents = content.documents
    key, _ = find_pipeline({key: {} for key in documents}, name or next(iter(documents), ""))
    return AnalyticsPipeline.model_validate(documents[key]).spec.source.fields


def _api_key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return read_text(path).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--api-key-file {path}: cannot be read ({error})", code=EXIT_USAGE) from None


def _print_unused_columns(file: EventFile, options: SendOptions) -> None:
    writer = file.writer(options.fields)
    if writer.unused_columns:
        print(f"columns that no field reads are left out: {', '.join(writer.unused_columns)}", file=sys.stderr)
    if writer.unmatched_fields:
        print(f"fields that no column fills: {', '.join(writer.unmatched_fields)}", file=sys.stderr)


def _summary_text(summary: Summary, name: str, options: SendOptions, api: str) -> str:
    events = summary.accepted + summary.refused
    speed = f" ({events / summary.seconds:,.0f} a second)" if summary.seconds > 0.001 else ""
    lines = [
        f"{name}: sent {events:,} events to {options.pipeline} in {summary.seconds:.1f} s{speed}:"
        f" {summary.accepted:,} accepted, {summary.refused:,} refused"
    ]
    if summary.skipped:
        lines.append(f"  {summary.skipped:,} events were sent earlier, according to {options.resume}")
    if summary.replayed:
        lines.append(
            f"  {summary.replayed:,} events were sent before and are not counted again; --again counts all events again"
        )
    if summary.unsure:
        lines.append(
            f"  {summary.unsure:,} events may be counted twice, because ingest was killed before it confirmed them"
        )
    lines += [f"  {refusal}" for refusal in summary.refusals]
    if summary.refused > len(summary.refusals):
        lines.append(f"  … and {summary.refused - len(summary.refusals):,} more")
    if summary.refused:
        where = f"{api}/v1/pipelines/{options.pipeline}/dead-letters" if api else "the API's list of dead letters"
        lines.append(f"  {where} shows the reason of each refusal")
    return "\n".join(lines)


def _resume_hint(options: SendOptions) -> str:
    if options.path is None:
        return "standard input cannot be resumed: run the command again with the events that were not sent"
    if options.resume is not None:
        return f"the same command continues from {options.resume}"
    return "the same command sends the file again, and events that were already sent count only once"
