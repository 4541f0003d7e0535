"""The detectors and their settings.

The class attribute `default_threshold` is the detector's default threshold.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tidemill_contract.duration import Duration
from tidemill_contract.resource.kinds.base import FaultTexts, Kinds, Member, Model


class DetectorSpec(Model):
    """The settings that every detector has."""

    default_threshold: ClassVar[float]

    type: str
    threshold: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Minimum score of an anomaly. Default: depends on the detector.",
    )
    warmup: int = Field(
        24,
        ge=2,
        le=100_000,
        description="Number of windows or events that a group must have before its anomalies are reported.",
    )
    cooldown: Duration | None = Field(
        None,
        description="For this time after an anomaly, the group's further anomalies are not reported. Default: the"
        " group's next 24 windows or events.",
    )

    @property
    def effective_threshold(self) -> float:
        """The threshold in the spec, or the detector's default threshold."""
        return self.default_threshold if self.threshold is None else self.threshold

    @property
    def signature(self) -> str:
        """The detector's type and settings, such as `ewma 0.02`.

        If the detector's signature changes, the detector's stored state is discarded.
        """
        return self.type


def _signature(detector: DetectorSpec, setting: object) -> str:
    return detector.type if setting is None else f"{detector.type} {setting}"


class AutoDetector(DetectorSpec):
    """Reports values that are rare in their series."""

    default_threshold = 4.0

    type: Literal["auto"] = "auto"


class ZscoreDetector(DetectorSpec):
    """Reports values far from the mean."""

    default_threshold = 6.0

    type: Literal["zscore"]


class EwmaDetector(DetectorSpec):
    """Reports values far from the recent mean."""

    default_threshold = 6.0

    type: Literal["ewma"]
    weight: float | None = Field(None, gt=0, lt=1, description="Weight of the newest value in the mean. Default: 0.01.")

    @property
    def signature(self) -> str:
        """The detector's type and weight, such as `ewma 0.02`."""
        return _signature(self, self.weight)


class MadDetector(DetectorSpec):
    """Reports values far from the median."""

    default_threshold = 8.0

    type: Literal["mad"]
    span: int | None = Field(None, ge=5, le=500, description="Number of values that are remembered. Default: 300.")

    @property
    def signature(self) -> str:
        """The detector's type and span, such as `mad 100`."""
        return _signature(self, self.span)


class SeasonalDetector(DetectorSpec):
    """Reports values that are unusual for the hour of the day or week."""

    default_threshold = 6.0

    type: Literal["seasonal"]
    period: Literal["day", "week"] | None = Field(
        None, description="Compare values by hour of the day or by hour of the week. Default: day."
    )

    @property
    def signature(self) -> str:
        """The detector's type and period, such as `seasonal week`."""
        return _signature(self, self.period)


class ChangepointDetector(DetectorSpec):
    """Reports a shift of the level of a series."""

    default_threshold = 2.0

    type: Literal["changepoint"]


class IsolationDetector(DetectorSpec):
    """Reports an unusual combination of the value, its change and its recent average."""

    default_threshold = 2.75

    type: Literal["isolation"]


def _missing(kind: str, member: Member) -> tuple[str, str]:
    return f"{kind} needs {member.alias}", f"add {member.alias}"


def _unsupported(kind: str, member: Member) -> tuple[str, str]:
    return f"{kind} takes no {member.alias}", f"remove {member.alias}, or use type: {' or '.join(member.kinds)}"


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
    doc="How anomalies are detected.",
    tag_description="Kind of detector. auto works without further settings.",
    fault_texts=FaultTexts(missing=_missing, unsupported=_unsupported),
)
