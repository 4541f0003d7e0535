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
from tidemill_contract.resource.validate import check_document
from tidemill_operator import kafka_topics
from tidemill_operator.cli.live_servers import LiveServers, find_servers
from tidemill_operator.cli.main import EXIT_ERROR, EXIT_USAGE, CommandError
from tidemill_operator.cli.options import add_data_dir, add_output
from tidemill_operator.errors import TidemillError
from tidemill_operator.laptop.pipeline_files import PipelineFiles
from tidemill_operator.observation import accepted_pipeline
from tidemill_operator.plan.build import build_plan, owner_of
from tidemill_operator.plan.changes import Action, Change, Difference, find_changes
from tidemill_operator.plan.describe import describe, describe_change
from tidemill_operator.plan.external_inputs import external_inputs
from tidemill_operator.plan.kafka.claims import Claim, find_conflicts
from tidemill_operator.plan.live import LiveFacts, LiveSchema, Owner
from tidemill_operator.plan.model import Plan
from tidemill_operator.plan.postgres.damage import damage_error
from tidemill_operator.plan.refusals import deleted_topic_error, missing_topic_error, ownership_errors, refusals
from tidemill_operator.reconcile import ADOPT

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
class PlannedPipeline:
    """The plan of a pipeline, and the changes that the plan would make on the servers.

    Attributes:
        refusals: the errors that prevent the plan from being applied.
        keeps_running: whether an earlier spec of the pipeline keeps running if this plan is refused.
    """

    plan: Plan
    changes: tuple[Change, ...]
    refusals: tuple[TidemillError, ...]
    keeps_running: bool


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
        servers = find_servers(args.data_dir, os.environ)
    except ValueError as error:
        raise CommandError(str(error)) from error
    content = PipelineFiles([args.file], limits=servers.platform.limits).poll()
    if content is None or content.faults:
        raise CommandError("\n".join(content.faults if content else ()), code=EXIT_USAGE)
    try:
        planned = plan_documents(content.documents.values(), servers)
    except TidemillError as error:
        raise CommandError(str(error)) from error
    print(_OUTPUTS[args.output](planned, servers), end="")
    return EXIT_ERROR if any(pipeline.refusals for pipeline in planned) else 0


def plan_documents(documents: Iterable[Mapping[str, Any]], servers: LiveServers) -> list[PlannedPipeline]:
    """Plan all pipelines of a file. If two pipelines claim the same topic, the first pipeline gets it.

    Raises:
        TidemillError: a server does not answer.
    """
    planned, claims = [], list[Claim]()
    for document in documents:
        pipeline = plan_document(document, servers, claims)
        planned.append(pipeline)
        if not pipeline.refusals:
            plan = pipeline.plan
            schema, owner = plan.schema, Owner(plan.namespace, plan.name, "", servers.platform.cluster_id)
            claims += [Claim(topic, schema.source_managed, owner, schema.name) for topic in schema.own_sources]
    return planned


def plan_document(document: Mapping[str, Any], servers: LiveServers, claims: Iterable[Claim] = ()) -> PlannedPipeline:
    """Plan one pipeline and compare it with the servers.

    Raises:
        TidemillError: a server does not answer.
    """
    metadata = document["metadata"]
    schema = servers.schema(names.schema(metadata.get("namespace", "default"), metadata["name"]))
    document = {**document, "status": None, "metadata": {**metadata, "uid": _uid(metadata, servers, schema)}}
    pipeline, _ = check_document(document, servers.platform.limits)
    assert pipeline is not None  # noqa: S101 - the document was checked when it was read
    generation = metadata.get("generation") or _generation(pipeline, servers, schema)
    candidates = servers.pattern_candidates(pipeline)
    preliminary = kafka_topics.preliminary_plan(pipeline, servers.platform, candidates, schema)
    live, configs = servers.read_facts(preliminary, schema, candidates)
    plan = build_plan(pipeline, servers.platform, generation, live)
    errors = tuple(_find_refusals(pipeline, plan, live, servers, claims))
    accepted = accepted_pipeline(document, schema)
    before = build_plan(accepted, servers.platform, live.schema.generation, live) if accepted and live.schema else None
    changes = () if errors else find_changes(plan, live, before=before, configs=configs)
    return PlannedPipeline(plan, changes, errors, keeps_running=before is not None)


def _uid(metadata: Mapping[str, Any], servers: LiveServers, schema: LiveSchema | None) -> str | None:
    if metadata.get("uid"):
        return str(metadata["uid"])
    if servers.uids is not None:
        return servers.uids.get(f"{metadata.get('namespace', 'default')}/{metadata['name']}")
    return schema.owner.uid or None if schema and schema.owner else None


def _generation(pipeline: AnalyticsPipeline, servers: LiveServers, schema: LiveSchema | None) -> int:
    if schema is None or schema.accepted is None:
        return 1
    written = json.loads(build_plan(pipeline, servers.platform, 1).schema.accepted)
    return schema.generation if schema.accepted == written else schema.generation + 1


def _find_refusals(
    pipeline: AnalyticsPipeline, plan: Plan, live: LiveFacts, servers: LiveServers, claims: Iterable[Claim]
) -> Iterator[TidemillError]:
    owner = owner_of(pipeline, servers.platform)
    yield from (error for _, error in find_conflicts(plan.schema, owner, claims))
    if (pipeline.metadata.annotations or {}).get(ADOPT) != "true":
        foreign = list(ownership_errors(plan.schema.name, live.schema.owner, owner)) if live.schema is not None else []
        # if another pipeline owns the schema, do not report topics and roles
        yield from foreign or servers.conflicts(plan.schema, owner)
    yield from refusals(pipeline, plan, live)
    if servers.kafka is not None:
        yield from (
            missing_topic_error(topic) for topic in plan.topics if not topic.managed and topic.name not in live.topics
        )
        yield from (deleted_topic_error(topic) for topic in plan.topics if topic.lost and topic.managed)
        if plan.schema.lost:
            yield damage_error(plan.schema)


def _document(planned: list[PlannedPipeline], servers: LiveServers) -> dict[str, Any]:
    return {
        "observed": {"kafka": servers.kafka, "postgres": servers.postgres},
        "pipelines": [
            {
                **describe(pipeline.plan),
                "changes": [describe_change(item) for item in pipeline.changes],
                "refused": [{"reason": str(error.reason), "message": str(error)} for error in pipeline.refusals],
            }
            for pipeline in planned
        ],
    }


def _json(planned: list[PlannedPipeline], servers: LiveServers) -> str:
    return json.dumps(_document(planned, servers), indent=1, ensure_ascii=False) + "\n"


def _yaml(planned: list[PlannedPipeline], servers: LiveServers) -> str:
    return yaml.safe_dump(_document(planned, servers), sort_keys=False, allow_unicode=True, width=120)


def _diff(planned: list[PlannedPipeline], servers: LiveServers) -> str:
    named = [f"{name} {at}" for name, at in (("Kafka", servers.kafka), ("Postgres", servers.postgres)) if at]
    lines = [f"compared with {' and '.join(named)}" if named else "no servers are known, so everything is shown as new"]
    for pipeline in planned:
        lines += ["", f"{pipeline.plan.namespace}/{pipeline.plan.name}, generation {pipeline.plan.schema.generation}"]
        lines += [f"  reads {read}" for read in external_inputs(pipeline.plan)]
        lines += _refusal(pipeline) if pipeline.refusals else _changes(pipeline)
    return "\n".join(lines) + "\n"


def _refusal(pipeline: PlannedPipeline) -> list[str]:
    stays = "the accepted spec stays in force" if pipeline.keeps_running else "nothing is created"
    return [*(f"! {error}" for error in pipeline.refusals), f"refused; {stays}"]


def _changes(pipeline: PlannedPipeline) -> list[str]:
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
