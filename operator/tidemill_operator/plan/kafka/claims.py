"""Decide which topics a pipeline may use, and which are deleted with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tidemill_contract import names
from tidemill_contract.tables.definition import Column, Table
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import LiveFacts, LiveSchema, Owner
from tidemill_operator.plan.model import Schema, Topic

_NAME, _LIST, _PATTERN = "spec.source.topic.name", "spec.source.topics", "spec.source.topicPattern"

# The table of the topics that the operator has created and may delete.
TOPICS_TABLE = Table(
    "_topics",
    (Column("name", "text PRIMARY KEY"), Column("made_at", "timestamptz NOT NULL DEFAULT now()")),
    reader_privileges="",
)


@dataclass(frozen=True)
class Claim:
    """A topic that a pipeline uses.

    Attributes:
        managed: whether the operator creates and changes the topic for the pipeline.
    """

    topic: str
    managed: bool
    owner: Owner
    schema: str


def reserved_topic_errors(
    namespace: str, name: str, sources: Iterable[str], *, listed: bool = False
) -> Iterator[TidemillError]:
    """Yield an error for each source topic that has the name of a pipeline's output topic."""
    for source in sources:
        derived = names.parse_topic(source)
        if derived is None or derived[0] != namespace or derived[2] not in names.OUTPUT_TOPICS:
            continue
        own = derived[1] == name
        whose = "this pipeline itself" if own else f"the pipeline {namespace}/{derived[1]}"
        kind = "Python stage" if derived[2] == "stage" else derived[2].replace("-", " ")
        yield TidemillError(
            Reason.RESOURCE_CONFLICT,
            f"{_LIST if listed else _NAME}: topic {source} is reserved for the {kind} of {whose}, also with"
            " managed: false",
            "name another topic" + ("" if derived[2] == "stage" else f"; the API answers {kind}"),
        )


def find_conflicts(schema: Schema, owner: Owner, claims: Iterable[Claim]) -> Iterator[tuple[Claim, TidemillError]]:
    """Yield the claims of other pipelines that conflict with this pipeline's topics, each with an error.

    Only one pipeline may manage a topic. Several pipelines may read a topic that no pipeline manages.
    """
    for claim in claims:
        if claim.schema == schema.name or claim.owner.cluster != owner.cluster:
            continue
        if claim.topic in schema.own_sources and (claim.managed or schema.source_managed):
            yield claim, _source_managed_error(claim, schema) if claim.managed else _source_shared_error(claim)
        elif claim.managed and claim.topic in schema.outputs:
            yield claim, _output_taken_error(claim)


def _whose(claim: Claim) -> str:
    return f"the pipeline {claim.owner.namespace}/{claim.owner.name}, which was first"


def _source_managed_error(claim: Claim, schema: Schema) -> TidemillError:
    path = _PATTERN if schema.pattern else _LIST if schema.listed_topics else _NAME
    other = f"change {schema.pattern} so that it does not match" if schema.pattern else "name another topic"
    return TidemillError(
        Reason.RESOURCE_CONFLICT,
        f"{path}: topic {claim.topic} is managed by {_whose(claim)}",
        f"{other}; pipelines can share a topic if each of them sets managed: false",
    )


def _source_shared_error(claim: Claim) -> TidemillError:
    return TidemillError(
        Reason.RESOURCE_CONFLICT,
        f"{_NAME}: topic {claim.topic} is read by {_whose(claim)}",
        "set managed: false for this pipeline too, or name another topic",
    )


def _output_taken_error(claim: Claim) -> TidemillError:
    return TidemillError(
        Reason.RESOURCE_CONFLICT,
        f"metadata.name: topic {claim.topic}, to which this pipeline would write, is managed by {_whose(claim)}",
        "give this pipeline another name",
    )


def topics_to_record(topics: Sequence[Topic], live: LiveFacts, *, namespace: str, name: str) -> tuple[str, ...]:
    """Return the names of managed topics that do not exist yet. The operator creates and records these topics.

    Postgres schemas of earlier Tidemill versions do not list the created topics. For these schemas, the result also
    includes existing topics with a derived name. A derived name contains the pipeline's namespace and name.
    """
    if live.brokers is None:
        return ()
    no_record = live.schema is not None and TOPICS_TABLE.name not in live.schema.columns
    own_topics = [topic for topic in topics if topic.managed and not topic.lost]
    return tuple(
        t.name for t in own_topics if t.name not in live.topics or (no_record and _derived(t, namespace, name))
    )


def topics_to_release(topics: Sequence[Topic], live: LiveSchema, *, namespace: str, name: str) -> list[Topic]:
    """Return the topics of a deleted pipeline. Topics that the operator did not create are marked as not managed."""
    no_record = TOPICS_TABLE.name not in live.columns
    not_created = [
        t for t in topics if t.name not in live.created_topics and not (no_record and _derived(t, namespace, name))
    ]
    return [replace(topic, managed=topic.managed and topic not in not_created) for topic in topics]


def _derived(topic: Topic, namespace: str, name: str) -> bool:
    return (names.parse_topic(topic.name) or ())[:2] == (namespace, name)
