"""Tests of passwords and API keys as files: created once, readable only for their owner, and consistent."""

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


def test_secrets_are_created_once(tmp_path: Path) -> None:
    """The first call creates two logins and a set of keys. The second call returns the same secrets."""
    first, second = ensure(tmp_path), ensure(tmp_path)
    assert (first.changed, second.changed) == (4, 0)
    assert (first.writer, first.reader) == (second.writer, second.reader)
    assert (first.writer.user, first.reader.user) == ("orders_writer_a", "orders_reader_a")


def test_each_login_has_another_password_of_at_least_40_characters(tmp_path: Path) -> None:
    all_secrets = [ensure(tmp_path, name) for name in ("a", "b")]
    passwords = {login.password for secrets in all_secrets for login in (secrets.writer, secrets.reader)}
    assert len(passwords) == 4
    assert min(map(len, passwords)) >= 40


def test_workloads_read_the_created_secrets(tmp_path: Path) -> None:
    secrets = ensure(tmp_path)
    settings = WorkloadSettings(secrets_dir=tmp_path / "shop")
    assert settings.credentials("orders", "writer") == secrets.writer
    assert settings.credentials("orders", "reader") == secrets.reader
    (key,) = settings.api_keys("orders").keys
    assert key.scopes == (EVENTS_APPEND, QUERY_READ)


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    ensure(tmp_path / "secrets")
    folder = tmp_path / "secrets" / "shop" / "orders"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o700}


def test_the_file_for_workloads_has_only_the_hash_of_the_key(tmp_path: Path) -> None:
    """The hash is not enough for a login."""
    ensure(tmp_path)
    folder = tmp_path / "shop" / "orders"
    prefix, key_id, secret = (folder / "api-key.txt").read_text().strip().split("_")
    (key,) = ApiKeys.model_validate_json((folder / "api-keys.json").read_bytes()).keys
    assert (prefix, key.id) == ("tm", key_id)
    assert secret not in (folder / "api-keys.json").read_text()


def test_passwords_are_not_in_the_text_of_the_object(tmp_path: Path) -> None:
    """A log line or traceback with the object contains no password."""
    secrets = ensure(tmp_path)
    assert secrets.writer.password not in repr(secrets)


def test_a_login_of_another_role_is_replaced(tmp_path: Path) -> None:
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


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shop").write_text("in the way")
    with pytest.raises(TidemillError, match=r"secrets of shop/orders: .*make the folder writable") as raised:
        ensure(tmp_path)
    assert raised.value.reason == Reason.REFUSED


def test_secrets_are_removed_by_pipeline(tmp_path: Path) -> None:
    """A second removal does nothing, and other pipelines keep their secrets."""
    ensure(tmp_path, "orders")
    other_secrets = ensure(tmp_path, "returns")
    for _ in range(2):
        FileSecrets(tmp_path).remove("shop", "orders")
    assert os.listdir(tmp_path / "shop") == ["returns"]
    assert ensure(tmp_path, "returns") == other_secrets.__class__(other_secrets.writer, other_secrets.reader, 0)
