"""Tests of the parts of a status: the observer writes figures, and passes write the rest. The API is in memory."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tidemill_operator.actuators.kafka.clusters import Clusters, secret_file_reader
from tidemill_operator.actuators.kafka.offsets import OffsetReader
from tidemill_operator.actuators.kubernetes.api import Conflict, Document, Kind
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.cluster.control import Controller
from tidemill_operator.cluster.figures_writer import FIELD_MANAGER, FiguresWriter
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.laptop.figures import LocalFigures
from tidemill_operator.laptop.store import StoredPipeline
from tidemill_operator.observer.figures import UNAVAILABLE, Figures, Observation

KEY = Key("shop", "orders", "u")
FIGURES = Figures(3, 4.0, 4.0, None, positions_at=1_000.0)
READY = {"type": "Ready", "status": "True", "reason": "Applied", "lastTransitionTime": "2026-01-01T00:00:00Z"}


class Api:
    """A resource whose status has an owner for each part, as with server-side apply."""

    def __init__(self) -> None:
        self.version, self.generation = 1, 1
        self.parts: dict[str, Document] = {"passes": {"conditions": [READY], "schema": "s"}}
        self.written: list[str] = []
        self.events: list[Document] = []

    def get(self, kind: Kind, namespace: str, name: str, *, uncached: bool = False) -> Document | None:
        status: Document = {}
        for part in self.parts.values():
            members = {key: value for key, value in part.items() if key != "conditions"}
            conditions = [*status.get("conditions", []), *part.get("conditions", [])]
            status = {**status, **members, "conditions": conditions}
        metadata = {"namespace": namespace, "name": name, "uid": "u", "generation": self.generation}
        metadata |= {"resourceVersion": str(self.version)}
        return {
            "apiVersion": "tidemill.dev/v1alpha1",
            "kind": "AnalyticsPipeline",
            "metadata": metadata,
            "status": status,
        }

    def apply(self, body: Document, *, subresource: str = "", manager: str = "passes") -> Document:
        assert subresource == "status"
        if body["metadata"].get("resourceVersion", str(self.version)) != str(self.version):
            raise Conflict(Reason.WAITING, "another version")
        self.version += 1
        self.parts[manager] = copy.deepcopy(body["status"])
        self.written.append(manager)
        return body

    def create(self, body: Document) -> Document:
        self.events.append(body)
        return body


class WriterBench:
    """An observer of the resource. Its clock moves five seconds at each observation."""

    def __init__(self) -> None:
        from tidemill_operator.cluster.event_recorder import EventRecorder

        self.api, self.at = Api(), 0.0
        self.writer = FiguresWriter(self.api, EventRecorder(self.api, "test"), clock=lambda: self.at)  # type: ignore[arg-type]

    def write(self, figures: Figures | None, fault: str = "") -> Document:
        self.at += 5.0
        self.writer.update(KEY, Observation(figures, fault, 1_000.0 + self.at))
        return self.api.parts.get(FIELD_MANAGER, {})


@pytest.fixture
def bench() -> WriterBench:
    return WriterBench()


def test_figures_are_written_beside_the_status_of_passes(bench: WriterBench) -> None:
    assert bench.write(FIGURES) == {"lag": 3, "lagSeconds": 5, "freshness": "5s", "freshnessSeconds": 5.0}
    assert bench.write(FIGURES)
    assert bench.api.written == [FIELD_MANAGER], "unchanged figures are not written again"
    assert bench.api.events == []


def test_unknown_figures_are_removed_and_reported_once(bench: WriterBench) -> None:
    bench.write(FIGURES)
    for _ in range(3):
        (condition,) = bench.write(None, "Kafka does not tell")["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == (UNAVAILABLE, "True", "Unreachable")
    assert set(bench.api.parts[FIELD_MANAGER]) == {"conditions"}
    bench.write(FIGURES)
    assert "conditions" not in bench.api.parts[FIELD_MANAGER]
    reported = [(event["type"], event["reason"], event["message"]) for event in bench.api.events]
    assert reported == [
        ("Warning", "FiguresUnavailable", "LAG and FRESHNESS are not known: Kafka does not tell"),
        ("Normal", "FiguresAvailable", "LAG and FRESHNESS are known again"),
    ]


def test_figures_that_another_writer_removed_are_written_again(bench: WriterBench) -> None:
    """An operator of an earlier version wrote figures in its passes.

    The first pass of this version removes them.
    """
    bench.write(FIGURES)
    bench.api.parts[FIELD_MANAGER] = {}
    bench.write(FIGURES)
    assert bench.write(FIGURES)["lag"] == 3


def test_figures_of_another_resource_with_the_name_are_not_written(bench: WriterBench) -> None:
    bench.writer.update(Key("shop", "orders", "other"), Observation(FIGURES, "", 1_000.0))
    assert bench.api.written == []


def test_an_observer_that_stops_removes_its_figures(bench: WriterBench) -> None:
    bench.write(FIGURES)
    bench.writer.remove_all()
    assert bench.api.parts[FIELD_MANAGER] == {}
    bench.writer.remove_all()
    assert bench.api.written == [FIELD_MANAGER, FIELD_MANAGER]
    assert bench.api.parts["passes"]["schema"] == "s"


def controller(api: Api) -> Controller:
    class Cluster:
        pass

    cluster: Any = Cluster()
    cluster.api = api
    return Controller(cluster, recorder=None, observer=None, metrics=None, scaling=None)  # type: ignore[arg-type]


def test_a_pass_writes_its_status_although_figures_changed_meanwhile(bench: WriterBench) -> None:
    document = bench.api.get(None, "shop", "orders")  # type: ignore[arg-type]
    assert document is not None
    bench.write(FIGURES)
    controller(bench.api)._write(document, {"schema": "t", "conditions": [READY]})
    assert bench.api.written == [FIELD_MANAGER, "passes"]
    assert bench.api.parts["passes"]["schema"] == "t"
    assert bench.api.parts[FIELD_MANAGER]["lag"] == 3


def test_a_pass_writes_nothing_if_the_spec_changed_meanwhile(bench: WriterBench) -> None:
    document = bench.api.get(None, "shop", "orders")  # type: ignore[arg-type]
    assert document is not None
    bench.write(FIGURES)
    bench.api.generation = 2
    with pytest.raises(Conflict):
        controller(bench.api)._write(document, {"schema": "t"})


def test_an_interruption_changes_ready_and_leaves_figures_unchanged(bench: WriterBench) -> None:
    """Between two passes, Ready changes. The observer's part is neither written nor reported."""
    reported: list[Any] = []
    passes = controller(bench.api)
    passes._recorder = SimpleNamespace(record_changes=lambda _, before, after: reported.append((before, after)))  # type: ignore[assignment]
    passes._metrics = SimpleNamespace(record_state=lambda *_: None)  # type: ignore[assignment]
    bench.write(FIGURES)
    passes.report_interruption(KEY, TidemillError(Reason.NOT_MOVING, "none is counted"))
    written = bench.api.parts["passes"]
    assert [(c["type"], c["reason"]) for c in written["conditions"]] == [("Ready", "EventsNotMoving")]
    assert "lag" not in written
    assert bench.api.parts[FIELD_MANAGER]["lag"] == 3
    assert [set(after) - set(before) for before, after in reported] == [set()]


def test_up_shows_figures_of_its_pipelines(tmp_path: Path) -> None:
    """The status and the target of Prometheus have figures of running pipelines. A change is printed once."""
    printed: list[str] = []
    clusters = Clusters(secret_file_reader(Path()))
    local = LocalFigures(
        OffsetReader(""), PostgresAddress("", 0, "", "", ""), clusters=clusters, host="127.0.0.1", say=printed.append
    )
    status = {"schema": "shop__orders", "topics": [{"name": "shop.orders.events"}]}
    stored = StoredPipeline({"metadata": {"namespace": "shop", "name": "orders", "uid": "u"}}, status=status)
    local.watch([stored])
    assert local.status(stored) == {}
    local._record(KEY, Observation(FIGURES, "", 1_000.0))
    assert local.status(stored)["lag"] == 3
    for _ in range(2):
        local._record(KEY, Observation(None, "Kafka does not tell", 1_000.0))
    assert [c["type"] for c in local.status(stored)["conditions"]] == [UNAVAILABLE]
    assert printed == ["shop/orders: figures are not known: Kafka does not tell"]
    assert local.target("here") == {"targets": [f"here:{local.port}"], "labels": {"component": "operator"}}
    local.watch([])
    assert local.status(stored) == {}
    local.close()
