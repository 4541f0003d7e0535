"""Plays one row: sends events, causes and ends the fault, and checks what was reported and counted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from demo.runtime import until
from faults import truth
from faults.bench import Bench
from faults.checker import Verdict
from faults.rows import Row
from faults.watch import COMPONENTS

REPORT_SECONDS, RECOVERY_SECONDS = 30.0, 10.0
# If recovery takes longer, the row fails, and the run ends.
_GIVEN_UP_SECONDS = 180.0
_HEALTHY_SECONDS = 3.0


@dataclass(frozen=True)
class Seen:
    """The observations of a row; times in seconds.

    Attributes:
        lasted: The duration of the fault.
        reported: By component, the time until the component reported the fault, or None if the component did not report
            the fault while it lasted.
        moved: The time from the end of the fault to the moment when events were counted again.
        well: The time from `moved` until everything remained healthy. If a process was killed, the time begins when the
            process serves again. It does not begin before Kafka accepts records for all partitions.
        last: The component that was the last to become healthy, with its last unhealthy report.
        still: The longest time in which no event was counted while the fault lasted.
        counted: The number of events that were counted while the fault lasted.
        said: Each component's last report while the fault lasted.
        lies: By component, the time for which it reported health, or an old figure, while nothing was counted.
        alarms: By component, the time for which it reported a fault while events were counted.
        restarted: The processes that were restarted.
    """

    lasted: float
    reported: Mapping[str, float | None]
    moved: float
    well: float
    still: float
    counted: int
    said: Mapping[str, Any]
    lies: Mapping[str, float] = field(default_factory=dict)
    alarms: Mapping[str, float] = field(default_factory=dict)
    restarted: tuple[str, ...] = ()
    last: str = ""

    @property
    def reported_after(self) -> float | None:
        """The time until all required components had reported the fault, or None if a component never did."""
        times = [at for at in self.reported.values() if at is not None]
        return max(times, default=0.0) if len(times) == len(self.reported) else None


def _is_well(on: Bench) -> bool:
    watch = on.watch
    healthy = all(watch.latest(name) == "healthy" for name in COMPONENTS)
    return healthy and watch.latest("ready") == "True" and watch.latest("gauge") is not None


def _all_well(on: Bench, since: float) -> bool:
    """Return whether all components have reported only health for some seconds."""
    watch = on.watch
    said = {name: watch.since(name, max(since, time.monotonic() - _HEALTHY_SECONDS)) for name in (*COMPONENTS, "ready")}
    return (
        all(said.values())
        and all(what == "healthy" for name in COMPONENTS for _, what in said[name])
        and all(what == "True" for _, what in said["ready"])
        and watch.latest("gauge") is not None
    )


def play(row: Row, on: Bench, *, events: int, seconds: float) -> Seen:
    """Begin the fault, end it, wait until everything is healthy, and return the observations.

    Raises:
        DemoError: The recovery takes too long.
    """
    lasts = row.seconds if row.seconds is not None else seconds
    watch = on.watch
    on.ingest.flow(on=not row.quiet)
    if not row.quiet:
        on.bulk.begin(events, max(lasts, 10.0))
    until(lambda: _is_well(on), seconds=_GIVEN_UP_SECONDS, what=f"{row.name}: all is healthy before the fault")
    on.find_leader()
    begin = time.monotonic()
    row.strike(on)
    time.sleep(max(0.0, lasts - (time.monotonic() - begin)))
    end = time.monotonic()
    said = {name: watch.latest(name) for name in (*COMPONENTS, "ready", "gauge", "status")}
    row.mend(on)
    mended = time.monotonic()
    if row.quiet:
        on.ingest.flow(on=True)
        on.bulk.begin(events, 10.0)
    moved = until(lambda: _moved(on, mended), seconds=_GIVEN_UP_SECONDS, what=f"{row.name}: events are counted again")
    until(
        lambda: _all_well(on, mended),
        seconds=_GIVEN_UP_SECONDS,
        what=f"{row.name}: all is healthy ({_state(on)})",
    )
    (well, last), back = _well_since(on, mended), _back(row, on, begin)
    ended = time.monotonic()
    reported = {who: truth.first(watch.since(who, begin), begin, end, _has(part)) for who, part in row.reports.items()}
    counted = watch.since("counted", begin - 2)
    inside = truth.stalls(counted, begin, end)
    return Seen(
        lasted=end - begin,
        reported=reported,
        moved=max(0.0, moved - mended),
        well=max(0.0, well - max(moved, mended, back, _writable(on, mended))),
        last=last,
        still=max((after - before for before, after in inside), default=0.0),
        counted=_counted(counted, begin, end),
        said=said,
        lies={} if row.asked or row.quiet else _lies(on, begin, end),
        alarms=_alarms(on, back, ended) if row.moves else {},
        restarted=truth.increased(watch.since("restarts", begin - 2)),
    )


def _has(part: str) -> Any:
    return lambda said: said is not None and part in said


def _state(on: Bench) -> str:
    return ", ".join(f"{name} {on.watch.latest(name)}" for name in (*COMPONENTS, "ready", "gauge"))


def _moved(on: Bench, since: float) -> float | None:
    """Return the time at which an event was counted first since a time, or None."""
    last: int | None = None
    for at, count in on.watch.since("counted", since - 1.0):
        if count is None:
            continue
        if last is not None and count > last and at >= since:
            return at
        last = count
    return None


def _well_since(on: Bench, mended: float) -> tuple[float, str]:
    """Return the time of the last unhealthy report, and this report."""
    healthy: dict[str, Any] = {**dict.fromkeys(COMPONENTS, "healthy"), "ready": "True"}
    ill = [
        (at, f"{name}: {said}")
        for name in (*COMPONENTS, "ready", "gauge")
        for at, said in on.watch.since(name, mended)
        if (said is None if name == "gauge" else said != healthy[name])
    ]
    return max(ill, default=(mended, ""))


def _writable(on: Bench, mended: float) -> float:
    """Return the time since which Kafka accepts records for all partitions."""
    return max([at for at, said in on.watch.since("writable", mended) if not said], default=mended)


def _counted(counted: list[tuple[float, Any]], begin: float, end: float) -> int:
    counts = [count for at, count in counted if count is not None and at <= begin]
    inside = [count for at, count in counted if count is not None and begin <= at <= end]
    return max(0, inside[-1] - counts[-1]) if counts and inside else 0


def _lies(on: Bench, begin: float, end: float) -> dict[str, float]:
    """Return the time for which each component reported health, or an old figure, while nothing was counted."""
    still = truth.stalls(on.watch.since("counted", begin - 2), begin, end)
    since = {name: on.watch.since(name, begin) for name in ("processor", "ready", "gauge", "status")}
    # Figures with their age are not shown as current figures.
    current = [(at, said[0] if said and said[2] is None else None) for at, said in since["status"]]
    waiting = on.watch.since("waiting", begin - 2)
    return {
        "processor": truth.longest(since["processor"], still, lambda said: said == "healthy"),
        "ready": truth.longest(since["ready"], still, lambda said: said == "True"),
        "gauge": truth.unchanged(truth.without_true_zeros(since["gauge"], waiting), still, lambda lag: lag is not None),
        "status": truth.unchanged(truth.without_true_zeros(current, waiting), still, lambda lag: lag is not None),
    }


def _back(row: Row, on: Bench, begin: float) -> float:
    """Return the time at which processes that may restart serve again. Earlier reports are no false alarms."""
    ill = [at for name in row.restarts for at, said in on.watch.since(name, begin) if said != "healthy"]
    return max(ill, default=begin)


def _alarms(on: Bench, begin: float, ended: float) -> dict[str, float]:
    moving = truth.moving(on.watch.since("counted", begin - 2), begin, ended)
    alarms = {"ready": truth.longest(on.watch.since("ready", begin), moving, lambda said: said != "True")}
    return alarms | {"gauge": truth.longest(on.watch.since("gauge", begin), moving, lambda said: said is None)}


def settle(on: Bench) -> Verdict:
    """Stop sending, wait until all events are counted, and return the outcome.

    Raises:
        DemoError: The events are not counted in time.
    """
    on.ingest.flow(on=False)
    until(
        lambda: on.ingest.idle and on.bulk.idle,
        seconds=_GIVEN_UP_SECONDS,
        what="all requests are answered",
    )

    def counted() -> bool:
        rows = on.sql("SELECT partition, next_offset FROM {schema}._offsets WHERE reader = 'live'")
        return {partition: at or 0 for partition, at in rows} == on.runtime.topic_ends()

    until(counted, seconds=_GIVEN_UP_SECONDS, what="all events are counted")
    return on.checker.judge()


def holds(row: Row, seen: Seen, verdict: Verdict) -> list[str]:
    """Return the expectations that are not met; the row passes if all are met."""
    broken = []
    if seen.reported_after is None and seen.lasted >= REPORT_SECONDS:
        broken.append(f"{' and '.join(who for who, at in seen.reported.items() if at is None)} did not report it")
    late = {who: at for who, at in seen.reported.items() if at is not None and at > REPORT_SECONDS}
    broken += [f"{who} reported it after {at:.0f} s" for who, at in late.items()]
    broken += [f"{who} reported no fault for {at:.0f} s" for who, at in seen.lies.items() if at > REPORT_SECONDS]
    broken += [f"{who} reported a fault for {at:.0f} s" for who, at in seen.alarms.items() if at > RECOVERY_SECONDS]
    if seen.well > RECOVERY_SECONDS:
        last = f" ({seen.last})" if seen.last else ""
        broken.append(f"healthy {seen.well:.0f} s after events were counted{last}")
    if row.moves and not row.restarts and seen.still > REPORT_SECONDS:
        broken.append(f"nothing was counted for {seen.still:.0f} s")
    broken += [f"{name} was restarted" for name in seen.restarted if not any(part in name for part in row.restarts)]
    if not verdict.holds:
        broken.append(f"lost {verdict.lost}, doubled {verdict.doubled}, wrong {verdict.wrong}")
    return broken
