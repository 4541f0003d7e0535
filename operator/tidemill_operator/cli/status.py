"""The command `tidemill status`, which shows the state of a running `up`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tidemill_contract.files import MAX_STATE_FILE_BYTES, read_text
from tidemill_operator.cli.main import CommandError
from tidemill_operator.cli.options import add_data_dir, add_output
from tidemill_operator.plan.replay import REPLAYING
from tidemill_operator.processes.child import start_time

_FIGURES = ("lag", "lagSeconds", "stageLag", "freshness", "watermarkAgeSeconds", "figuresAt")
_TELEMETRY = ("lag", "freshness_seconds", "watermark")


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "status",
        help="show the pipelines of a running `up`",
        description="Show the pipelines, processes and servers of `tidemill up`. Exit code 0: all ready, 1: not all.",
        epilog="example:\n  tidemill status --output json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_dir(parser)
    add_output(parser, "text", "json")
    parser.add_argument(
        "--retained", action="store_true", help="show the data of deleted pipelines in Kafka and Postgres"
    )
    parser.add_argument(
        "--remove", metavar="NAMESPACE/NAME", help="with --retained: delete the data of this deleted pipeline"
    )


def run(args: argparse.Namespace) -> int:
    """Print the state of a running `up`.

    Raises:
        CommandError: the data folder has no state of `tidemill up`, or `--remove` lacks `--retained`.
    """
    if args.remove and not args.retained:
        raise CommandError("--remove deletes retained data; write --retained as well")
    if args.retained:
        from tidemill_operator.cli import retained  # avoids an import cycle

        return retained.run(args)
    state = read_state(args.data_dir)
    if state is None:
        raise CommandError(f"nothing runs with --data-dir {args.data_dir}: start it with `tidemill up -f FILE`")
    running = is_running(state)
    if running:
        _add_telemetry(state)
    report = {"running": running, **state}
    print(json.dumps(report, indent=1) if args.output == "json" else _text(report))
    return 0 if running and state["ready"] else 1


def read_state(data_dir: Path) -> dict[str, Any] | None:
    """Return the content of `status.json`, which `up` writes, or None if there is no such file."""
    try:
        state = json.loads(read_text(data_dir / "status.json", MAX_STATE_FILE_BYTES))
    except FileNotFoundError:
        return None
    return dict(state)


def is_running(state: Mapping[str, Any]) -> bool:
    """Return True if the report's `up` still runs."""
    return start_time(int(state["pid"])) == str(state["started"])


def _add_telemetry(state: dict[str, Any]) -> None:
    """Add the status, lag, freshness and watermark from each process's /health."""
    with httpx.Client(timeout=2.0, trust_env=False) as client:
        for process in state["workloads"].values():
            try:
                health = client.get(f"http://127.0.0.1:{process['port']}/health").json()
            except (httpx.HTTPError, ValueError) as error:
                process["health"] = f"unreachable ({type(error).__name__})"
                continue
            process["health"] = health.get("status")
            process["reasons"] = _reasons(health)
            process |= {name: health[name] for name in _TELEMETRY if name in health}


def _reasons(health: Mapping[str, Any]) -> dict[str, str]:
    rows = {name: row for name, row in health.get("dependencies", {}).items() if row.get("detail")}
    down = [name for name, row in rows.items() if row.get("status") != "up"]
    return {name: rows[name]["detail"] for name in sorted(down, key=lambda name: not rows[name].get("required"))}


def progress_text(replay: Mapping[str, Any]) -> str:
    """Describe the progress of a replay in one line."""
    done, left = replay["processed"], replay["left"]
    share = f"{100 * done // (done + left)} %" if done + left else "0 %"
    versions = ", ".join(f"{name} version {version}" for name, version in replay["versions"].items())
    handed_over = replay["partitionsHandedOver"]
    missed = f"; {replay['missed']}" if "missed" in replay else ""
    return f"{versions}: {share}, {done:,} events counted, {left:,} left, partitions handed over: {handed_over}{missed}"


def _text(state: Mapping[str, Any]) -> str:
    lines = [f"up: {'pid ' + str(state['pid']) if state['running'] else 'not running; this is the last report'}"]
    lines += [f"{name}: {address}" for name, address in state["addresses"].items()]
    for name, pipeline in state["pipelines"].items():
        lines.append(f"\npipeline {name}, generation {pipeline['generation']}")
        lines += [f"  {component}: {url}" for component, url in pipeline["endpoints"].items()]
        if figures := pipeline.get("figures"):
            lines.append("  " + ", ".join(f"{key} {figures[key]}" for key in _FIGURES if key in figures))
        if pipeline.get("replay", {}).get("phase") == REPLAYING:
            lines.append(f"  replay: {progress_text(pipeline['replay'])}")
        for connector in pipeline.get("connectors", []):
            tasks = ", ".join(f"task {task['id']} {task['state']}" for task in connector.get("tasks", []))
            lines.append(
                f"  connector {connector['name']}: {connector.get('state', 'unknown')}{f' ({tasks})' if tasks else ''}"
            )
        for condition in pipeline["conditions"]:
            text = " ".join(str(condition.get(part) or "") for part in ("reason", "message")).strip()
            lines.append(f"  {condition['type']}={condition['status']} {text}".rstrip())
    lines += ["", f"{'process':40} {'pid':>8} {'port':>6} {'ready':>6} {'restarts':>9}  health"]
    for name, process in {**state["servers"], **state["workloads"]}.items():
        telemetry = " ".join(f"{key}={process[key]}" for key in _TELEMETRY if key in process)
        lines.append(
            f"{name:40} {process['pid'] or '-':>8} {process['port']:>6} {'yes' if process.get('ready') else 'no':>6}"
            f" {process.get('restarts', 0):>9}  {process.get('health', '')} {telemetry}".rstrip()
        )
        lines += [f"  {dependency}: {detail}" for dependency, detail in process.get("reasons", {}).items()]
    return "\n".join(lines)
