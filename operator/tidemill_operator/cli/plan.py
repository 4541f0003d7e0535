"""The command `tidemill plan`, which shows what applying a file would create or change."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tidemill_contract import names
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.resource.validate import check
from tidemill_operator import elsewhere
from tidemill_operator.cli.main import EXIT_ERROR, EXIT_USAGE, CommandError
from tidemill_operator.cli.observe import World, find_world
from tidemill_operator.cli.options import add_data_dir, add_output
from tidemill_operator.errors import TidemillError
from tidemill_operator.laptop.sources import Sources
from tidemill_operator.plan.build import build_plan, owner_of
from tidemill_operator.plan.changes import Action, Change, Difference, changes
from tidemill_operator.plan.describe import change, describe
from tidemill_operator.plan.kafka.claims import Claim, disputes
from tidemill_operator.plan.live import LiveFacts, LiveSchema, Owner
from tidemill_operator.plan.model import Plan
from tidemill_operator.plan.postgres.damage import damaged
from tidemill_operator.plan.reads import reads
from tidemill_operator.plan.refusals import foreign, gone, missing, refusals
from tidemill_operator.reconcile import ADOPT
from tidemill_operator.seen import accepted

_SIGNS: Mapping[Action, str] = {"create": "+", "change": "~", "remove": "-"}
_DESCRIPTION = """\
Show what applying a file would create or change. Nothing is written. The file is compared with the servers named by
TIDEMILL_KAFKA_BROKERS and TIDEMILL_POSTGRES_URL, or with those of a running `tidemill up`. Without any server,
everything is shown as new. Exit code 0: the file can be applied, 1: it is refused, 2: it is invalid.
"""
_EPILOG = """\
examples:
  tidemill plan crds/examples/flights.yaml
  tidemill plan flights.yaml --output json --data-dir /tmp/demo
"""


@dataclass(frozen=True)
class Planned:
    """The plan of a pipeline, and the changes that the plan would make on the servers.

    Attributes:
        refused: the errors that prevent the plan from being applied.
        runs_on: whether an earlier spec of the pipeline keeps running if this plan is refused.
    """

    plan: Plan
    changes: tuple[Change, ...]
    refused: tuple[TidemillError, ...]
    runs_on: bool


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "plan",
        help="show what a file would create or change",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="YAML or JSON file of one or more pipelines")
    add_data_dir(parser, "data folder of a running `up`")
    add_output(parser, "diff", "yaml", "json")


def run(args: argparse.Namespace) -> int:
    """Plan the pipelines of a file, and print the plans.

    Raises:
        CommandError: the file is invalid, or a server does not answer.
    """
    try:
        world = find_world(args.data_dir, os.environ)
    except ValueError as error:
        raise CommandError(str(error)) from error
    reading = Sources([args.file], limits=world.platform.limits).poll()
    if reading is None or reading.faults:
        raise CommandError("\n".join(reading.faults if reading else ()), code=EXIT_USAGE)
    try:
        planned = plan_documents(reading.documents.values(), world)
    except TidemillError as error:
        raise CommandError(str(error)) from error
    print(_OUTPUTS[args.output](planned, world), end="")
    return EXIT_ERROR if any(pipeline.refused for pipeline in planned) else 0


def plan_documents(documents: Iterable[Mapping[str, Any]], world: World) -> list[Planned]:
    """Plan all pipelines of a file. If two pipelines claim the same topic, the first pipeline gets it.

    Raises:
        TidemillError: a server does not answer.
    """
    planned, taken = [], list[Claim]()
    for document in documents:
        pipeline = plan_document(document, world, taken)
        planned.append(pipeline)
        if not pipeline.refused:
            plan = pipeline.plan
            schema, owner = plan.schema, Owner(plan.namespace, plan.name, "", world.platform.cluster_id)
            taken += [Claim(topic, schema.managed, owner, schema.name) for topic in schema.own_sources]
    return planned


def plan_document(document: Mapping[str, Any], world: World, taken: Iterable[Claim] = ()) -> Planned:
    """Plan one pipeline and compare it with the servers.

    Raises:
        TidemillError: a server does not answer.
    """
    metadata = document["metadata"]
    schema = world.schema(names.schema(metadata.get("namespace", "default"), metadata["name"]))
    document = {**document, "status": None, "metadata": {**metadata, "uid": _uid(metadata, world, schema)}}
    pipeline, _ = check(document, world.platform.limits)
    assert pipeline is not None  # noqa: S101 - the document was checked when it was read
    generation = metadata.get("generation") or _generation(pipeline, world, schema)
    candidates = world.found(pipeline)
    first = elsewhere.first_plan(pipeline, world.platform, candidates, schema)
    live, configs = world.facts(first, schema, candidates)
    plan = build_plan(pipeline, world.platform, generation, live)
    refused = tuple(_refused(pipeline, plan, live, world, taken))
    earlier = accepted(document, schema)
    before = build_plan(earlier, world.platform, live.schema.generation, live) if earlier and live.schema else None
    planned_changes = () if refused else changes(plan, live, before=before, configs=configs)
    return Planned(plan, planned_changes, refused, runs_on=before is not None)


def _uid(metadata: Mapping[str, Any], world: World, schema: LiveSchema | None) -> str | None:
    if metadata.get("uid"):
        return str(metadata["uid"])
    if world.uids is not None:
        return world.uids.get(f"{metadata.get('namespace', 'default')}/{metadata['name']}")
    return schema.owner.uid or None if schema and schema.owner else None


def _generation(pipeline: AnalyticsPipeline, world: World, schema: LiveSchema | None) -> int:
    if schema is None or schema.accepted is None:
        return 1
    written = json.loads(build_plan(pipeline, world.platform, 1).schema.accepted)
    return schema.generation if schema.accepted == written else schema.generation + 1


def _refused(
    pipeline: AnalyticsPipeline, plan: Plan, live: LiveFacts, world: World, taken: Iterable[Claim]
) -> Iterator[TidemillError]:
    owner = owner_of(pipeline, world.platform)
    yield from (error for _, error in disputes(plan.schema, owner, taken))
    if (pipeline.metadata.annotations or {}).get(ADOPT) != "true":
        strange = list(foreign(plan.schema.name, live.schema.owner, owner)) if live.schema is not None else []
        # if another pipeline owns the schema, do not report topics and roles
        yield from strange or world.conflicts(plan.schema, owner)
    yield from refusals(pipeline, plan, live)
    if world.kafka is not None:
        yield from (missing(topic) for topic in plan.topics if not topic.managed and topic.name not in live.topics)
        yield from (gone(topic) for topic in plan.topics if topic.lost and topic.managed)
        if plan.schema.lost:
            yield damaged(plan.schema)


def _document(planned: list[Planned], world: World) -> dict[str, Any]:
    return {
        "observed": {"kafka": world.kafka, "postgres": world.postgres},
        "pipelines": [
            {
                **describe(pipeline.plan),
                "changes": [change(item) for item in pipeline.changes],
                "refused": [{"reason": str(error.reason), "message": str(error)} for error in pipeline.refused],
            }
            for pipeline in planned
        ],
    }


def _json(planned: list[Planned], world: World) -> str:
    return json.dumps(_document(planned, world), indent=1, ensure_ascii=False) + "\n"


def _yaml(planned: list[Planned], world: World) -> str:
    return yaml.safe_dump(_document(planned, world), sort_keys=False, allow_unicode=True, width=120)


def _diff(planned: list[Planned], world: World) -> str:
    seen = [f"{name} {at}" for name, at in (("Kafka", world.kafka), ("Postgres", world.postgres)) if at]
    lines = [f"compared with {' and '.join(seen)}" if seen else "no servers are known, so everything is shown as new"]
    for pipeline in planned:
        lines += ["", f"{pipeline.plan.namespace}/{pipeline.plan.name}, generation {pipeline.plan.schema.generation}"]
        lines += [f"  reads {read}" for read in reads(pipeline.plan)]
        lines += _refusal(pipeline) if pipeline.refused else _changes(pipeline)
    return "\n".join(lines) + "\n"


def _refusal(pipeline: Planned) -> list[str]:
    stays = "the accepted spec stays in force" if pipeline.runs_on else "nothing is created"
    return [*(f"! {error}" for error in pipeline.refused), f"refused; {stays}"]


def _changes(pipeline: Planned) -> list[str]:
    lines = []
    for item in pipeline.changes:
        lines.append(f"{_SIGNS[item.action]} {item.kind} {item.name}{_summary(item)}")
        lines += [f"    {_difference(difference)}" for difference in item.differences if item.action != "create"]
    if not pipeline.changes:
        return ["no changes"]
    counts = {action: sum(item.action == action for item in pipeline.changes) for action in _SIGNS}
    return [*lines, ", ".join(f"{count} to {action}" for action, count in counts.items())]


def _summary(item: Change) -> str:
    if item.action != "create":
        return ""
    members = {difference.member: _value(difference.after) for difference in item.differences}
    if item.kind == "table":
        return f" ({', '.join(members)})"
    shown = [
        f"{member} {members[member]}" for member in ("partitions", "replicationFactor", "replicas") if member in members
    ]
    return f" ({', '.join(shown)})" if shown else ""


def _difference(difference: Difference) -> str:
    if difference.before is None:
        return f"+ {difference.member}: {_value(difference.after)}"
    if difference.after is None:
        return f"- {difference.member}: {_value(difference.before)}"
    return f"~ {difference.member}: {_value(difference.before)} → {_value(difference.after)}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_OUTPUTS = {"diff": _diff, "yaml": _yaml, "json": _json}
