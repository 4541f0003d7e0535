"""Tests of random edits of a resource on a real API server, Kafka and Postgres.

The operator is a process. MINUTES and SEED select more edits or others. `drawn.resources` draws them, also for a test
in memory. The API server may refuse or prune an edit. Therefore the test compares with the stored resource.
"""

from __future__ import annotations

import copy
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from drawn.resources import Edit, as_default, base, covered, draw, place_of
from tidemill_contract import names
from tidemill_contract.resource.validate import check_document
from tidemill_operator.actuators.kubernetes.api import PIPELINE, Document
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.matrix]

SAMPLE, FIRST = 24, 1
# Parts of refusals that depend on the spec before. `check` does not know that spec.
_OF_CHANGES = ("cannot change", "cannot be added", "can grow, but not be reduced")
_MAX_PARTITIONS = 32
_SETTLED_SECONDS = 90.0
# A pipeline may lack something for good, such as a topic that is not managed. This long after an edit, a status that
# says "not ready" is final.
_UNREADY_SECONDS = 20.0


@dataclass
class Subject:
    """The edited pipeline, with its objects, topics and tables."""

    cluster: Any
    servers: Any
    key: Key

    def put(self, spec: Document) -> Document:
        """Replace the spec with kubectl's strict validation, and return the stored resource."""
        live = self.cluster.get(self.key)
        path = f"/apis/{PIPELINE.api_version}/namespaces/{self.key.namespace}/{PIPELINE.plural}/{self.key.name}"
        body, query = {**live, "spec": copy.deepcopy(spec)}, {"fieldValidation": "Strict"}
        return dict(self.cluster.api._call("PUT", path, body=body, query=query))

    def settle(self, generation: int, *, eventually: Any) -> dict[str, Document]:
        """Wait until the operator has finished with a generation, and return the conditions by type.

        It has finished if the pipeline is stalled, no longer progressing, or still not ready after `_UNREADY_SECONDS`.
        """

        def settled() -> dict[str, Document]:
            status = self.cluster.get(self.key).get("status", {})
            conditions = {item["type"]: item for item in status.get("conditions", ())}
            if status.get("observedGeneration") != generation or "Ready" not in conditions:
                return {}
            late = time.monotonic() > begun + _UNREADY_SECONDS and conditions["Ready"]["status"] == "False"
            done = "Stalled" in conditions or conditions["Progressing"]["status"] == "False" or late
            return conditions if done else {}

        begun = time.monotonic()
        return dict(
            eventually(settled, seconds=_SETTLED_SECONDS, what=f"generation {generation} of {self.key} settles")
        )

    def remove(self, eventually: Any) -> None:
        """Delete the pipeline, and wait until no object in the namespace names it."""
        self.cluster.api.delete(PIPELINE, self.key.namespace, self.key.name)

        def gone() -> bool:
            children = json.dumps(self.state()["children"], default=str)
            return not self.cluster.get(self.key) and self.key.name not in children

        eventually(gone, seconds=_SETTLED_SECONDS, what=f"{self.key} is deleted")

    def state(self) -> Document:
        """Return objects, topics and columns of the pipeline, without numbers that only grow."""
        objects = self.cluster.children(self.key.namespace)
        children = {f"{kind} {name}": _stripped(kind, item) for (kind, name), item in objects.items()}
        admin = AdminClient({"bootstrap.servers": self.servers.kafka})
        prefix = f"{self.key.namespace}.{self.key.name}."
        topics = {name for name in admin.list_topics(timeout=20).topics if name.startswith(prefix)}
        query = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s"
        with psycopg.connect(self.servers.postgres.url) as session:
            columns = {*session.execute(query, (names.schema(self.key.namespace, self.key.name),)).fetchall()}
        return {"children": children, "topics": topics, "columns": columns}


def _stripped(kind: str, item: Document) -> Document:
    """Return an object without members that show how often it was changed."""
    metadata = {name: item["metadata"].get(name) for name in ("labels", "ownerReferences")}
    spec = copy.deepcopy(item.get("spec") or {})
    if kind == "Deployment":
        # Digests of configs, which name versions of tables.
        spec["template"]["metadata"].pop("annotations", None)
    data = item.get("data") or {}
    if kind == "Secret":
        return {**metadata, "data": sorted(data)}
    return {**metadata, "spec": spec, "data": {name: _config(text) for name, text in data.items()}}


def _config(text: str) -> Any:
    """Return a pipeline's config without versions, generation and partitions, which cannot shrink."""
    try:
        config = json.loads(text)
    except ValueError:
        return text
    if isinstance(config, dict) and "spec" in config:
        config.pop("generation", None)
        config["aggregations"] = sorted(aggregation["name"] for aggregation in config.get("aggregations", ()))
        config["spec"]["source"]["topic"].pop("partitions", None)
    return config


def _problems_of_edit(edit: Edit, subject: Subject, document: Document, eventually: Any) -> Iterator[str]:
    before, generation = subject.state(), subject.cluster.get(subject.key)["metadata"]["generation"]
    edited = edit.applied(document)
    faults = check_document(edited)[1]
    try:
        stored = subject.put(edited["spec"])
    except TidemillError as error:
        yield from _problems_of_refusal(str(error), faults)
        if subject.cluster.get(subject.key)["metadata"]["generation"] != generation:
            yield "refused, but stored"
        return
    if stored["metadata"]["generation"] == generation:
        return
    conditions = subject.settle(stored["metadata"]["generation"], eventually=eventually)
    after = subject.state()
    if any(item["reason"] == "Internal" for item in conditions.values()):
        yield f"an internal error: {conditions}"
    if "Stalled" in conditions:
        if after != before:
            yield f"refused, but something has changed: {covered(after, before)}"
        if "spec." not in conditions["Stalled"]["message"]:
            yield f"refused without naming a place: {conditions['Stalled']['message'][:300]}"
    elif check_document({**edited, "spec": stored["spec"]})[1]:
        yield f"accepted in spite of {faults[0]}"
    elif conditions["Ready"]["status"] != "True" and not conditions["Ready"]["message"]:
        yield "not ready, without a message"
    elif after == before and not (edit.absent or edit.path[0] == "reclaimPolicy" or as_default(*place_of(edit))):
        yield "accepted, but without any effect"
    yield from _problems_of_undo(subject, document, before, eventually)


def _problems_of_refusal(text: str, faults: list[Any]) -> Iterator[str]:
    if not faults and not any(words in text for words in _OF_CHANGES):
        yield f"the API server refuses it, but the operator would not: {text[:400]}"
    if "spec" not in text:
        yield f"refused without naming a place: {text[:300]}"


def _problems_of_undo(subject: Subject, document: Document, before: Document, eventually: Any) -> Iterator[str]:
    try:
        stored = subject.put(document["spec"])
    except TidemillError as error:
        if not any(words in str(error) for words in _OF_CHANGES):
            yield f"the edit cannot be undone: {str(error)[:400]}"
        return
    conditions = subject.settle(stored["metadata"]["generation"], eventually=eventually)
    if "Stalled" in conditions:
        if "partitions" not in conditions["Stalled"]["message"]:
            yield f"after the undo, the pipeline is stalled: {conditions['Stalled']['message'][:300]}"
    elif conditions["Ready"]["status"] != "True":
        yield f"after the undo, the pipeline is not ready: {conditions['Ready']['message'][:300]}"
    elif (differs := covered(subject.state(), before)) != "":
        yield f"after the undo, the state differs from the one before: {differs}"


def _too_large(edit: Edit) -> bool:
    """Return whether an edit asks for more than `_MAX_PARTITIONS` partitions. They cost time and show no more."""
    value = edit.value.get("partitions") if isinstance(edit.value, dict) else edit.value
    return edit.path[-1] in ("partitions", "topic") and isinstance(value, int) and value > _MAX_PARTITIONS


def test_random_edits_are_refused_without_change_or_applied_and_undone(
    cluster: Any, servers: Any, start_operator: Callable[..., Any], namespace: str, eventually: Any
) -> None:
    operator = start_operator()
    eventually(operator.leads, what="the operator leads")
    minutes = os.environ.get("MINUTES") if "FUZZ_RESOURCES" in os.environ else None
    first = int(os.environ.get("SEED") or (FIRST if minutes is None else random.SystemRandom().randrange(10**6)))
    deadline = time.monotonic() + float(minutes or 0) * 60
    wrong: list[str] = []
    subject, document, created = None, base(), 0
    seed = first
    while seed < first + SAMPLE or time.monotonic() < deadline:
        edit = draw(random.Random(seed), document)
        seed += 1
        if _too_large(edit):
            continue
        if subject is None:
            created += 1
            document = base()
            document["metadata"] = {"name": f"orders-{created:03}", "namespace": namespace, "generation": 1}
            subject = Subject(cluster, servers, cluster.create({**document, "metadata": document["metadata"]}))
            document["spec"] = cluster.get(subject.key)["spec"]
            subject.settle(1, eventually=eventually)
        begun = time.monotonic()
        problems = list(_problems_of_edit(edit, subject, document, eventually))
        print(f"SEED={seed - 1} {edit}: {time.monotonic() - begun:.1f} s {problems}")
        wrong += [f"SEED={seed - 1} {edit}: {problem}" for problem in problems]
        live = cluster.get(subject.key)
        if live["spec"] != document["spec"] or problems or "Stalled" in str(live["status"]["conditions"]):
            subject.remove(eventually)
            subject = None
    print(f"{seed - first} edits from SEED={first}, {len(wrong)} problems, {created} pipelines")
    assert not wrong, "\n".join(wrong[:20])
