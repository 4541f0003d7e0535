"""Drawn edits of a resource, on the world in memory; a few seconds of it here, `make fuzz-resources` takes longer.

Set by MINUTES and SEED; each round has a seed of its own and is told with it.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from drawn.resources import SPEC, Edit, base, draw, places, problems

ROUNDS = 60


def test_every_part_of_the_spec_can_be_drawn() -> None:
    """Each member of the schema is a place of the resource that is edited, or lies below one that is not there yet."""
    drawn = {path[0] for path, _ in places(SPEC, base()["spec"])}
    assert drawn == set(SPEC["properties"])


def test_drawn_edits_hold() -> None:
    """Refused edits change nothing, accepted ones can be taken back, whatever is drawn."""
    minutes = os.environ.get("MINUTES") if "FUZZ_RESOURCES" in os.environ else None
    first = int(os.environ.get("SEED") or (1 if minutes is None else random.SystemRandom().randrange(10**6)))
    deadline = time.monotonic() + float(minutes or 0) * 60
    wrong: list[str] = []
    seed = first
    while seed < first + ROUNDS or time.monotonic() < deadline:
        edit = draw(random.Random(seed), base())
        wrong += [f"SEED={seed} {edit}: {problem}" for problem in problems(edit, base())]
        seed += 1
    print(f"{seed - first} edits from SEED={first}, {len(wrong)} problems")
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize(
    "edit",
    [Edit(("source", "topic", "partitions"), 2), Edit(("source", "key"), absent=True), Edit(("unheardOf",), 1)],
    ids=str,
)
def test_what_is_refused_changes_nothing(edit: Edit) -> None:
    """Edits that are known to be bad, for the fuzz to be believed."""
    assert problems(edit, base()) == []
