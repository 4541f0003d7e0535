"""An edit of every field of the spec: what it changes and what it leaves alone, or why it is refused.

The fields are found by walking the models: one that is new has no case here, and that fails.
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
from tidemill_operator.plan.changes import Change, changes
from tidemill_operator.plan.live import LiveFacts, LiveTopic
from tidemill_operator.plan.model import Plan
from tidemill_operator.plan.restarts import UNREAD
from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

PLATFORM = Platform(partitions=3)
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)

VERBS = ("create", "remove", "restart", "scale")
ROWS = [(path, number, case) for path, cases in CASES.items() for number, case in enumerate(cases)]
IDS = [f"{path}-{number}" for path, number, _ in ROWS]


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Every field that holds no further model, by its path; items of lists stand at the list's."""
    for name, field in model.model_fields.items():
        at = f"{path}{field.alias or name}"
        parts = (field.annotation, *field.metadata)
        inner = [found for part in parts for found in _kinds(part) if isinstance(found, type)]
        inner = [model for model in inner if issubclass(model, BaseModel)]
        for kind in inner:
            yield from leaves(kind, f"{at}.")
        if not inner:
            yield at


def _kinds(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, Kinds):
        yield annotation.written
    elif get_origin(annotation) in (Union, UnionType, list, Annotated):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        yield annotation


def test_every_field_has_a_case() -> None:
    """A field that is added needs one: say here what an edit of it changes, or why it is refused."""
    assert set(leaves(PipelineSpec)) == set(CASES)
    assert all(CASES.values())


def told(found: tuple[Change, ...]) -> set[str]:
    """What is changed, in words; of processors, what happens to them."""
    return {text for change in found for text in _told(change)}


def _told(change: Change) -> Iterator[str]:
    if f"{change.kind} {change.name}" != PROCESSOR or change.action != "change":
        yield f"{change.action} {change.kind} {change.name}"
        return
    members = {difference.member for difference in change.differences}
    words = {"processes": RESTART, "replicas": SCALE}
    yield from {words.get(member, f"change {PROCESSOR}") for member in members}


def documents(case: Case) -> tuple[Document, Document]:
    """The resource before and after the edit."""
    before = base()
    if case.before is not None:
        case.before(before["spec"])
    after = copy.deepcopy(before)
    case.edit(after["spec"])
    after["metadata"]["generation"] = 2
    return before, after


def apply(document: Document, world: MemoryWorld, previous: Document | None = None) -> Document:
    told = reconcile(document, platform=PLATFORM, actuators=world.actuators, previous=previous, now=NOON)
    if "ConnectorsReady" not in {item["type"] for item in told["conditions"]}:
        return told
    # Connectors are as they should be one pass after a change of them.
    return reconcile(document, platform=PLATFORM, actuators=world.actuators, previous=told, now=NOON)


@pytest.fixture
def world() -> MemoryWorld:
    """A world in which the platform has a Kafka Connect, and topics of others."""
    made = MemoryWorld(connect=KafkaConnect(MemoryConnect()))
    made.kafka.topics = {name: LiveTopic(2, 1, name) for name in ("shop.a", "shop.b", "shop.c")}
    made.kafka.configs = {name: {} for name in made.kafka.topics}
    return made


def true(status: Document) -> dict[str, str]:
    return {item["type"]: item["reason"] for item in status["conditions"] if item["status"] == "True"}


def state(world: MemoryWorld) -> Any:
    """Everything that there is, without the writes that led to it."""
    running = {name: dict(workloads) for name, workloads in world.runtime.running.items()}
    return copy.deepcopy((world.kafka.topics, world.kafka.configs, world.postgres.schemas, running))


@pytest.mark.parametrize(("path", "number", "case"), ROWS, ids=IDS)
def test_an_edit_changes_what_it_should(world: MemoryWorld, path: str, number: int, case: Case) -> None:
    """What `tidemill plan` tells before it happens is all that differs; what cannot be done is refused."""
    before, after = documents(case)
    first = apply(before, world)
    assert "Stalled" not in true(first), first
    ran, unedited = state(world), world.runtime.running["shop", "orders"]["orders-processor"]
    world.take_writes()
    if case.changes is not None:
        wanted = {text if text.split()[0] in VERBS else f"change {text}" for text in (CONFIG, *case.changes)}
        assert told(planned(before, after, world)) == wanted
    second = apply(after, world, first)
    if case.changes is None:
        message = next(item["message"] for item in second["conditions"] if item["type"] == "Stalled")
        assert message.startswith(case.refused)
        assert message.endswith("; the accepted spec stays in force")
        assert true(second) == {**true(first), "Stalled": true(second)["Stalled"]}
        assert true(second)["Stalled"] in case.reason
        assert (state(world), world.take_writes()) == (ran, [])
    else:
        assert set(true(second)) - {"Suspended"} == set(true(first))
        edited = world.runtime.running["shop", "orders"]["orders-processor"]
        assert (edited.revision != unedited.revision) == (RESTART in case.changes)
        assert (world.postgres.schemas["shop__orders"].generation == 2) == (RESTART in case.changes)


@pytest.mark.parametrize(("path", "number", "case"), ROWS, ids=IDS)
def test_taking_an_edit_back_leads_to_where_it_was(world: MemoryWorld, path: str, number: int, case: Case) -> None:
    """The same workloads with the same settings; what was only added stays: partitions, columns, tables, topics."""
    before, after = documents(case)
    first = apply(before, world)
    ran = state(world)
    second = apply(after, world, first)
    back = {**before, "metadata": {**before["metadata"], "generation": 3}}
    third = apply(back, world, second)
    if path == "source.topic.partitions" and case.changes is not None:
        assert true(third)["Stalled"] == "NotSupported"  # Kafka takes none away
        return
    assert true(third) == true(first)
    assert world.runtime.running["shop", "orders"].keys() == ran[3]["shop", "orders"].keys()
    restarted = RESTART in (case.changes or ())
    assert world.postgres.schemas["shop__orders"].generation == (3 if restarted else 1)
    for name, workload in world.runtime.running["shop", "orders"].items():
        known = ran[3]["shop", "orders"][name]
        assert (workload.replicas, workload.environment, workload.resources) == (
            known.replicas,
            known.environment,
            known.resources,
        )
        if not restarted:
            assert workload == known
    world.take_writes()
    assert (apply(back, world, third), world.take_writes()) == (third, [])


def planned(before: Document, after: Document, world: MemoryWorld) -> tuple[Change, ...]:
    """As `tidemill plan` sees it."""
    schema = world.postgres.observe("shop__orders")
    live = LiveFacts(dict(world.kafka.topics), world.kafka.brokers(), schema, found=tuple(world.kafka.topics))
    wanted = plan_of(after, live)
    return changes(wanted, live, before=plan_of(before, live), configs=world.kafka.configs)


def plan_of(document: Document, live: LiveFacts) -> Plan:
    return build_plan(AnalyticsPipeline.model_validate(document), PLATFORM, document["metadata"]["generation"], live)


def test_processors_read_nothing_of_what_is_not_counted_as_read() -> None:
    """Their code names none of these members, so a change of one cannot matter to them."""
    spelled = {path.rsplit(".", 1)[-1] for path in UNREAD} - {"config", "retention"}
    members = {re.sub(r"(?<!^)([A-Z])", lambda found: f"_{found[1].lower()}", name) for name in spelled}
    for file in Path(tidemill_processor.__file__).parent.rglob("*.py"):
        named = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        assert not named & members, file.name
        for chain in re.findall(r"[\w.]*\.(?:topic\.config|retention)\b", file.read_text()):
            assert chain.endswith("events.retention"), (file.name, chain)
