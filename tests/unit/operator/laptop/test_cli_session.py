"""The control loop of `up` without servers: what is accepted, when it is reconciled, what leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tidemill_operator.laptop import session as session_module
from tidemill_operator.laptop.session import Session, describe
from tidemill_operator.laptop.sources import Reading
from tidemill_operator.laptop.store import Store, Stored

A, B = "default/a", "default/b"


def document(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": name},
        "spec": spec,
    }


def reading(*documents: Mapping[str, Any], faults: tuple[str, ...] = ()) -> Reading:
    return Reading({f"default/{found['metadata']['name']}": found for found in documents}, faults)


class World:
    """A session whose pipelines are ready at once, unless `failure` says otherwise."""

    def __init__(self, folder: Path) -> None:
        self.applied: list[tuple[str, int]] = []
        self.released: list[str] = []
        self.said: list[str] = []
        self.failure: Exception | None = None
        self.store = Store(folder)
        self.session = Session(self.store, apply=self.apply, release=self.release, say=self.said.append)

    def apply(self, stored: Stored) -> Mapping[str, Any]:
        if self.failure is not None:
            raise self.failure
        generation = stored.document["metadata"]["generation"]
        self.applied.append((stored.key, generation))
        return {"observedGeneration": generation, "conditions": [{"type": "Ready", "status": "True"}]}

    def release(self, stored: Stored) -> None:
        self.released.append(stored.key)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_ready_pipeline_is_left_alone_until_drift_is_looked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reconcile makes it ready; the next comes with the drift interval."""
    world.session.take(reading(document("a", x=1)))
    for _ in range(3):
        world.session.step()
    assert world.applied == [(A, 1)]
    assert world.session.ready
    monkeypatch.setattr(session_module, "DRIFT_SECONDS", 0.0)
    world.session._due[A] = 0.0
    world.session.step()
    world.session.step()
    assert world.applied == [(A, 1)] * 3


def test_only_a_changed_spec_is_a_new_generation(world: World) -> None:
    """An equal document is no work; labels are work but no generation; a spec is both."""
    world.session.take(reading(document("a", x=1)))
    world.session.step()
    world.session.take(reading(document("a", x=1)))
    world.session.step()
    assert world.applied == [(A, 1)]
    labelled = document("a", x=1)
    labelled["metadata"]["labels"] = {"team": "one"}
    world.session.take(reading(labelled))
    world.session.step()
    world.session.take(reading(document("a", x=2)))
    assert not world.session.ready
    world.session.step()
    assert world.applied == [(A, 1), (A, 1), (A, 2)]
    assert world.session.ready


def test_generation_and_identity_survive_a_restart(world: World, tmp_path: Path) -> None:
    """A later run goes on counting, keeps the uid and hands the former status on."""
    world.session.take(reading(document("a", x=1)))
    world.session.step()
    before = world.session.pipelines[A]
    later = World(tmp_path)
    later.session.take(reading(document("a", x=2)))
    after = later.session.pipelines[A]
    assert after.document["metadata"]["uid"] == before.document["metadata"]["uid"]
    assert after.document["metadata"]["generation"] == 2
    assert after.status == before.status


def test_a_pipeline_that_left_the_files_is_released_once(world: World) -> None:
    """It is forgotten, and the others are not touched."""
    world.session.take(reading(document("a"), document("b")))
    world.session.step()
    world.session.take(reading(document("b")))
    assert not world.session.ready
    world.session.step()
    world.session.step()
    assert world.released == [A]
    assert list(world.session.pipelines) == [B]
    assert [stored.key for stored in world.store] == [B]
    assert world.session.ready


def test_a_pipeline_that_comes_back_before_its_release_stays(world: World) -> None:
    """Cut and paste in an editor, saved in between, must not delete data."""
    world.session.take(reading(document("a")))
    world.session.step()
    world.session.take(reading())
    world.session.take(reading(document("a")))
    world.session.step()
    assert world.released == []
    assert world.session.ready


def test_faults_are_said_and_the_last_good_documents_run_on(world: World) -> None:
    """The reading of a faulty file holds its last good documents: nothing is reconciled, nothing released."""
    world.session.take(reading(document("a")))
    world.session.step()
    world.session.take(reading(document("a"), faults=("a.yaml: spec.source: is missing; add it",)))
    world.session.step()
    assert "error: a.yaml: spec.source: is missing; add it" in world.said
    assert world.applied == [(A, 1)]
    assert world.released == []


def test_a_failing_reconcile_is_tried_again_ever_more_slowly(world: World) -> None:
    """The loop outlives a dependency that is down, says so once, and recovers."""
    world.session.take(reading(document("a")))
    world.failure = ConnectionError("Postgres does not answer")
    delays = []
    for _ in range(8):
        world.session._due[A] = 0.0
        world.session.step()
        delays.append(world.session._backoff[A])
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert [text for text in world.said if "does not answer" in text] == [
        f"{A}: failed: Postgres does not answer; trying again"
    ]
    world.failure = None
    world.session._due[A] = 0.0
    world.session.step()
    assert world.session.ready


def test_a_pipeline_that_has_failed_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are told of without it, once it has failed for a while; with it, when it is ready after all."""
    stuck: dict[str, Any] = {"type": "Ready", "status": "False", "reason": "NotSupported", "message": "column xmin"}
    verdicts = {B: stuck}

    def apply(stored: Stored) -> Mapping[str, Any]:
        generation = stored.document["metadata"]["generation"]
        return {
            "observedGeneration": generation,
            "conditions": [verdicts.get(stored.key, {"type": "Ready", "status": "True"})],
        }

    session = Session(world.store, apply=apply, release=world.release, say=world.said.append)
    session.take(reading(document("a"), document("b")))
    session.step()
    assert (session.ready, session.settled, session.failed) == (False, False, {})
    monkeypatch.setattr(session_module, "FAILED_SECONDS", 0.0)
    assert (session.ready, session.settled, session.failed) == (False, True, {B: "column xmin"})
    for reason in ("Waiting", "Blocked", "Unreachable"):
        verdicts[B] = {**stuck, "reason": reason}
        session._due[B] = 0.0
        session.step()
        assert (session.settled, session.failed) == (False, {}), reason
    verdicts[A] = verdicts[B] = stuck
    session.nudge()
    session.step()
    assert not session.settled, "there is nobody to be told of"
    verdicts.clear()
    session.nudge()
    session.step()
    assert (session.ready, session.settled, session.failed) == (True, True, {})


def test_a_ready_pipeline_whose_reconcile_fails_is_ready_still(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "FAILED_SECONDS", 0.0)
    world.session.take(reading(document("a")))
    world.session.step()
    world.failure = ConnectionError("Postgres does not answer")
    world.session._due[A] = 0.0
    world.session.step()
    assert (world.session.ready, world.session.settled, world.session.failed) == (True, True, {})


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        ({}, "not ready yet", "never reconciled"),
        (
            {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]},
            "ready",
            "ready for this generation",
        ),
        (
            {"observedGeneration": 0, "conditions": [{"type": "Ready", "status": "True"}]},
            "not ready yet",
            "ready, but for an older spec",
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
def test_a_pipelines_state_is_told_in_one_line(status: dict[str, Any], expected: str, reason: str) -> None:
    stored = Stored({"metadata": {"name": "a", "namespace": "default", "generation": 1}}, status)
    assert describe(stored) == expected, reason
