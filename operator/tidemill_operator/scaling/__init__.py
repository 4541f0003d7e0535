"""Compute the number of replicas of a component from current and earlier figures."""

from tidemill_operator.scaling.decide import decide
from tidemill_operator.scaling.explain import explain, scaling_status
from tidemill_operator.scaling.model import Decision, PartitionFigures, ScalingFigures, ScalingReason, Settings
from tidemill_operator.scaling.state import State

__all__ = [
    "Decision",
    "PartitionFigures",
    "ScalingFigures",
    "ScalingReason",
    "Settings",
    "State",
    "decide",
    "explain",
    "scaling_status",
]
