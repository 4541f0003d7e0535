"""How an anomaly is told: a class a detector, with what it can be set to.

Of each kind `standard` is the threshold that applies where none is set. A setting that is None is the detector's own
default. How a detector judges is in `tidemill_processor.detect.detectors`, in a module that registers it by its type.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tidemill_contract.duration import Duration
from tidemill_contract.resource.kinds.base import Kinds, Member, Model, Words


class DetectorSpec(Model):
    """What every detector can be set to."""

    standard: ClassVar[float]

    type: str
    threshold: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Score at and above which a window or event is anomalous; default: the detector's own.",
    )
    warmup: int = Field(
        24, ge=2, le=100_000, description="Windows or events per group seen before anything is reported."
    )
    cooldown: Duration | None = Field(
        None,
        description="How long after an anomaly no further one of its group is reported; default: 24 windows or events.",
    )

    @property
    def limit(self) -> float:
        """The threshold that applies."""
        return self.standard if self.threshold is None else self.threshold

    @property
    def signature(self) -> str:
        """The settings that what was learnt depends on: under other ones a detector starts anew."""
        return self.type


def _signature(detector: DetectorSpec, setting: object) -> str:
    return detector.type if setting is None else f"{detector.type} {setting}"


class AutoDetector(DetectorSpec):
    """Whatever is rare in this series."""

    standard = 4.0

    type: Literal["auto"] = "auto"


class ZscoreDetector(DetectorSpec):
    """Far from the mean."""

    standard = 6.0

    type: Literal["zscore"]


class EwmaDetector(DetectorSpec):
    """Far from the recent mean."""

    standard = 6.0

    type: Literal["ewma"]
    weight: float | None = Field(None, gt=0, lt=1, description="Weight of the newest value; default: 0.01.")

    @property
    def signature(self) -> str:
        """The weight is of what was learnt."""
        return _signature(self, self.weight)


class MadDetector(DetectorSpec):
    """Far from the median."""

    standard = 8.0

    type: Literal["mad"]
    span: int | None = Field(None, ge=5, le=500, description="How many values are remembered; default: 300.")

    @property
    def signature(self) -> str:
        """So is the number of values."""
        return _signature(self, self.span)


class SeasonalDetector(DetectorSpec):
    """Far from what is usual at this hour."""

    standard = 6.0

    type: Literal["seasonal"]
    period: Literal["day", "week"] | None = Field(
        None, description="Whether hours of the day or of the week are compared; default: day."
    )

    @property
    def signature(self) -> str:
        """So are the hours."""
        return _signature(self, self.period)


class ChangepointDetector(DetectorSpec):
    """A level that has shifted."""

    standard = 2.0

    type: Literal["changepoint"]


class IsolationDetector(DetectorSpec):
    """Odd in combination: the value, its change, its recent average."""

    standard = 2.75

    type: Literal["isolation"]


def _missing(kind: str, member: Member) -> tuple[str, str]:
    return f"{kind} needs {member.alias}", "add it"


def _foreign(kind: str, member: Member) -> tuple[str, str]:
    return f"{kind} takes no {member.alias}", f"take it out, or use type: {' or '.join(member.kinds)}"


DETECTORS: Kinds[DetectorSpec] = Kinds(
    (
        AutoDetector,
        ZscoreDetector,
        EwmaDetector,
        MadDetector,
        SeasonalDetector,
        ChangepointDetector,
        IsolationDetector,
    ),
    tag="type",
    title="DetectorSpec",
    doc="How an anomaly is told.",
    tag_says="Detector; auto needs no tuning.",
    words=Words(missing=_missing, foreign=_foreign),
)
