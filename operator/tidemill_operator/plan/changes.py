"""Compute the objects that a plan would create, change or remove."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tidemill_contract import names
from tidemill_operator.plan.live import LiveFacts, LiveSchema
from tidemill_operator.plan.model import Plan, Schema, Topic, Workload
from tidemill_operator.plan.versions import LIVE, current_version, shape_changes, type_changes

Action = Literal["create", "change", "remove"]


@dataclass(frozen=True)
class Difference:
    """A member that differs.

    Attributes:
        member: path of the member.
        before: value before the change, or None for a new member.
        after: value after the change, or None for a removed member.
    """

    member: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Change:
    """The change of one object. For a new object, every member is listed as a difference."""

    action: Action
    kind: str
    name: str
    differences: tuple[Difference, ...] = ()


def find_changes(
    plan: Plan, live: LiveFacts, *, before: Plan | None, configs: Mapping[str, Mapping[str, str]]
) -> tuple[Change, ...]:
    """Return all changes that applying a plan would make.

    Args:
        plan: the desired state.
        live: the live facts.
        before: the plan of the accepted spec, or None if there is none.
        configs: config values of existing topics, by topic. The configs of other topics are not compared.
    """
    return (
        *_topics(plan, live, configs),
        *_schema(plan.schema, live.schema),
        *_aggregations(plan, live.schema, recounted=before is not None and _counts_differently(before, plan)),
        *_config(plan, before),
        *_workloads(plan, before),
        *_connectors(plan, before),
    )


def _topics(plan: Plan, live: LiveFacts, configs: Mapping[str, Mapping[str, str]]) -> Iterator[Change]:
    for topic in plan.topics:
        live_topic = live.topics.get(topic.name)
        if not topic.managed:
            continue
        wanted = {f"config.{key}": value for key, value in sorted(topic.config.items())}
        if live_topic is None:
            facts = {"partitions": topic.partitions, "replicationFactor": topic.replication_factor, **wanted}
            yield Change("create", "topic", topic.name, _new_members(facts))
            continue
        differences: list[Difference] = []
        if live_topic.partitions < topic.partitions:
            differences.append(Difference("partitions", live_topic.partitions, topic.partitions))
        if topic.enforces_replication and live_topic.replication_factor != topic.replication_factor:
            copies = live_topic.partitions * live_topic.replication_factor, topic.partitions * topic.replication_factor
            differences.append(Difference("replicationFactor", live_topic.replication_factor, topic.replication_factor))
            differences.append(Difference("replicas", *copies))
        differences += _drift(topic, configs.get(topic.name))
        if differences:
            yield Change("change", "topic", topic.name, tuple(differences))


def _drift(topic: Topic, config: Mapping[str, str] | None) -> Iterator[Difference]:
    for key, value in sorted(topic.config.items()) if config is not None else ():
        if config is not None and config.get(key) != value:
            yield Difference(f"config.{key}", config.get(key), value)


def _schema(schema: Schema, live: LiveSchema | None) -> Iterator[Change]:
    if live is None:
        roles = {"owner": schema.owner, "writer": schema.writer, "reader": schema.reader}
        yield Change("create", "schema", schema.name, _new_members(roles))
    live_columns = live.columns if live else {}
    for table in schema.tables:
        columns = live_columns.get(table.name)
        missing = {c.name: c.definition for c in table.columns if columns is None or c.name not in columns}
        if missing:
            yield Change("create" if columns is None else "change", "table", table.name, _new_members(missing))
    for name, renames in live.renames.items() if live else ():
        yield Change("change", "table", name, tuple(Difference("column", *pair) for pair in renames.items()))


def _counts_differently(before: Plan, after: Plan) -> bool:
    """Return whether existing versions of aggregations count events differently under the new spec."""
    old, new = (json.loads(plan.config)["spec"] for plan in (before, after))
    sources = old["source"], new["source"]
    # A replay does not call the Python function, so ignore changes of the function.
    transforms = [{**spec.get("transform", {}), "python": None} for spec in (old, new)]
    if transforms[0] != transforms[1] or sources[0].get("format") != sources[1].get("format"):
        return True
    if len({source.get("eventTime", {}).get("field") for source in sources}) > 1:
        return True
    if sources[0].get("dedupe") != sources[1].get("dedupe"):
        return True
    joined_before, joined_after = map(_lookup_inputs, (old, new))
    if any(joined_after.get(name, lookup) != lookup for name, lookup in joined_before.items()):
        return True
    read_before, read_after = ({f["name"]: _field_source(f) for f in source["fields"]} for source in sources)
    return any(read_after.get(name, place) != place for name, place in read_before.items())


def _field_source(field: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in field.items() if name not in ("type", "scale", "required", "precision")}


def _lookup_inputs(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        lookup["name"]: (
            lookup["on"],
            {name: value for name, value in lookup["from"].items() if name not in ("secretRef", "refresh")},
            {field["name"]: _field_source(field) for field in lookup["fields"]},
        )
        for lookup in spec.get("lookups", ())
    }


def _aggregations(plan: Plan, live: LiveSchema | None, *, recounted: bool) -> Iterator[Change]:
    for row in plan.schema.aggregations if live else ():
        before = current_version(row.name, live)
        if live is None or before is None:
            continue
        if row.version == before:
            if recounted:
                replay_hint = f"`tidemill replay {plan.name} --aggregation {row.name}` counts earlier events again"
                difference = Difference(
                    "events", "counted under the former spec", f"counted under the new spec from now on; {replay_hint}"
                )
                yield Change("change", "aggregation", row.name, (difference,))
            continue
        differences = [Difference("version", before, row.version)]
        if row.reader != LIVE:
            differences = [
                Difference("version", None, f"{row.version}, filled by {row.reader} beside version {before}")
            ]
        elif plan.schema.switched_replay:
            differences.append(Difference("windows", None, f"of version {row.version}, which a replay has filled"))
        else:
            differences += [Difference(*change) for change in shape_changes(live.shapes[row.name, before], row.shape)]
            table = next(table for table in plan.schema.tables if table.name == row.table_name)
            live_columns = live.columns.get(names.window_table(row.name, before), {})
            differences += [
                Difference(f"column {name}", *types) for name, *types in type_changes(table.columns, live_columns)
            ]
            fill = f"`tidemill replay {plan.name} --aggregation {row.name}`"
            former_windows = f"of version {before}: kept until their retention ends, but no longer filled or queried"
            differences.append(
                Difference("windows", former_windows, f"of version {row.version}: counted from now on; {fill} fills it")
            )
        yield Change("change", "aggregation", row.name, tuple(differences))


def _config(plan: Plan, before: Plan | None) -> Iterator[Change]:
    if before is None:
        yield Change("create", "config", f"{plan.name}.json")
    elif before.config != plan.config:
        old, new = flatten(json.loads(before.config)), flatten(json.loads(plan.config))
        yield Change("change", "config", f"{plan.name}.json", tuple(_compare(old, new)))


def _workloads(plan: Plan, before: Plan | None) -> Iterator[Change]:
    wanted = {workload.name: workload for workload in plan.workloads}
    previous = {workload.name: workload for workload in before.workloads} if before else {}
    for name, workload in wanted.items():
        if name not in previous:
            yield Change("create", "workload", name, _new_members(_workload_members(workload)))
            continue
        differences = tuple(_compare(_workload_members(previous[name]), _workload_members(workload)))
        # If a workload's revision changes, its processes restart, because processes read settings only at their start.
        if workload.replicas and previous[name].replicas and previous[name].revision != workload.revision:
            differences += (Difference("processes", "with the former config", "with the new config"),)
        if differences:
            yield Change("change", "workload", name, differences)
    for name in previous.keys() - wanted.keys():
        yield Change("remove", "workload", name)


def _connectors(plan: Plan, before: Plan | None) -> Iterator[Change]:
    previous = {connector.name: connector for connector in before.connectors} if before else {}
    for connector in plan.connectors:
        facts = {"paused": connector.paused, **{f"config.{key}": text for key, text in connector.config.items()}}
        former = previous.pop(connector.name, None)
        if former is None:
            yield Change("create", "connector", connector.name, _new_members(facts))
            continue
        old = {"paused": former.paused, **{f"config.{key}": text for key, text in former.config.items()}}
        if differences := tuple(_compare(old, facts)):
            yield Change("change", "connector", connector.name, differences)
    for name in previous:
        yield Change("remove", "connector", name)


def _workload_members(workload: Workload) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "module": workload.module,
        "replicas": workload.replicas,
        "scaledElsewhere": workload.externally_scaled or None,
        "sharedBy": None if workload.pipeline else f"the pipelines of namespace {workload.namespace}",
        "environment": dict(workload.environment),
        "ports": dict(workload.ports),
        "secrets": {pipeline: list(names) for pipeline, names in workload.secrets.items()},
        "code": workload.code or None,
        "image": workload.image or None,
        "resources": {kind: dict(amounts) for kind, amounts in workload.resources.items()},
    }
    return flatten(facts)


def _new_members(facts: Mapping[str, Any]) -> tuple[Difference, ...]:
    return tuple(Difference(member, None, value) for member, value in facts.items())


def _compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    for member in [*after, *(removed for removed in before if removed not in after)]:
        if before.get(member) != after.get(member):
            yield Difference(member, before.get(member), after.get(member))


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Return the non-null leaf values by path.

    For example, `a[x].size` means `size` of the item named `x` in list `a`.
    """
    if isinstance(value, dict):
        members = {(f"{path}.{key}" if path else str(key)): member for key, member in value.items()}
    elif isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
        members = {
            f"{path}[{item['name']}]": {key: member for key, member in item.items() if key != "name"} for item in value
        }
    else:
        return {} if value is None else {path: value}
    return {leaf_path: leaf for at, member in members.items() for leaf_path, leaf in flatten(member, at).items()}
