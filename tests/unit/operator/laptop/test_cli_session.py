"""Tests of the control loop of `up` without servers: accepted documents, passes and released pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tidemill_operator.laptop import session as session_module
from tidemill_operator.laptop.pipeline_files import FilesContent
from tidemill_operator.laptop.session import Session, describe
from tidemill_operator.laptop.store import Store, StoredPipeline

A, B = "default/a", "default/b"


def document(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": name},
        "spec": spec,
    }


def files(*documents: Mapping[str, Any], faults: tuple[str, ...] = ()) -> FilesContent:
    return FilesContent({f"default/{item['metadata']['name']}": item for item in documents}, faults)


class SessionBench:
    """A session whose pipelines are ready after one pass. `failure` is raised by each pass instead."""

    def __init__(self, folder: Path) -> None:
        self.applied: list[tuple[str, int]] = []
        self.released: list[str] = []
        self.printed: list[str] = []
        self.failure: Exception | None = None
        self.store = Store(folder)
        self.session = Session(self.store, apply=self.apply, release=self.release, say=self.printed.append)

    def apply(self, stored: StoredPipeline) -> Mapping[str, Any]:
        if self.failure is not None:
            raise self.failure
        generation = stored.document["metadata"]["generation"]
        self.applied.append((stored.key, generation))
        return {"observedGeneration": generation, "conditions": [{"type": "Ready", "status": "True"}]}

    def release(self, stored: StoredPipeline) -> None:
        self.released.append(stored.key)


@pytest.fixture
def bench(tmp_path: Path) -> SessionBench:
    return SessionBench(tmp_path)


def test_a_ready_pipeline_has_no_pass_before_the_interval_for_drift(
    bench: SessionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass makes the pipeline ready. The next pass follows after the interval for drift."""
    bench.session.update_pipelines(files(document("a", x=1)))
    for _ in range(3):
        bench.session.step()
    assert bench.applied == [(A, 1)]
    assert bench.session.ready
    monkeypatch.setattr(session_module, "DRIFT_SECONDS", 0.0)
    bench.session._due[A] = 0.0
    bench.session.step()
    bench.session.step()
    assert bench.applied == [(A, 1)] * 3


def test_only_a_changed_spec_is_a_new_generation(bench: SessionBench) -> None:
    """An equal document causes no pass. Labels cause a pass but no generation, and a spec causes both."""
    bench.session.update_pipelines(files(document("a", x=1)))
    bench.session.step()
    bench.session.update_pipelines(files(document("a", x=1)))
    bench.session.step()
    assert bench.applied == [(A, 1)]
    labelled = document("a", x=1)
    labelled["metadata"]["labels"] = {"team": "one"}
    bench.session.update_pipelines(files(labelled))
    bench.session.step()
    bench.session.update_pipelines(files(document("a", x=2)))
    assert not bench.session.ready
    bench.session.step()
    assert bench.applied == [(A, 1), (A, 1), (A, 2)]
    assert bench.session.ready


def test_a_restart_keeps_generation_and_uid(bench: SessionBench, tmp_path: Path) -> None:
    """A later run continues the generations, keeps the uid and passes the former status on."""
    bench.session.update_pipelines(files(document("a", x=1)))
    bench.session.step()
    before = bench.session.pipelines[A]
    later = SessionBench(tmp_path)
    later.session.update_pipelines(files(document("a", x=2)))
    after = later.session.pipelines[A]
    assert after.document["metadata"]["uid"] == before.document["metadata"]["uid"]
    assert after.document["metadata"]["generation"] == 2
    assert after.status == before.status


def test_a_pipeline_that_is_removed_from_the_files_is_released_once(bench: SessionBench) -> None:
    """The pipeline is removed from the store, and other pipelines are not touched."""
    bench.session.update_pipelines(files(document("a"), document("b")))
    bench.session.step()
    bench.session.update_pipelines(files(document("b")))
    assert not bench.session.ready
    bench.session.step()
    bench.session.step()
    assert bench.released == [A]
    assert list(bench.session.pipelines) == [B]
    assert [stored.key for stored in bench.store] == [B]
    assert bench.session.ready


def test_a_pipeline_that_is_added_again_before_its_release_is_kept(bench: SessionBench) -> None:
    """While a document is moved within a file, a saved version may lack the document."""
    bench.session.update_pipelines(files(document("a")))
    bench.session.step()
    bench.session.update_pipelines(files())
    bench.session.update_pipelines(files(document("a")))
    bench.session.step()
    assert bench.released == []
    assert bench.session.ready


def test_faults_are_printed_and_the_last_good_documents_stay_in_force(bench: SessionBench) -> None:
    """The last good documents of a faulty file are read, and nothing is applied or released."""
    bench.session.update_pipelines(files(document("a")))
    bench.session.step()
    bench.session.update_pipelines(files(document("a"), faults=("a.yaml: spec.source: is missing; add it",)))
    bench.session.step()
    assert "error: a.yaml: spec.source: is missing; add it" in bench.printed
    assert bench.applied == [(A, 1)]
    assert bench.released == []


def test_a_failing_pass_is_repeated_with_growing_delays(bench: SessionBench) -> None:
    """A failure is printed once, and the loop recovers."""
    bench.session.update_pipelines(files(document("a")))
    bench.failure = ConnectionError("Postgres does not answer")
    delays = []
    for _ in range(8):
        bench.session._due[A] = 0.0
        bench.session.step()
        delays.append(bench.session._backoff[A])
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert [text for text in bench.printed if "does not answer" in text] == [
        f"{A}: failed: Postgres does not answer; trying again"
    ]
    bench.failure = None
    bench.session._due[A] = 0.0
    bench.session.step()
    assert bench.session.ready


def test_a_failed_pipeline_is_not_waited_for(bench: SessionBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that has failed for a while is reported. The others then count as settled."""
    stuck: dict[str, Any] = {"type": "Ready", "status": "False", "reason": "NotSupported", "message": "column xmin"}
    conditions = {B: stuck}

    def apply(stored: StoredPipeline) -> Mapping[str, Any]:
        generation = stored.document["metadata"]["generation"]
        return {
            "observedGeneration": generation,
            "conditions": [conditions.get(stored.key, {"type": "Ready", "status": "True"})],
        }

    session = Session(bench.store, apply=apply, release=bench.release, say=bench.printed.append)
    session.update_pipelines(files(document("a"), document("b")))
    session.step()
    assert (session.ready, session.settled, session.failed) == (False, False, {})
    monkeypatch.setattr(session_module, "FAILED_SECONDS", 0.0)
    assert (session.ready, session.settled, session.failed) == (False, True, {B: "column xmin"})
    for reason in ("Waiting", "Blocked", "Unreachable"):
        conditions[B] = {**stuck, "reason": reason}
        session._due[B] = 0.0
        session.step()
        assert (session.settled, session.failed) == (False, {}), reason
    conditions[A] = conditions[B] = stuck
    session.request_passes()
    session.step()
    assert not session.settled, "no pipeline is ready, so nothing is settled"
    conditions.clear()
    session.request_passes()
    session.step()
    assert (session.ready, session.settled, session.failed) == (True, True, {})


def test_a_ready_pipeline_stays_ready_when_a_pass_fails(bench: SessionBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "FAILED_SECONDS", 0.0)
    bench.session.update_pipelines(files(document("a")))
    bench.session.step()
    bench.failure = ConnectionError("Postgres does not answer")
    bench.session._due[A] = 0.0
    bench.session.step()
    assert (bench.session.ready, bench.session.settled, bench.session.failed) == (True, True, {})


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        ({}, "not ready yet", "never reconciled"),
        (
            {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]},
            "ready",
            "Ready is of this generation",
        ),
        (
            {"observedGeneration": 0, "conditions": [{"type": "Ready", "status": "True"}]},
            "not ready yet",
            "Ready is of an older generation",
        ),
        (
            {
                "observedGeneration": 1,
                "conditions": [
                    {"type": "Ready", "status": "False", "message": "sum of the others"},
                    {"type": "TopicsReady", "status": "False", "message": "no broker"},
                    {"type": "SchemaReady", "status": "True"},
                ],
            },
            "not ready yet (TopicsReady: no broker)",
            "the failing condition is named",
        ),
    ],
)
def test_the_state_of_a_pipeline_is_described_in_one_line(status: dict[str, Any], expected: str, reason: str) -> None:
    stored = StoredPipeline({"metadata": {"name": "a", "namespace": "default", "generation": 1}}, status)
    assert describe(stored) == expected, reason
