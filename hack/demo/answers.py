"""Queries the API for the demo's progress, totals and example answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import httpx
from rich import box
from rich.console import Console
from rich.table import Table
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from demo.compare import Comparison
from demo.expected import milliseconds
from demo.replay import Totals
from demo.runtime import DemoError, Platform, until

_SETTLE_SECONDS = 180.0
_CHANGE_SECONDS = 30.0


def wait_settled(client: httpx.Client, platform: Platform, acknowledged: int) -> None:
    """Wait until all events of the topic are processed, so that the lag is zero.

    Raises:
        DemoError: The events are not processed within minutes, or the topic has fewer events than were acknowledged.
    """
    ends = platform.topic_ends()
    if sum(ends.values()) < acknowledged:
        raise DemoError(f"{acknowledged} events were acknowledged, but the topic holds {sum(ends.values())}")

    def settled() -> bool:
        platform.check_alive()
        return positions(client, platform) == ends

    until(settled, seconds=_SETTLE_SECONDS, what=f"all events are processed; logs: {platform.logs}")


def wait_closed(client: httpx.Client, platform: Platform, newest: datetime) -> None:
    """Wait until the watermark is `maxDisorder` behind the newest event, and each aggregation has closed windows.

    Raises:
        DemoError: The windows are not closed within minutes.
    """
    disorder = milliseconds(platform.document["spec"]["source"]["eventTime"]["maxDisorder"])
    wanted = newest - timedelta(milliseconds=disorder)

    def closed() -> bool:
        platform.check_alive()
        description = describe(client, platform)
        watermark = description["watermark"] and datetime.fromisoformat(description["watermark"])
        return bool(watermark) and watermark >= wanted and all(a["closed_until"] for a in description["aggregations"])

    until(closed, seconds=_SETTLE_SECONDS, what=f"windows are closed; logs: {platform.logs}")


def positions(client: httpx.Client, platform: Platform) -> dict[int, int]:
    """Return the next offset of each partition, which is committed with the results."""
    progress = describe(client, platform)["progress"]
    return {row["partition"]: row["next_offset"] or 0 for row in progress["partitions"]}


@retry(
    retry=retry_if_exception_type(httpx.TransportError),
    stop=stop_after_delay(_CHANGE_SECONDS),
    wait=wait_fixed(0.5),
    reraise=True,
)
def describe(client: httpx.Client, platform: Platform) -> dict[str, Any]:
    """Return the API's description of the pipeline. Retry if the connection fails because a pod is being replaced."""
    response = client.get(f"{platform.url('api')}/v1/pipelines/{platform.name}")
    response.raise_for_status()
    return dict(response.json())


def check_accounts(client: httpx.Client, platform: Platform, totals: Totals, *, sent: int) -> list[str]:
    """Return the faults: dead letters, and counts that differ from the number of sent events."""
    faults = []
    if (totals.accepted, totals.quarantined) != (sent, 0):
        faults.append(f"{sent} events sent: {totals.accepted} accepted, {totals.quarantined} quarantined")
    progress = describe(client, platform)["progress"]
    stored = sum(platform.topic_ends().values())
    if stored != sent:
        faults.append(f"{sent} events sent, the topic holds {stored}")
    if progress["consumed"] != sent:
        faults.append(f"{sent} events sent, {progress['consumed']} processed")
    response = client.get(f"{platform.url('api')}/v1/pipelines/{platform.name}/dead-letters", params={"limit": 5})
    response.raise_for_status()
    faults += [f"dead letter: {row}" for row in response.json()["data"]]
    return faults


def print_answers(client: httpx.Client, platform: Platform, console: Console) -> None:
    """Print the first rows of the API's answer for each aggregation."""
    for aggregation in platform.document["spec"]["aggregations"]:
        url = f"{platform.url('api')}/v1/pipelines/{platform.name}/aggregates/{aggregation['name']}"
        response = client.get(url, params={"limit": 5})
        response.raise_for_status()
        _print_rows(f"{aggregation['name']}: GET {response.request.url}", response.json()["data"], console)


def _print_rows(title: str, rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # The end of each window follows from its start, because all windows have the same length.
    names = [name for name in (rows[0] if rows else ()) if name != "window_end"]
    for name in names:
        table.add_column(name, justify="right" if _is_number(rows[0][name]) else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_format(row[name]) for name in names))
    console.print(table)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _format(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.3f}"
        case str() if value.endswith("Z"):
            return value.removesuffix(":00Z").removesuffix("Z").replace("T", " ")
        case list():
            return ", ".join(f"{item['value']} {item['count']}" for item in value)
    return str(value)


def print_comparisons(comparisons: Sequence[Comparison], console: Console, *, seconds: float) -> None:
    """Print a table of the comparisons."""
    title = f"compared with a batch recomputation, in {seconds:.1f} s"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("aggregation", "windows", "of them open", "values compared", "differences"):
        table.add_column(name, justify="left" if name == "aggregation" else "right")
    for row in comparisons:
        table.add_row(
            row.aggregation, f"{row.answered:,}", f"{row.open_windows:,}", f"{row.values:,}", f"{row.wrong:,}"
        )
    console.print(table)
