"""Tests of the rotation of passwords: staged, switched and retired logins, also after a pass that was interrupted."""

from __future__ import annotations

import copy
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from tidemill_operator.actuators import credentials
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

Document = dict[str, Any]
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
WRITER, READER = "shop__orders_writer", "shop__orders_reader"
ROLES = {"writer": WRITER, "reader": READER}


def later(seconds: float) -> dt.datetime:
    return NOON + dt.timedelta(seconds=seconds)


def users(secrets: PipelineSecrets) -> tuple[str, str]:
    """Return the suffixes of the logins in force, of writer and reader."""
    return secrets.writer.user.removeprefix(WRITER), secrets.reader.user.removeprefix(READER)


def read_secrets(files: dict[str, str]) -> PipelineSecrets:
    return credentials.read_logins(files, retire_delay_seconds=60.0, changed=0)


def due(files: dict[str, str], rotate: str = "") -> dict[str, str]:
    return credentials.files_to_ensure(files, **ROLES, rotate=rotate)


def test_without_the_annotation_nothing_is_rotated() -> None:
    files = due({})
    assert credentials.ROTATION not in files
    assert users(read_secrets(files)) == ("_a", "_a")
    assert due(files) == {}
    assert (credentials.files_to_switch(files, NOON), credentials.files_to_retire(files)) == ({}, {})


def test_a_pipeline_created_with_the_annotation_needs_no_rotation() -> None:
    files = due({}, "1")
    assert (read_secrets(files).completed_rotation, read_secrets(files).staged) == ("1", ())
    assert due(files, "1") == {}


def test_rotations_alternate_between_two_logins() -> None:
    """Each rotation sets the other login and a new password. The next rotation waits for its end."""
    files = due({})
    logins = [read_secrets(files).writer]
    for number, letters in ((1, ("_b", "_b")), (2, ("_a", "_a")), (3, ("_b", "_b"))):
        files |= due(files, str(number))
        assert {login.user[-2:] for login in read_secrets(files).staged} == {letters[0]}
        assert read_secrets(files).writer == logins[-1]
        assert due(files, str(number)) == {}
        files |= credentials.files_to_switch(files, later(number))
        secrets = read_secrets(files)
        assert (users(secrets), secrets.staged, secrets.completed_rotation) == (letters, (), str(number))
        assert secrets.retire_at == later(number + 60)
        assert due(files, str(number + 1)) == {}
        files |= credentials.files_to_retire(files)
        assert (read_secrets(files).retire_at, due(files, str(number))) == (None, {})
        logins.append(secrets.writer)
    assert len({login.password for login in logins}) == 4


def test_a_second_request_while_logins_are_staged_starts_no_second_rotation() -> None:
    files = due({})
    files |= due(files, "1")
    staged = read_secrets(files).staged
    files |= due(files, "2")
    assert read_secrets(files).staged == staged
    files |= credentials.files_to_switch(files, NOON)
    files |= credentials.files_to_retire(files)
    assert read_secrets(files).completed_rotation == "2"
    assert due(files, "2") == {}


def test_a_rotation_is_completed_although_the_request_is_taken_back() -> None:
    """Postgres may have the new passwords already."""
    files = due({})
    files |= due(files, "1")
    assert due(files, "") == {}
    files |= credentials.files_to_switch(files, NOON)
    assert read_secrets(files).completed_rotation == "1"


def test_single_logins_of_an_earlier_version_are_replaced_automatically() -> None:
    """The old logins are in force until the new ones exist, without any annotation."""
    old = {
        credentials.WRITER: json.dumps({"user": WRITER, "password": "w"}),
        credentials.READER: json.dumps({"user": READER, "password": "r"}),
        credentials.API_KEYS: '{"keys": []}',
    }
    files = {**old, **due(old)}
    assert {name: files[name] for name in old} == old
    assert [login.user for login in read_secrets(files).staged] == [f"{WRITER}_a", f"{READER}_a"]
    files |= credentials.files_to_switch(files, NOON)
    files |= credentials.files_to_retire(files)
    assert users(read_secrets(files)) == ("_a", "_a")
    assert due(files) == {}


@pytest.mark.parametrize("lost", [credentials.WRITER, credentials.READER])
def test_a_lost_login_is_replaced_by_a_login_that_is_not_staged(lost: str) -> None:
    files = due({})
    files |= due(files, "1")
    del files[lost]
    files |= due(files, "1")
    secrets = read_secrets(files)
    logins = [secrets.writer, secrets.reader, *secrets.staged]
    assert len({login.user for login in logins}) == 4


def test_a_rotation_that_cannot_be_read_is_refused_without_its_text(tmp_path: Path) -> None:
    secrets = FileSecrets(tmp_path)
    secrets.ensure("shop", "orders", **ROLES)
    (tmp_path / "shop" / "orders" / credentials.ROTATION).write_text('{"following": "hunter2"}')
    with pytest.raises(TidemillError, match=r"rotation.json does not describe a rotation; delete the file") as raised:
        secrets.ensure("shop", "orders", **ROLES)
    assert raised.value.reason == Reason.REFUSED
    assert "hunter2" not in str(raised.value)


def test_a_switch_can_be_repeated_after_an_interruption(tmp_path: Path) -> None:
    """After a kill between two files, the next run writes the same login."""
    secrets = FileSecrets(tmp_path)
    secrets.ensure("shop", "orders", **ROLES)
    staged = secrets.ensure("shop", "orders", **ROLES, rotate="1")
    folder = tmp_path / "shop" / "orders"
    (folder / credentials.WRITER).write_text(staged.staged[0].model_dump_json())
    again = secrets.ensure("shop", "orders", **ROLES, rotate="1")
    assert (again.staged, again.changed) == (staged.staged, 0)
    switched = secrets.switch("shop", "orders", now=NOON)
    assert (switched.writer, switched.reader) == staged.staged
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def apply(document: Document, world: MemoryWorld, previous: Document | None, now: dt.datetime) -> Document:
    return reconcile(document, platform=Platform(), actuators=world.actuators, previous=previous, now=now)


def asking(document: Document, nonce: str) -> Document:
    annotated = copy.deepcopy(document)
    annotated["metadata"]["annotations"] = {"tidemill.dev/rotate-credentials": nonce}
    return annotated


def test_the_former_login_is_kept_until_everything_runs_with_the_new(document: Document, world: MemoryWorld) -> None:
    status = apply(document, world, None, NOON)
    assert "credentials" not in status
    (first,) = world.postgres.logins["shop__orders"]
    world.take_writes()
    requested = asking(document, "1")
    world.runtime.starting = {"orders-processor"}
    status = apply(requested, world, status, later(1))
    assert world.take_writes() == ["stage shop/orders", "switch shop/orders"]
    assert world.postgres.logins["shop__orders"] == {first, "_b"}
    assert status["credentials"] == {"phase": "RollingOut", "rotated": "1"}
    # While a workload is not ready, the former login is kept.
    status = apply(requested, world, status, later(1000))
    assert (world.take_writes(), world.postgres.logins["shop__orders"]) == ([], {first, "_b"})
    world.runtime.starting = set()
    status = apply(requested, world, status, later(1001))
    assert world.take_writes() == ["retire shop/orders"]
    assert world.postgres.logins["shop__orders"] == {"_b"}
    assert status["credentials"] == {"phase": "Complete", "rotated": "1"}
    assert apply(requested, world, status, later(2000)) == status
    assert world.take_writes() == []


def test_workloads_have_time_to_see_the_new_login(document: Document, world: MemoryWorld) -> None:
    """All workloads are ready at once, but a node may still have the old files."""
    status = apply(document, world, None, NOON)
    requested = asking(document, "1")
    for seconds in (1, 30, 60):
        status = apply(requested, world, status, later(seconds))
        assert world.postgres.logins["shop__orders"] == {"_a", "_b"}
    apply(requested, world, status, later(61))
    assert world.postgres.logins["shop__orders"] == {"_b"}


def test_a_login_that_postgres_does_not_know_is_not_put_in_force(document: Document, world: MemoryWorld) -> None:
    status = apply(document, world, None, NOON)
    world.postgres.busy = True
    status = apply(asking(document, "1"), world, status, later(1))
    assert users(read_secrets(world.secrets.files["shop", "orders"])) == ("_a", "_a")
    assert status["conditions"][0]["reason"] == "Waiting"
    world.postgres.busy = False
    apply(asking(document, "1"), world, status, later(2))
    assert users(read_secrets(world.secrets.files["shop", "orders"])) == ("_b", "_b")


def test_passwords_are_rotated_while_an_edit_is_refused(document: Document, world: MemoryWorld) -> None:
    status = apply(document, world, None, NOON)
    requested = asking(document, "1")
    requested["spec"]["source"]["key"] = "amount"
    requested["metadata"]["generation"] = 2
    status = apply(requested, world, status, later(1))
    status = apply(requested, world, status, later(100))
    assert status["credentials"] == {"phase": "Complete", "rotated": "1"}
    assert any(item["type"] == "Stalled" for item in status["conditions"])
