"""Passwords rotated: what is staged, switched and retired, when, and that it goes on wherever a pass ended."""

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
    """The letters of the logins in force."""
    return secrets.writer.user.removeprefix(WRITER), secrets.reader.user.removeprefix(READER)


def told(files: dict[str, str]) -> PipelineSecrets:
    return credentials.told(files, patience_seconds=60.0, changed=0)


def due(files: dict[str, str], rotate: str = "") -> dict[str, str]:
    return credentials.due(files, **ROLES, rotate=rotate)


def test_nothing_asks_for_a_rotation() -> None:
    files = due({})
    assert credentials.ROTATION not in files
    assert users(told(files)) == ("_a", "_a")
    assert due(files) == {}
    assert (credentials.switched(files, NOON), credentials.retired(files)) == ({}, {})


def test_a_pipeline_that_is_made_with_the_annotation_has_new_passwords_as_it_is() -> None:
    files = due({}, "1")
    assert (told(files).rotated, told(files).following) == ("1", ())
    assert due(files, "1") == {}


def test_one_rotation_after_the_other() -> None:
    """Each is for the other login and a new password; while one is not over the next one waits."""
    files = due({})
    seen = [told(files).writer]
    for number, letters in ((1, ("_b", "_b")), (2, ("_a", "_a")), (3, ("_b", "_b"))):
        files |= due(files, str(number))
        assert {login.user[-2:] for login in told(files).following} == {letters[0]}
        assert told(files).writer == seen[-1]
        assert due(files, str(number)) == {}
        files |= credentials.switched(files, later(number))
        secrets = told(files)
        assert (users(secrets), secrets.following, secrets.rotated) == (letters, (), str(number))
        assert secrets.retire_at == later(number + 60)
        assert due(files, str(number + 1)) == {}
        files |= credentials.retired(files)
        assert (told(files).retire_at, due(files, str(number))) == (None, {})
        seen.append(secrets.writer)
    assert len({login.password for login in seen}) == 4


def test_another_wish_while_one_is_staged_is_the_same_rotation() -> None:
    files = due({})
    files |= due(files, "1")
    staged = told(files).following
    files |= due(files, "2")
    assert told(files).following == staged
    files |= credentials.switched(files, NOON)
    files |= credentials.retired(files)
    assert told(files).rotated == "2"
    assert due(files, "2") == {}


def test_a_wish_that_is_taken_back_is_gone_on_with() -> None:
    """Postgres may have been told already."""
    files = due({})
    files |= due(files, "1")
    assert due(files, "") == {}
    files |= credentials.switched(files, NOON)
    assert told(files).rotated == "1"


def test_single_logins_of_an_earlier_version_go_over_by_themselves() -> None:
    """They stay in force until the new ones are there; nobody has to ask for it."""
    old = {
        credentials.WRITER: json.dumps({"user": WRITER, "password": "w"}),
        credentials.READER: json.dumps({"user": READER, "password": "r"}),
        credentials.API_KEYS: '{"keys": []}',
    }
    files = {**old, **due(old)}
    assert {name: files[name] for name in old} == old
    assert [login.user for login in told(files).following] == [f"{WRITER}_a", f"{READER}_a"]
    files |= credentials.switched(files, NOON)
    files |= credentials.retired(files)
    assert users(told(files)) == ("_a", "_a")
    assert due(files) == {}


@pytest.mark.parametrize("lost", [credentials.WRITER, credentials.READER])
def test_a_lost_login_is_another_than_the_one_that_follows(lost: str) -> None:
    files = due({})
    files |= due(files, "1")
    del files[lost]
    files |= due(files, "1")
    secrets = told(files)
    logins = [secrets.writer, secrets.reader, *secrets.following]
    assert len({login.user for login in logins}) == 4


def test_a_rotation_that_cannot_be_read_is_refused_without_its_text(tmp_path: Path) -> None:
    secrets = FileSecrets(tmp_path)
    secrets.ensure("shop", "orders", **ROLES)
    (tmp_path / "shop" / "orders" / credentials.ROTATION).write_text('{"following": "hunter2"}')
    with pytest.raises(TidemillError, match=r"rotation.json does not describe a rotation; delete the file") as raised:
        secrets.ensure("shop", "orders", **ROLES)
    assert raised.value.reason == Reason.REFUSED
    assert "hunter2" not in str(raised.value)


def test_files_are_switched_however_often_it_is_begun(tmp_path: Path) -> None:
    """Killed between the files: the next one writes the same."""
    secrets = FileSecrets(tmp_path)
    secrets.ensure("shop", "orders", **ROLES)
    staged = secrets.ensure("shop", "orders", **ROLES, rotate="1")
    folder = tmp_path / "shop" / "orders"
    (folder / credentials.WRITER).write_text(staged.following[0].model_dump_json())
    again = secrets.ensure("shop", "orders", **ROLES, rotate="1")
    assert (again.following, again.changed) == (staged.following, 0)
    switched = secrets.switch("shop", "orders", now=NOON)
    assert (switched.writer, switched.reader) == staged.following
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def apply(document: Document, world: MemoryWorld, previous: Document | None, now: dt.datetime) -> Document:
    return reconcile(document, platform=Platform(), actuators=world.actuators, previous=previous, now=now)


def asking(document: Document, nonce: str) -> Document:
    found = copy.deepcopy(document)
    found["metadata"]["annotations"] = {"tidemill.dev/rotate-credentials": nonce}
    return found


def test_the_former_login_is_kept_until_everything_runs_with_the_new(document: Document, world: MemoryWorld) -> None:
    status = apply(document, world, None, NOON)
    assert "credentials" not in status
    (first,) = world.postgres.logins["shop__orders"]
    world.take_writes()
    wish = asking(document, "1")
    world.runtime.starting = {"orders-processor"}
    status = apply(wish, world, status, later(1))
    assert world.take_writes() == ["stage shop/orders", "switch shop/orders"]
    assert world.postgres.logins["shop__orders"] == {first, "_b"}
    assert status["credentials"] == {"phase": "RollingOut", "rotated": "1"}
    # Not ready yet, however long it takes.
    status = apply(wish, world, status, later(1000))
    assert (world.take_writes(), world.postgres.logins["shop__orders"]) == ([], {first, "_b"})
    world.runtime.starting = set()
    status = apply(wish, world, status, later(1001))
    assert world.take_writes() == ["retire shop/orders"]
    assert world.postgres.logins["shop__orders"] == {"_b"}
    assert status["credentials"] == {"phase": "Complete", "rotated": "1"}
    assert apply(wish, world, status, later(2000)) == status
    assert world.take_writes() == []


def test_workloads_have_time_to_see_the_new_login(document: Document, world: MemoryWorld) -> None:
    """All are ready at once, but a node may not have renewed its files."""
    status = apply(document, world, None, NOON)
    wish = asking(document, "1")
    for seconds in (1, 30, 60):
        status = apply(wish, world, status, later(seconds))
        assert world.postgres.logins["shop__orders"] == {"_a", "_b"}
    apply(wish, world, status, later(61))
    assert world.postgres.logins["shop__orders"] == {"_b"}


def test_a_login_that_postgres_does_not_know_is_not_put_in_force(document: Document, world: MemoryWorld) -> None:
    status = apply(document, world, None, NOON)
    world.postgres.busy = True
    status = apply(asking(document, "1"), world, status, later(1))
    assert users(told(world.secrets.files["shop", "orders"])) == ("_a", "_a")
    assert status["conditions"][0]["reason"] == "Waiting"
    world.postgres.busy = False
    apply(asking(document, "1"), world, status, later(2))
    assert users(told(world.secrets.files["shop", "orders"])) == ("_b", "_b")


def test_passwords_are_rotated_while_an_edit_is_refused(document: Document, world: MemoryWorld) -> None:
    status = apply(document, world, None, NOON)
    wish = asking(document, "1")
    wish["spec"]["source"]["key"] = "amount"
    wish["metadata"]["generation"] = 2
    status = apply(wish, world, status, later(1))
    status = apply(wish, world, status, later(100))
    assert status["credentials"] == {"phase": "Complete", "rotated": "1"}
    assert any(item["type"] == "Stalled" for item in status["conditions"])
