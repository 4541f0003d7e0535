"""Tests of Kafka Connect of `tidemill up` without a running worker: failures to start, and copies of Secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.laptop.connect import LocalConnect
from tidemill_operator.laptop.servers import Server
from tidemill_operator.laptop.servers.connect import secret_reference
from tidemill_operator.laptop.servers.connect_jars import PLUGINS
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Connector
from waiting import eventually

OWNER = Owner("shop", "orders", "u", "local")
CONNECTOR = Connector("shop.orders.a", "a", {"connector.class": "com.example.Unknown"})


def connect(folder: Path, *, secured: bool = False) -> tuple[LocalConnect, list[Server | None]]:
    running: list[Server | None] = []
    settings: dict[str, Any] = {"environ": {"PATH": str(folder)}, "brokers": "127.0.0.1:1", "secured": secured}
    printed: list[str] = []
    return LocalConnect(
        folder, **settings, references_root=folder / "secret-refs", on_server=running.append, say=printed.append
    ), running


def failure(actuator: LocalConnect) -> TidemillError:
    with pytest.raises(TidemillError) as error:
        actuator.ensure([CONNECTOR], owner=OWNER)
    return error.value


def test_a_worker_that_cannot_start_is_reported_and_no_pass_waits_for_it(tmp_path: Path) -> None:
    """There is no Java on the PATH."""
    actuator, running = connect(tmp_path)
    assert failure(actuator).reason == Reason.WAITING
    error = eventually(
        lambda: error if (error := failure(actuator)).reason == Reason.REFUSED else None,
        what="the failed start",
        seconds=30,
    )
    assert "Kafka Connect cannot be started: Kafka needs Java 17 or later" in str(error)
    assert running == []
    actuator.close()


def test_a_kafka_with_a_login_needs_an_external_connect(tmp_path: Path) -> None:
    actuator, _ = connect(tmp_path, secured=True)
    error = failure(actuator)
    assert (error.reason, error.remedy) == (
        Reason.NOT_SUPPORTED,
        "start Kafka Connect yourself, and set TIDEMILL_CONNECT_URL",
    )


def test_a_missing_key_of_a_secret_is_named(tmp_path: Path) -> None:
    """The copy for the worker has no line feed, and only its owner may read it."""
    actuator, _ = connect(tmp_path)
    with pytest.raises(TidemillError, match=r"Secret shop-db has no key password: .* write the value into .*secret-re"):
        actuator._copy_secret("shop", "shop-db", "password")
    file = tmp_path / "secret-refs" / "shop" / "shop-db" / "password"
    file.parent.mkdir(parents=True)
    file.write_text("first\n")
    copy = tmp_path / "connect" / "secrets" / "shop" / "shop-db" / "password"
    assert not actuator._copy_secret("shop", "shop-db", "password"), "a first copy is no change"
    assert (copy.read_text(), copy.stat().st_mode & 0o777) == ("first", 0o600)
    assert not actuator._copy_secret("shop", "shop-db", "password")
    file.write_text("second\n")
    assert actuator._copy_secret("shop", "shop-db", "password"), "connectors must read the changed value again"


def test_a_secret_cannot_refer_to_a_file_of_the_worker(tmp_path: Path) -> None:
    """The rule is that of workers in a cluster. The worker gets no copy, and keeps the former value."""
    actuator, _ = connect(tmp_path)
    file = tmp_path / "secret-refs" / "shop" / "places" / "file"
    file.parent.mkdir(parents=True)
    file.write_text("/data/orders.txt")
    actuator._copy_secret("shop", "places", "file")
    file.write_text("/data/../proc/self/environ\n")
    with pytest.raises(TidemillError, match=r"key file of Secret places refers to /proc, .* outside of this folder"):
        actuator._copy_secret("shop", "places", "file")
    assert (tmp_path / "connect" / "secrets" / "shop" / "places" / "file").read_text() == "/data/orders.txt"


def test_references_name_namespace_secret_and_key(tmp_path: Path) -> None:
    assert secret_reference(tmp_path) == f"${{tidemill:{tmp_path}/connect/secrets/{{namespace}}/{{name}}:{{key}}}}"


def test_every_plugin_names_a_file_and_its_sha256() -> None:
    assert all(len(plugin.sha256) == 64 and plugin.file for plugin in PLUGINS.values())
