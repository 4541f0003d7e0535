"""Drawn edits of a resource, on a real API server, by the operator's own process; a sample, more by MINUTES and SEED.

The edits are those of `drawn.resources`, which a test in memory uses too. Here the API server refuses or prunes an edit
first. The test compares with what the API server stores.
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
from tidemill_contract.resource.validate import check
from tidemill_operator.actuators.kubernetes.api import PIPELINE, Document
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.matrix]

SAMPLE, FIRST = 24, 1
# What a rule of the API server refuses because of what was before, which `check` does not know.
_OF_CHANGES = ("cannot change", "cannot be added", "can grow, but not be reduced")
_MOST_PARTITIONS = 32
_SETTLED_SECONDS = 90.0
# Something may be missing for good, such as a topic that is not managed; then it has to be told, and is waited for.
_TOLD_SECONDS = 20.0


@dataclass
class Subject:
    """One pipeline, its children, its topics and tables."""

    cluster: Any
    servers: Any
    key: Key

    def put(self, spec: Document) -> Document:
        """Replace the spec, as strictly as kubectl; what the API server has stored."""
        live = self.cluster.get(self.key)
        path = f"/apis/{PIPELINE.api_version}/namespaces/{self.key.namespace}/{PIPELINE.plural}/{self.key.name}"
        body, query = {**live, "spec": copy.deepcopy(spec)}, {"fieldValidation": "Strict"}
        return dict(self.cluster.api._call("PUT", path, body=body, query=query))

    def settle(self, generation: int, *, eventually: Any) -> dict[str, Document]:
        """Conditions of that generation, once nothing is on its way, or somebody is told what is waited for."""

        def seen() -> dict[str, Document]:
            status = self.cluster.get(self.key).get("status", {})
            found = {item["type"]: item for item in status.get("conditions", ())}
            if status.get("observedGeneration") != generation or "Ready" not in found:
                return {}
            late = time.monotonic() > begun + _TOLD_SECONDS and found["Ready"]["status"] == "False"
            done = "Stalled" in found or found["Progressing"]["status"] == "False" or late
            return found if done else {}

        begun = time.monotonic()
        return dict(eventually(seen, seconds=_SETTLED_SECONDS, what=f"generation {generation} of {self.key} settles"))

    def remove(self, eventually: Any) -> None:
        """Delete it, and wait until nothing in its namespace names it any more."""
        self.cluster.api.delete(PIPELINE, self.key.namespace, self.key.name)

        def gone() -> bool:
            children = json.dumps(self.state()["children"], default=str)
            return not self.cluster.get(self.key) and self.key.name not in children

        eventually(gone, seconds=_SETTLED_SECONDS, what=f"{self.key} is gone")

    def state(self) -> Document:
        """All that is there, but for what counts up and never shrinks."""
        found = self.cluster.children(self.key.namespace)
        children = {" ".join(name): _stripped(kind, item) for name, item in found.items() for kind in name[:1]}
        admin = AdminClient({"bootstrap.servers": self.servers.kafka})
        prefix = f"{self.key.namespace}.{self.key.name}."
        topics = {name for name in admin.list_topics(timeout=20).topics if name.startswith(prefix)}
        query = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s"
        with psycopg.connect(self.servers.postgres.url) as session:
            columns = {*session.execute(query, (names.schema(self.key.namespace, self.key.name),)).fetchall()}
        return {"children": children, "topics": topics, "columns": columns}


def _stripped(kind: str, item: Document) -> Document:
    """An object without what tells how often it was changed."""
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
    """A pipeline's config without versions, generations and what Kafka takes away no more."""
    try:
        config = json.loads(text)
    except ValueError:
        return text
    if isinstance(config, dict) and "spec" in config:
        config.pop("generation", None)
        config["aggregations"] = sorted(one["name"] for one in config.get("aggregations", ()))
        config["spec"]["source"]["topic"].pop("partitions", None)
    return config


def _problems(edit: Edit, subject: Subject, document: Document, eventually: Any) -> Iterator[str]:
    before, generation = subject.state(), subject.cluster.get(subject.key)["metadata"]["generation"]
    edited = edit.applied(document)
    faults = check(edited)[1]
    try:
        stored = subject.put(edited["spec"])
    except TidemillError as error:
        yield from _refused_at_once(str(error), faults)
        if subject.cluster.get(subject.key)["metadata"]["generation"] != generation:
            yield "refused, and stored"
        return
    if stored["metadata"]["generation"] == generation:
        return
    conditions = subject.settle(stored["metadata"]["generation"], eventually=eventually)
    after = subject.state()
    if any(item["reason"] == "Internal" for item in conditions.values()):
        yield f"an internal error: {conditions}"
    if "Stalled" in conditions:
        if after != before:
            yield f"refused, and something has changed: {covered(after, before)}"
        if "spec." not in conditions["Stalled"]["message"]:
            yield f"refused without naming a place: {conditions['Stalled']['message'][:300]}"
    elif check({**edited, "spec": stored["spec"]})[1]:
        yield f"accepted in spite of {faults[0]}"
    elif conditions["Ready"]["status"] != "True" and not conditions["Ready"]["message"]:
        yield "not ready without a word"
    elif after == before and not (edit.absent or edit.path[0] == "reclaimPolicy" or as_default(*place_of(edit))):
        yield "accepted, and without any effect"
    yield from _back(subject, document, before, eventually)


def _refused_at_once(text: str, faults: list[Any]) -> Iterator[str]:
    if not faults and not any(words in text for words in _OF_CHANGES):
        yield f"the API server refuses it, the operator would not: {text[:400]}"
    if "spec" not in text:
        yield f"refused without naming a place: {text[:300]}"


def _back(subject: Subject, document: Document, before: Document, eventually: Any) -> Iterator[str]:
    try:
        stored = subject.put(document["spec"])
    except TidemillError as error:
        if not any(words in str(error) for words in _OF_CHANGES):
            yield f"it cannot be taken back: {str(error)[:400]}"
        return
    conditions = subject.settle(stored["metadata"]["generation"], eventually=eventually)
    if "Stalled" in conditions:
        if "partitions" not in conditions["Stalled"]["message"]:
            yield f"taken back, it is stalled: {conditions['Stalled']['message'][:300]}"
    elif conditions["Ready"]["status"] != "True":
        yield f"taken back, it is not ready: {conditions['Ready']['message'][:300]}"
    elif (differs := covered(subject.state(), before)) != "":
        yield f"taken back, it is not as before: {differs}"


def _too_much(edit: Edit) -> bool:
    """Hundreds of partitions or pods say nothing that a few do not."""
    value = edit.value.get("partitions") if isinstance(edit.value, dict) else edit.value
    return edit.path[-1] in ("partitions", "topic") and isinstance(value, int) and value > _MOST_PARTITIONS


def test_drawn_edits_hold_on_a_real_api_server(
    cluster: Any, servers: Any, start_operator: Callable[..., Any], namespace: str, eventually: Any
) -> None:
    """Refused edits change nothing, accepted ones do something and can be taken back."""
    operator = start_operator()
    eventually(operator.leads, what="it leads")
    minutes = os.environ.get("MINUTES") if "FUZZ_RESOURCES" in os.environ else None
    first = int(os.environ.get("SEED") or (FIRST if minutes is None else random.SystemRandom().randrange(10**6)))
    deadline = time.monotonic() + float(minutes or 0) * 60
    wrong: list[str] = []
    subject, document, made = None, base(), 0
    seed = first
    while seed < first + SAMPLE or time.monotonic() < deadline:
        edit = draw(random.Random(seed), document)
        seed += 1
        if _too_much(edit):
            continue
        if subject is None:
            made += 1
            document = base()
            document["metadata"] = {"name": f"orders-{made:03}", "namespace": namespace, "generation": 1}
            subject = Subject(cluster, servers, cluster.create({**document, "metadata": document["metadata"]}))
            document["spec"] = cluster.get(subject.key)["spec"]
            subject.settle(1, eventually=eventually)
        begun = time.monotonic()
        found = list(_problems(edit, subject, document, eventually))
        print(f"SEED={seed - 1} {edit}: {time.monotonic() - begun:.1f} s {found}")
        wrong += [f"SEED={seed - 1} {edit}: {problem}" for problem in found]
        live = cluster.get(subject.key)
        if live["spec"] != document["spec"] or found or "Stalled" in str(live["status"]["conditions"]):
            subject.remove(eventually)
            subject = None
    print(f"{seed - first} edits from SEED={first}, {len(wrong)} problems, {made} pipelines")
    assert not wrong, "\n".join(wrong[:20])
