"""Pure: which topics a pipeline has, why another one may not use them, and which of them go with it.

The operator and `tidemill plan` ask here alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tidemill_contract import names
from tidemill_contract.tables.definition import Column, Table
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.model import LiveFacts, LiveSchema, Owner, Schema, Topic

_NAME = "spec.source.topic.name"

# Topics that were not there and that the operator made for the pipeline; only these are ever deleted.
TOPICS = Table(
    "_topics",
    (Column("name", "text PRIMARY KEY"), Column("made_at", "timestamptz NOT NULL DEFAULT now()")),
    reader="",
)


@dataclass(frozen=True)
class Claim:
    """A topic that a pipeline has.

    Attributes:
        managed: whether it makes and alters it; otherwise it only reads it.
        schema: the pipeline's.
    """

    topic: str
    managed: bool
    owner: Owner
    schema: str


def written_by_pipelines(namespace: str, name: str, source: str) -> Iterator[TidemillError]:
    """Why a topic is no source: pipelines of the namespace write results, anomalies or dead letters to it.

    This depends on the names alone, so nobody takes a name before the pipeline is there that it belongs to.
    """
    derived = names.derived_topic(source)
    if derived is None or derived[0] != namespace or derived[2] not in names.OUTPUT_TOPICS:
        return
    own = derived[1] == name
    whose = "this pipeline itself" if own else f"the pipeline {namespace}/{derived[1]}"
    kind = derived[2].replace("-", " ")
    yield TidemillError(
        Reason.RESOURCE_CONFLICT,
        f"{_NAME}: topic {source} is that of the {kind} of {whose}, whether it is managed here or not",
        f"name another topic; the API answers {kind}",
    )


def disputes(schema: Schema, owner: Owner, claims: Iterable[Claim]) -> Iterator[tuple[Claim, TidemillError]]:
    """The claims of other pipelines that a pipeline's topics run into, and what is told of each.

    What one pipeline manages is no other's in any way; what is only read may be read by many.
    """
    for claim in claims:
        if claim.schema == schema.name or claim.owner.cluster != owner.cluster:
            continue
        if claim.topic == schema.source and (claim.managed or schema.managed):
            yield claim, _claimed(claim) if claim.managed else _read(claim)
        elif claim.managed and claim.topic in schema.outputs:
            yield claim, _taken(claim)


def _whose(claim: Claim) -> str:
    return f"the pipeline {claim.owner.namespace}/{claim.owner.name}, which was first"


def _claimed(claim: Claim) -> TidemillError:
    return TidemillError(
        Reason.RESOURCE_CONFLICT,
        f"{_NAME}: topic {claim.topic} is managed by {_whose(claim)}",
        "name another topic; several pipelines can read one that none of them manages (managed: false in each)",
    )


def _read(claim: Claim) -> TidemillError:
    return TidemillError(
        Reason.RESOURCE_CONFLICT,
        f"{_NAME}: topic {claim.topic} is read by {_whose(claim)}",
        "read it with managed: false as well, or name another topic",
    )


def _taken(claim: Claim) -> TidemillError:
    return TidemillError(
        Reason.RESOURCE_CONFLICT,
        f"metadata.name: topic {claim.topic}, to which this pipeline would write, is managed by {_whose(claim)}",
        "give this pipeline another name",
    )


def made(topics: Sequence[Topic], live: LiveFacts, *, namespace: str, name: str) -> tuple[str, ...]:
    """The topics that are noted as made by the operator from now on.

    Those that are managed and not there. Of a pipeline from before such notes also those that bear its name.
    """
    if live.brokers is None:
        return ()
    unnoted = live.schema is not None and TOPICS.name not in live.schema.columns
    mine = [topic for topic in topics if topic.managed and not topic.lost]
    return tuple(t.name for t in mine if t.name not in live.topics or (unnoted and _derived(t, namespace, name)))


def only_made(topics: Sequence[Topic], live: LiveSchema, *, namespace: str, name: str) -> list[Topic]:
    """The topics of a pipeline that goes; what the operator did not make is not its own to delete."""
    unnoted = TOPICS.name not in live.columns
    kept = [t for t in topics if t.name not in live.made and not (unnoted and _derived(t, namespace, name))]
    return [replace(topic, managed=topic.managed and topic not in kept) for topic in topics]


def _derived(topic: Topic, namespace: str, name: str) -> bool:
    return (names.derived_topic(topic.name) or ())[:2] == (namespace, name)
