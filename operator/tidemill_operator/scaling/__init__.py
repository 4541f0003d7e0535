"""Scaling as a pure decision: figures and what was seen before → how many replicas, and why.

Knows no server, no cluster and no clock: `now` is passed in, and all that is remembered is in `State`, which can be
written as JSON. Reading figures is `scaling_figures`; making replicas so is the runtime's.
"""

from tidemill_operator.scaling.decide import decide
from tidemill_operator.scaling.explain import explain, scaling_status
from tidemill_operator.scaling.model import Decision, Figures, PartitionFigures, Reason, Settings
from tidemill_operator.scaling.state import State

__all__ = [
    "Decision",
    "Figures",
    "PartitionFigures",
    "Reason",
    "Settings",
    "State",
    "decide",
    "explain",
    "scaling_status",
]
