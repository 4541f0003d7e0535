"""All cases of edits, by the path of the field.

An edit of a member that processors read restarts them. Other edits do not.
"""

from __future__ import annotations

from drawn.metrics import parameters_for
from spec_edits.edits import FIRST, RESTART, TABLE, Case, invalid, put
from spec_edits.results import RESULT_CASES
from spec_edits.source import SOURCE_CASES
from spec_edits.workloads import WORKLOAD_CASES
from tidemill_contract.functions.registry import PARAMETERS

CASES: dict[str, list[Case]] = {**SOURCE_CASES, **RESULT_CASES, **WORKLOAD_CASES}
# An edit of any other parameter of a function has the same effect.
for parameter in PARAMETERS.values():
    member, function = parameter.alias, parameter.functions[0]
    if (field_path := f"aggregations.metrics.{member}") not in CASES:
        example = {"name": "m", "function": function, "field": "amount"}
        example |= parameters_for(function, {"weight": "number"})
        refusal = f"spec.aggregations[0].metrics[1].{member}: sum takes no {member}"
        CASES[field_path] = [
            invalid(f"{FIRST}.metrics[1].{member}", example[member], refusal),
            Case(put(f"{FIRST}.metrics[1]", example), (TABLE, RESTART)),
        ]
