"""The command `tidemill explain`, which shows why a pipeline has its number of replicas."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

from tidemill_operator.cli.main import CommandError
from tidemill_operator.cli.options import add_data_dir, add_output
from tidemill_operator.cli.status import is_running, read_state


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "explain",
        help="explain a pipeline's number of processors",
        description="Show a pipeline's last scaling decision about processors and the Python stage, with its reason.",
        epilog="examples:\n  tidemill explain flights\n  tidemill explain analytics/flights --output json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline", metavar="NAME", help="the pipeline: name, or namespace/name")
    add_data_dir(parser)
    add_output(parser, "text", "json")


def run(args: argparse.Namespace) -> int:
    """Print the decision.

    Raises:
        CommandError: no `up` runs with the data folder, or there is no such pipeline.
    """
    state = read_state(args.data_dir)
    if state is None or not is_running(state):
        raise CommandError(f"nothing runs with --data-dir {args.data_dir}: start it with `tidemill up -f FILE`")
    key, pipeline = find_pipeline(state["pipelines"], args.pipeline)
    scaling, decisions = pipeline.get("scaling") or {}, pipeline.get("decisions", [])
    stage, stage_decisions = pipeline.get("stageScaling") or {}, pipeline.get("stageDecisions", [])
    if args.output == "json":
        report = {"pipeline": key, "scaling": scaling, "decisions": decisions}
        print(json.dumps({**report, "stageScaling": stage, "stageDecisions": stage_decisions}, indent=1))
        return 0
    if scaling:
        print("\n".join([f"{key}: {scaling['message']}", *_history(decisions)]))
    if stage:
        gap = "\n" if scaling else ""
        print("\n".join([f"{gap}{key}, Python stage: {stage['message']}", *_history(stage_decisions)]))
    if not scaling and not stage:
        print(f"{key}: no decision yet: spec.processor.scaling is not set, or the pipeline is suspended or new")
    return 0


def find_pipeline(pipelines: Mapping[str, Mapping[str, Any]], name: str) -> tuple[str, Mapping[str, Any]]:
    """Return the key and the state of the pipeline with a given name or key (`namespace/name`).

    Raises:
        CommandError: no pipeline has that name, or several have it.
    """
    matches = [key for key in pipelines if name in (key, key.partition("/")[2])]
    if len(matches) == 1:
        return matches[0], pipelines[matches[0]]
    if matches:
        raise CommandError(f"'{name}' is the name of several pipelines: write one of {', '.join(sorted(matches))}")
    raise CommandError(f"no pipeline '{name}' runs here; running pipelines: {', '.join(sorted(pipelines)) or 'none'}")


def _history(decisions: list[dict[str, Any]]) -> list[str]:
    lines = ["", "decisions, latest first:"] if decisions else []
    for record in reversed(decisions):
        at = dt.datetime.fromtimestamp(record["at"], dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        changed = record["current"] != record["desired"]
        what = f"{record['current']} → {record['desired']}" if changed else f"stays at {record['current']}"
        limit = f", limited by {record['limitedBy']}" if record["limitedBy"] else ""
        needed = "" if record["need"] is None else f", needed {record['need']}"
        lines.append(f"  {at}  {what}  {record['reason']}{limit}{needed}")
    return lines
