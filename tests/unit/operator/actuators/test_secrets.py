"""Passwords and API keys as files: made once, for their owner's eyes, and what they hold fits together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidemill_chassis.auth import EVENTS_APPEND, QUERY_READ
from tidemill_contract.runtime import ApiKeys, WorkloadSettings
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.errors import Reason, TidemillError


def ensure(root: Path, name: str = "orders") -> PipelineSecrets:
    return FileSecrets(root).ensure("shop", name, writer=f"{name}_writer", reader=f"{name}_reader")


def test_they_are_made_once(tmp_path: Path) -> None:
    """Two logins and a set of keys; the second call makes nothing and tells the same."""
    first, second = ensure(tmp_path), ensure(tmp_path)
    assert (first.changed, second.changed) == (4, 0)
    assert (first.writer, first.reader) == (second.writer, second.reader)
    assert (first.writer.user, first.reader.user) == ("orders_writer_a", "orders_reader_a")


def test_no_two_passwords_are_alike(tmp_path: Path) -> None:
    made = [ensure(tmp_path, name) for name in ("a", "b")]
    passwords = {login.password for secrets in made for login in (secrets.writer, secrets.reader)}
    assert len(passwords) == 4
    assert min(map(len, passwords)) >= 40


def test_workloads_read_what_was_made(tmp_path: Path) -> None:
    made = ensure(tmp_path)
    settings = WorkloadSettings(secrets_dir=tmp_path / "shop")
    assert settings.credentials("orders", "writer") == made.writer
    assert settings.credentials("orders", "reader") == made.reader
    (key,) = settings.api_keys("orders").keys
    assert key.scopes == (EVENTS_APPEND, QUERY_READ)


def test_nobody_else_may_read_them(tmp_path: Path) -> None:
    ensure(tmp_path / "secrets")
    folder = tmp_path / "secrets" / "shop" / "orders"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o700}


def test_the_key_file_holds_the_key_and_the_keys_only_its_hash(tmp_path: Path) -> None:
    """What workloads can read does not let anybody in."""
    ensure(tmp_path)
    folder = tmp_path / "shop" / "orders"
    prefix, key_id, secret = (folder / "api-key.txt").read_text().strip().split("_")
    (key,) = ApiKeys.model_validate_json((folder / "api-keys.json").read_bytes()).keys
    assert (prefix, key.id) == ("tm", key_id)
    assert secret not in (folder / "api-keys.json").read_text()


def test_they_do_not_show_by_accident(tmp_path: Path) -> None:
    """A log line or a traceback that holds the object tells no password."""
    made = ensure(tmp_path)
    assert made.writer.password not in repr(made)


def test_a_login_of_another_role_is_made_anew(tmp_path: Path) -> None:
    before = ensure(tmp_path)
    after = FileSecrets(tmp_path).ensure("shop", "orders", writer="renamed", reader="orders_reader")
    assert (after.writer.user, after.changed) == ("renamed_a", 1)
    assert after.reader == before.reader


def test_a_file_that_is_no_login_is_refused_and_not_overwritten(tmp_path: Path) -> None:
    ensure(tmp_path)
    path = tmp_path / "shop" / "orders" / "writer.json"
    path.write_text("{")
    with pytest.raises(
        TidemillError, match=r"does not hold a login; delete the file, so that a new password is generated"
    ) as raised:
        ensure(tmp_path)
    assert raised.value.reason == Reason.REFUSED
    assert path.read_text() == "{"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shop").write_text("in the way")
    with pytest.raises(TidemillError, match=r"secrets of shop/orders: .*make the folder writable") as raised:
        ensure(tmp_path)
    assert raised.value.reason == Reason.REFUSED


def test_they_are_forgotten_by_pipeline(tmp_path: Path) -> None:
    """Removing twice is nothing, and other pipelines keep theirs."""
    ensure(tmp_path, "orders")
    kept = ensure(tmp_path, "returns")
    for _ in range(2):
        FileSecrets(tmp_path).remove("shop", "orders")
    assert os.listdir(tmp_path / "shop") == ["returns"]
    assert ensure(tmp_path, "returns") == kept.__class__(kept.writer, kept.reader, 0)
