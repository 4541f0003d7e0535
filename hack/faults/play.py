"""Plays one row: sends events, causes and ends the fault, and checks what was reported and counted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from demo.runtime import until
from faults import truth
from faults.bench import Bench
from faults.checker import Outcome
from faults.rows import Row
from faults.watch import COMPONENTS

REPORT_SECONDS, RECOVERY_SECONDS = 30.0, 10.0
# If recovery takes longer, the row fails, and the run ends.
_GIVEN_UP_SECONDS = 180.0
_HEALTHY_SECONDS = 3.0


@dataclass(frozen=True)
class Observations:
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


def _is_healthy(bench: Bench) -> bool:
    watch = bench.watch
    healthy = all(watch.latest(name) == "healthy" for name in COMPONENTS)
    return healthy and watch.latest("ready") == "True" and watch.latest("gauge") is not None


def _stays_healthy(bench: Bench, since: float) -> bool:
    """Return whether all components have reported only health for some seconds."""
    watch = bench.watch
    said = {name: watch.since(name, max(since, time.monotonic() - _HEALTHY_SECONDS)) for name in (*COMPONENTS, "ready")}
    return (
        all(said.values())
        and all(what == "healthy" for name in COMPONENTS for _, what in said[name])
        and all(what == "True" for _, what in said["ready"])
        and watch.latest("gauge") is not None
    )


def play_row(row: Row, bench: Bench, *, events: int, seconds: float) -> Observations:
    """Begin the fault, end it, wait until everything is healthy, and return the observations.

    Raises:
        DemoError: The recovery takes too long.
    """
    lasts = row.seconds if row.seconds is not None else seconds
    watch = bench.watch
    bench.ingest.flow(on=not row.without_events)
    if not row.without_events:
        bench.bulk.begin(events, max(lasts, 10.0))
    until(lambda: _is_healthy(bench), seconds=_GIVEN_UP_SECONDS, what=f"{row.name}: all is healthy before the fault")
    bench.find_leader()
    begin = time.monotonic()
    row.begin_fault(bench)
    time.sleep(max(0.0, lasts - (time.monotonic() - begin)))
    end = time.monotonic()
    said = {name: watch.latest(name) for name in (*COMPONENTS, "ready", "gauge", "status")}
    row.end_fault(bench)
    mended = time.monotonic()
    if row.without_events:
        bench.ingest.flow(on=True)
        bench.bulk.begin(events, 10.0)
    moved = until(
        lambda: _counted_again_at(bench, mended),
        seconds=_GIVEN_UP_SECONDS,
        what=f"{row.name}: events are counted again",
    )
    until(
        lambda: _stays_healthy(bench, mended),
        seconds=_GIVEN_UP_SECONDS,
        what=f"{row.name}: all is healthy ({_describe_state(bench)})",
    )
    (well, last), back = _last_unhealthy_report(bench, mended), _serving_since(row, bench, begin)
    ended = time.monotonic()
    reported = {
        who: truth.first_report_after(watch.since(who, begin), begin, end, _has(part))
        for who, part in row.reports.items()
    }
    counted = watch.since("counted", begin - 2)
    inside = truth.stalls(counted, begin, end)
    return Observations(
        lasted=end - begin,
        reported=reported,
        moved=max(0.0, moved - mended),
        well=max(0.0, well - max(moved, mended, back, _writable_since(bench, mended))),
        last=last,
        still=max((after - before for before, after in inside), default=0.0),
        counted=_count_events(counted, begin, end),
        said=said,
        lies={} if row.stopped_by_user or row.without_events else _false_health(bench, begin, end),
        alarms=_false_alarms(bench, back, ended) if row.must_count else {},
        restarted=truth.increased_counters(watch.since("restarts", begin - 2)),
    )


def _has(part: str) -> Any:
    return lambda said: said is not None and part in said


def _describe_state(bench: Bench) -> str:
    return ", ".join(f"{name} {bench.watch.latest(name)}" for name in (*COMPONENTS, "ready", "gauge"))


def _counted_again_at(bench: Bench, since: float) -> float | None:
    """Return the time at which an event was counted first since a time, or None."""
    last: int | None = None
    for at, count in bench.watch.since("counted", since - 1.0):
        if count is None:
            continue
        if last is not None and count > last and at >= since:
            return at
        last = count
    return None


def _last_unhealthy_report(bench: Bench, mended: float) -> tuple[float, str]:
    """Return the time of the last unhealthy report, and this report."""
    healthy: dict[str, Any] = {**dict.fromkeys(COMPONENTS, "healthy"), "ready": "True"}
    ill = [
        (at, f"{name}: {said}")
        for name in (*COMPONENTS, "ready", "gauge")
        for at, said in bench.watch.since(name, mended)
        if (said is None if name == "gauge" else said != healthy[name])
    ]
    return max(ill, default=(mended, ""))


def _writable_since(bench: Bench, mended: float) -> float:
    """Return the time since which Kafka accepts records for all partitions."""
    return max([at for at, said in bench.watch.since("writable", mended) if not said], default=mended)


def _count_events(counted: list[tuple[float, Any]], begin: float, end: float) -> int:
    counts = [count for at, count in counted if count is not None and at <= begin]
    inside = [count for at, count in counted if count is not None and begin <= at <= end]
    return max(0, inside[-1] - counts[-1]) if counts and inside else 0


def _false_health(bench: Bench, begin: float, end: float) -> dict[str, float]:
    """Return the time for which each component reported health, or an old figure, while nothing was counted."""
    still = truth.stalls(bench.watch.since("counted", begin - 2), begin, end)
    since = {name: bench.watch.since(name, begin) for name in ("processor", "ready", "gauge", "status")}
    # Figures with their age are not shown as current figures.
    current = [(at, said[0] if said and said[2] is None else None) for at, said in since["status"]]
    waiting = bench.watch.since("waiting", begin - 2)
    return {
        "processor": truth.longest_time(since["processor"], still, lambda said: said == "healthy"),
        "ready": truth.longest_time(since["ready"], still, lambda said: said == "True"),
        "gauge": truth.longest_unchanged(
            truth.without_true_zeros(since["gauge"], waiting), still, lambda lag: lag is not None
        ),
        "status": truth.longest_unchanged(
            truth.without_true_zeros(current, waiting), still, lambda lag: lag is not None
        ),
    }


def _serving_since(row: Row, bench: Bench, begin: float) -> float:
    """Return the time at which processes that may restart serve again. Earlier reports are no false alarms."""
    ill = [at for name in row.restarts for at, said in bench.watch.since(name, begin) if said != "healthy"]
    return max(ill, default=begin)


def _false_alarms(bench: Bench, begin: float, ended: float) -> dict[str, float]:
    progress = truth.progress_spans(bench.watch.since("counted", begin - 2), begin, ended)
    alarms = {"ready": truth.longest_time(bench.watch.since("ready", begin), progress, lambda said: said != "True")}
    return alarms | {
        "gauge": truth.longest_time(bench.watch.since("gauge", begin), progress, lambda said: said is None)
    }


def wait_until_counted(bench: Bench) -> Outcome:
    """Stop sending, wait until all events are counted, and return the outcome.

    Raises:
        DemoError: The events are not counted in time.
    """
    bench.ingest.flow(on=False)
    until(
        lambda: bench.ingest.idle and bench.bulk.idle,
        seconds=_GIVEN_UP_SECONDS,
        what="all requests are answered",
    )

    def counted() -> bool:
        rows = bench.sql("SELECT partition, next_offset FROM {schema}._offsets WHERE reader = 'live'")
        return {partition: at or 0 for partition, at in rows} == bench.runtime.topic_ends()

    until(counted, seconds=_GIVEN_UP_SECONDS, what="all events are counted")
    return bench.checker.check()


def unmet_expectations(row: Row, observed: Observations, outcome: Outcome) -> list[str]:
    """Return the expectations that are not met; the row passes if all are met."""
    broken = []
    if observed.reported_after is None and observed.lasted >= REPORT_SECONDS:
        broken.append(f"{' and '.join(who for who, at in observed.reported.items() if at is None)} did not report it")
    late = {who: at for who, at in observed.reported.items() if at is not None and at > REPORT_SECONDS}
    broken += [f"{who} reported it after {at:.0f} s" for who, at in late.items()]
    broken += [f"{who} reported no fault for {at:.0f} s" for who, at in observed.lies.items() if at > REPORT_SECONDS]
    broken += [f"{who} reported a fault for {at:.0f} s" for who, at in observed.alarms.items() if at > RECOVERY_SECONDS]
    if observed.well > RECOVERY_SECONDS:
        last = f" ({observed.last})" if observed.last else ""
        broken.append(f"healthy {observed.well:.0f} s after events were counted{last}")
    if row.must_count and not row.restarts and observed.still > REPORT_SECONDS:
        broken.append(f"nothing was counted for {observed.still:.0f} s")
    broken += [f"{name} was restarted" for name in observed.restarted if not any(part in name for part in row.restarts)]
    if not outcome.is_exact:
        broken.append(f"lost {outcome.lost}, doubled {outcome.doubled}, wrong {outcome.wrong}")
    return broken
