"""The command `tidemill validate`, which validates resource files and prints one line per fault."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tidemill_contract.files import FileTooLarge, read_bytes, read_stream
from tidemill_contract.resource.documents import MAX_BYTES
from tidemill_contract.resource.faults import ABSENT, one_line
from tidemill_contract.resource.validate import DocumentError, Fault, TopicLimits, check_document, load_documents


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    text = "check AnalyticsPipeline files; if there are faults, print a line for each and exit with code 2"
    parser = subparsers.add_parser("validate", help=text)
    parser.add_argument("files", nargs="+", metavar="FILE", help="YAML or JSON file; - for standard input")
    parser.add_argument(
        "--allow-topic-prefix",
        action="append",
        default=[],
        metavar="PREFIX",
        help="allow source topics with this prefix, besides '<namespace>.'",
    )
    parser.add_argument(
        "--allow-topic",
        action="append",
        default=[],
        metavar="PATTERN",
        help="pattern of other owners' topics that pipelines may read with managed: false, such as 'crm.*'",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Validate every file. Return 0 if all files are valid, else 2."""
    limits = TopicLimits(tuple(args.allow_topic_prefix), tuple(args.allow_topic))
    results = [_validate_file(name, limits) for name in args.files]
    return 0 if all(results) else 2


def _validate_file(name: str, limits: TopicLimits) -> bool:
    label = one_line("<stdin>" if name == "-" else name)
    try:
        documents = load_documents(_read(name))
    except FileTooLarge as error:
        faults = [Fault("", ABSENT, str(error.strerror), "split the file, or check the path")]
        documents = []
    except OSError as error:
        faults = [Fault("", ABSENT, f"cannot be read: {error.strerror or error}", "check the path")]
        documents = []
    except UnicodeDecodeError:
        faults = [Fault("", ABSENT, "is not UTF-8 text", "save it as UTF-8")]
        documents = []
    except DocumentError as error:
        faults, documents = error.faults, []
    else:
        faults = []
    keys: set[tuple[str, str]] = set()
    for number, document in enumerate(documents, 1):
        prefix = f"document[{number}]." if len(documents) > 1 else ""
        pipeline, document_faults = check_document(document, limits)
        faults += [_prefix_path(prefix, fault) for fault in document_faults]
        if pipeline is None:
            continue
        key = (pipeline.metadata.namespace, pipeline.metadata.name)
        if key in keys:
            faults.append(
                Fault(f"{prefix}metadata.name", key[1], "the file contains this pipeline twice", "keep one of them")
            )
        keys.add(key)
    for fault in faults:
        print(f"{label}: {fault}")
    if not faults:
        print(f"{label}: ok")
    return not faults


def _prefix_path(prefix: str, fault: Fault) -> Fault:
    return Fault(f"{prefix}{fault.path}".rstrip("."), fault.value, fault.message, fault.remedy) if prefix else fault


def _read(name: str) -> str:
    data = read_stream(sys.stdin.buffer, "<stdin>", MAX_BYTES) if name == "-" else read_bytes(Path(name), MAX_BYTES)
    return data.decode("utf-8-sig")
