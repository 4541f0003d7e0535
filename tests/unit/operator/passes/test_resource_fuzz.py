"""Drawn edits of a resource, against a world in memory. `make fuzz-resources` runs the same test for longer.

MINUTES and SEED set duration and first seed. Each round has a seed, which a failure names.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from drawn.resources import SPEC, Edit, base, draw, places, problems

ROUNDS = 60


def test_every_part_of_the_spec_can_be_drawn() -> None:
    drawn = {path[0] for path, _ in places(SPEC, base()["spec"])}
    assert drawn == set(SPEC["properties"])


def test_drawn_edits_are_refused_without_effect_or_can_be_taken_back() -> None:
    """A refused edit changes nothing. An accepted edit can be taken back."""
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
def test_certainly_refused_edits_change_nothing(edit: Edit) -> None:
    """The fuzz finds no problem with edits that are certainly refused."""
    assert problems(edit, base()) == []
