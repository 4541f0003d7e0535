"""Tests of an edit of every field of the spec: its changes, or the reason of the refusal.

The fields are found by walking the models, so a new field without a case fails.
"""

from __future__ import annotations

import ast
import copy
import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

import tidemill_processor
from spec_edits.cases import CASES
from spec_edits.edits import CONFIG, PROCESSOR, RESTART, SCALE, Case, Document, base
from tidemill_contract.resource.kinds.base import Kinds
from tidemill_contract.resource.spec import AnalyticsPipeline, PipelineSpec
from tidemill_operator.actuators.connect.connectors import KafkaConnect
from tidemill_operator.actuators.connect.memory import MemoryConnect
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.changes import Change, find_changes
from tidemill_operator.plan.live import LiveFacts, LiveTopic
from tidemill_operator.plan.model import Plan
from tidemill_operator.plan.restarts import IGNORED_SETTINGS
from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

PLATFORM = Platform(partitions=3)
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)

VERBS = ("create", "remove", "restart", "scale")
ROWS = [(path, number, case) for path, cases in CASES.items() for number, case in enumerate(cases)]
IDS = [f"{path}-{number}" for path, number, _ in ROWS]


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield the path of every field that holds no further model. The items of a list have the path of the list."""
    for name, field in model.model_fields.items():
        at = f"{path}{field.alias or name}"
        parts = (field.annotation, *field.metadata)
        inner = [kind for part in parts for kind in _kinds(part) if isinstance(kind, type)]
        inner = [model for model in inner if issubclass(model, BaseModel)]
        for kind in inner:
            yield from leaves(kind, f"{at}.")
        if not inner:
            yield at


def _kinds(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, Kinds):
        yield annotation.flat_model
    elif get_origin(annotation) in (Union, UnionType, list, Annotated):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        yield annotation


def test_every_field_has_a_case() -> None:
    """Add the case of a new field to `tests/support/spec_edits`."""
    assert set(leaves(PipelineSpec)) == set(CASES)
    assert all(CASES.values())


def described(all_changes: tuple[Change, ...]) -> set[str]:
    """Return each change as text. Changes of a processor are named by their effect."""
    return {text for change in all_changes for text in _described(change)}


def _described(change: Change) -> Iterator[str]:
    if f"{change.kind} {change.name}" != PROCESSOR or change.action != "change":
        yield f"{change.action} {change.kind} {change.name}"
        return
    members = {difference.member for difference in change.differences}
    words = {"processes": RESTART, "replicas": SCALE}
    yield from {words.get(member, f"change {PROCESSOR}") for member in members}


def documents(case: Case) -> tuple[Document, Document]:
    """Return the resource before and after the edit."""
    before = base()
    if case.before is not None:
        case.before(before["spec"])
    after = copy.deepcopy(before)
    case.edit(after["spec"])
    after["metadata"]["generation"] = 2
    return before, after


def apply(document: Document, world: MemoryWorld, previous: Document | None = None) -> Document:
    status = reconcile(document, platform=PLATFORM, actuators=world.actuators, previous=previous, now=NOON)
    if "ConnectorsReady" not in {item["type"] for item in status["conditions"]}:
        return status
    # Connectors are ready one pass after a change of them.
    return reconcile(document, platform=PLATFORM, actuators=world.actuators, previous=status, now=NOON)


@pytest.fixture
def world() -> MemoryWorld:
    """Return a world with a Kafka Connect of the platform and topics of others."""
    memory_world = MemoryWorld(connect=KafkaConnect(MemoryConnect()))
    memory_world.kafka.topics = {name: LiveTopic(2, 1, name) for name in ("shop.a", "shop.b", "shop.c")}
    memory_world.kafka.configs = {name: {} for name in memory_world.kafka.topics}
    return memory_world


def true_conditions(status: Document) -> dict[str, str]:
    return {item["type"]: item["reason"] for item in status["conditions"] if item["status"] == "True"}


def contents(world: MemoryWorld) -> Any:
    """Return a copy of everything in the world, except the list of writes."""
    running = {name: dict(workloads) for name, workloads in world.runtime.running.items()}
    return copy.deepcopy((world.kafka.topics, world.kafka.configs, world.postgres.schemas, running))


@pytest.mark.parametrize(("path", "number", "case"), ROWS, ids=IDS)
def test_an_edit_makes_exactly_its_changes_or_is_refused(
    world: MemoryWorld, path: str, number: int, case: Case
) -> None:
    """`tidemill plan` names exactly the changes of the edit. A refused edit changes nothing."""
    before, after = documents(case)
    first = apply(before, world)
    assert "Stalled" not in true_conditions(first), first
    running, unedited = contents(world), world.runtime.running["shop", "orders"]["orders-processor"]
    world.take_writes()
    if case.changes is not None:
        wanted = {text if text.split()[0] in VERBS else f"change {text}" for text in (CONFIG, *case.changes)}
        assert described(planned(before, after, world)) == wanted
    second = apply(after, world, first)
    if case.changes is None:
        message = next(item["message"] for item in second["conditions"] if item["type"] == "Stalled")
        assert message.startswith(case.refused)
        assert message.endswith("; the accepted spec stays in force")
        assert true_conditions(second) == {**true_conditions(first), "Stalled": true_conditions(second)["Stalled"]}
        assert true_conditions(second)["Stalled"] in case.reason
        assert (contents(world), world.take_writes()) == (running, [])
    else:
        assert set(true_conditions(second)) - {"Suspended"} == set(true_conditions(first))
        edited = world.runtime.running["shop", "orders"]["orders-processor"]
        assert (edited.revision != unedited.revision) == (RESTART in case.changes)
        assert (world.postgres.schemas["shop__orders"].generation == 2) == (RESTART in case.changes)


@pytest.mark.parametrize(("path", "number", "case"), ROWS, ids=IDS)
def test_an_edit_that_is_taken_back_restores_the_workloads(
    world: MemoryWorld, path: str, number: int, case: Case
) -> None:
    """Workloads get their former settings. Added partitions, columns, tables and topics are kept."""
    before, after = documents(case)
    first = apply(before, world)
    running = contents(world)
    second = apply(after, world, first)
    back = {**before, "metadata": {**before["metadata"], "generation": 3}}
    third = apply(back, world, second)
    if path == "source.topic.partitions" and case.changes is not None:
        assert true_conditions(third)["Stalled"] == "NotSupported"  # Kafka removes no partitions
        return
    assert true_conditions(third) == true_conditions(first)
    assert world.runtime.running["shop", "orders"].keys() == running[3]["shop", "orders"].keys()
    restarted = RESTART in (case.changes or ())
    assert world.postgres.schemas["shop__orders"].generation == (3 if restarted else 1)
    for name, workload in world.runtime.running["shop", "orders"].items():
        former = running[3]["shop", "orders"][name]
        assert (workload.replicas, workload.environment, workload.resources) == (
            former.replicas,
            former.environment,
            former.resources,
        )
        if not restarted:
            assert workload == former
    world.take_writes()
    assert (apply(back, world, third), world.take_writes()) == (third, [])


def planned(before: Document, after: Document, world: MemoryWorld) -> tuple[Change, ...]:
    """Return the changes that `tidemill plan` shows."""
    schema = world.postgres.observe("shop__orders")
    live = LiveFacts(
        dict(world.kafka.topics), world.kafka.broker_count(), schema, pattern_candidates=tuple(world.kafka.topics)
    )
    wanted = plan_of(after, live)
    return find_changes(wanted, live, before=plan_of(before, live), configs=world.kafka.configs)


def plan_of(document: Document, live: LiveFacts) -> Plan:
    return build_plan(AnalyticsPipeline.model_validate(document), PLATFORM, document["metadata"]["generation"], live)


def test_processors_read_no_member_that_is_listed_as_unread() -> None:
    """The code of the processor names no member of IGNORED_SETTINGS. Edits of these members need no restart."""
    spelled = {path.rsplit(".", 1)[-1] for path in IGNORED_SETTINGS} - {"config", "retention"}
    members = {re.sub(r"(?<!^)([A-Z])", lambda match: f"_{match[1].lower()}", name) for name in spelled}
    for file in Path(tidemill_processor.__file__).parent.rglob("*.py"):
        named = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        assert not named & members, file.name
        for chain in re.findall(r"[\w.]*\.(?:topic\.config|retention)\b", file.read_text()):
            assert chain.endswith("events.retention"), (file.name, chain)
