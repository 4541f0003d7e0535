"""Pure: computes the number of replicas, with the reason, from current and earlier figures.

This package uses no server, no cluster and no clock: `now` is an argument. Everything that must be remembered is in
`State`, which can be stored as JSON. `scaling_figures` reads the figures, and the runtime applies the result.
"""

from tidemill_operator.scaling.decide import decide
from tidemill_operator.scaling.explain import explain, scaling_status
from tidemill_operator.scaling.model import Decision, Figures, PartitionFigures, ScalingReason, Settings
from tidemill_operator.scaling.state import State

__all__ = [
    "Decision",
    "Figures",
    "PartitionFigures",
    "ScalingReason",
    "Settings",
    "State",
    "decide",
    "explain",
    "scaling_status",
]
