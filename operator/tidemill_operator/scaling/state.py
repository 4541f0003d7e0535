"""The scaling state that is kept between polls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tidemill_operator.scaling.model import ScalingReason

MAX_DECISIONS = 20
MAX_SAMPLES = 64


@dataclass(frozen=True)
class Sample:
    """The measurements between two successive polls. `at` is the time of the second poll, in epoch seconds."""

    at: float
    arrived: float
    consumed: float
    rate: float | None


@dataclass(frozen=True)
class Record:
    """A decision that differs from the previous decision."""

    at: float
    current: int
    desired: int
    reason: ScalingReason
    need: int | None
    limited_by: str


@dataclass(frozen=True)
class State:
    """The scaling state. Times are epoch seconds.

    Attributes:
        seen: end offset, number of consumed events and lag at the last poll, by partition.
        standing: for each partition that has lag but does not advance, the time of the first poll that found this.
        wanted: recent targets, highest first, as (time of the last poll with the target, number of replicas).
    """

    polled_at: float | None = None
    seen: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    moving: bool = False
    standing: Mapping[int, float] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    rate_per_replica: float | None = None
    proven: float = 0.0
    wanted: tuple[tuple[float, int], ...] = ()
    watched_since: float | None = None
    idle_since: float | None = None
    changed_at: float | None = None
    lowered_at: float | None = None
    patience: int = 1
    failed_polls: int = 0
    decisions: tuple[Record, ...] = ()

    def to_json(self) -> str:
        """Return the state as JSON. Equal states give equal texts."""
        record: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        record["seen"] = {str(p): list(seen) for p, seen in sorted(self.seen.items())}
        record["standing"] = {str(p): at for p, at in sorted(self.standing.items())}
        record["samples"] = [[s.at, s.arrived, s.consumed, s.rate] for s in self.samples]
        record["decisions"] = [
            [d.at, d.current, d.desired, d.reason.value, d.need, d.limited_by] for d in self.decisions
        ]
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> State:
        """Parse the text that `to_json` returned. An invalid text gives an empty state."""
        try:
            record = json.loads(text)
            return cls(
                polled_at=record["polled_at"],
                seen={int(p): (int(a), int(b), int(c)) for p, (a, b, c) in record["seen"].items()},
                moving=bool(record["moving"]),
                standing={int(p): float(at) for p, at in record["standing"].items()},
                samples=tuple(Sample(*sample) for sample in record["samples"]),
                rate_per_replica=record["rate_per_replica"],
                proven=float(record["proven"]),
                wanted=tuple((float(at), int(replicas)) for at, replicas in record["wanted"]),
                watched_since=record["watched_since"],
                idle_since=record["idle_since"],
                changed_at=record["changed_at"],
                lowered_at=record["lowered_at"],
                patience=int(record["patience"]),
                failed_polls=int(record["failed_polls"]),
                decisions=tuple(Record(a, b, c, ScalingReason(d), e, f) for a, b, c, d, e, f in record["decisions"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()
