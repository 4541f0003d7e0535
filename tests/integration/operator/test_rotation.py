"""Tests of the rotation of passwords on a real Postgres, also with kills at every step and under load."""

from __future__ import annotations

import copy
import datetime as dt
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from pipelines.orders_by_shop import orders_by_shop
from played.no_processes import NoProcesses
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform
from waiting import eventually

pytestmark = pytest.mark.integration

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SCHEMA = "rotated__orders"
DOCUMENT = orders_by_shop(
    "rotated", partitions=2, amount="integer", metrics=({"name": "sales", "function": "sum", "field": "amount"},)
)


def with_rotation(document: dict[str, Any], nonce: str) -> dict[str, Any]:
    """Return the resource with the annotation that requests a rotation."""
    annotated = copy.deepcopy(document)
    annotated["metadata"]["annotations"] = {"tidemill.dev/rotate-credentials": nonce}
    return annotated


class KilledError(BaseException):
    """Ends a pass as a kill of its process does."""


class Killer:
    """An actuator that ends the pass when the shared count of steps is used up.

    A step is the time before or after a call of these methods.
    """

    def __init__(self, actuator: Any, count: list[int], methods: tuple[str, ...]) -> None:
        self._actuator, self._count, self._methods = actuator, count, methods

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._actuator, name)
        if name not in self._methods:
            return member

        def call(*arguments: Any, **keywords: Any) -> Any:
            self._step()
            result = member(*arguments, **keywords)
            self._step()
            return result

        return call

    def _step(self) -> None:
        self._count[0] -= 1
        if self._count[0] < 0:
            raise KilledError


class RotatedPipeline:
    """A pipeline without processes, and the logins of its schema."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self.servers, self.folder = servers, folder / "secrets"
        self.document = copy.deepcopy(DOCUMENT)
        self.actuators = Actuators(
            kafka=KafkaTopics(servers.kafka),
            postgres=PostgresSchemas(servers.postgres),
            secrets=FileSecrets(self.folder, retire_delay_seconds=60.0),
            runtime=NoProcesses(),
        )
        self.status: dict[str, Any] | None = None

    def apply(self, *, seconds: float = 0.0, actuators: Actuators | None = None) -> None:
        """Run one pass at this number of seconds after noon."""
        self.status = reconcile(
            self.document,
            platform=Platform(),
            actuators=actuators or self.actuators,
            previous=self.status,
            now=NOON + dt.timedelta(seconds=seconds),
        )
        assert self.status["conditions"][0]["status"] == "True", self.status

    def login(self, role: str = "writer") -> dict[str, str]:
        """Return the current login, as workloads read it."""
        return dict(json.loads((self.folder / "rotated" / "orders" / f"{role}.json").read_text()))

    def connect(self, login: dict[str, str]) -> psycopg.Connection[Any]:
        at = self.servers.postgres
        return psycopg.connect(
            host=at.host,
            port=at.port,
            dbname=at.database,
            autocommit=True,
            user=login["user"],
            password=login["password"],
        )

    def may_log_in(self, login: dict[str, str]) -> bool:
        try:
            self.connect(login).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                return False
            raise
        return True

    def files(self) -> dict[str, int]:
        """Return when each file of secrets was written."""
        return {file.name: file.stat().st_mtime_ns for file in (self.folder / "rotated" / "orders").iterdir()}

    def next_transaction(self) -> int:
        """Return the next transaction id; each session that writes takes an id, and Postgres takes some itself."""
        with psycopg.connect(self.servers.postgres.url) as admin:
            row = admin.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
        assert row is not None
        return int(row[0])

    def check_logins(self) -> None:
        """Assert that the current logins have their rights, and that the reader cannot write."""
        with self.connect(self.login("writer")) as writer:
            assert writer.execute(f"UPDATE {SCHEMA}._readers SET watermark = watermark").rowcount == 1
            assert writer.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("10s",)
        with self.connect(self.login("reader")) as reader:
            assert reader.execute(f"SELECT count(*) FROM {SCHEMA}.by_shop_v1").fetchone() == (0,)
            assert reader.execute("SHOW default_transaction_read_only").fetchone() == ("on",)
            with pytest.raises(psycopg.Error, match=r"read-only transaction|permission denied"):
                reader.execute(f"UPDATE {SCHEMA}._readers SET watermark = 0")

    def roles(self) -> dict[str, bool]:
        """Return for each role of the schema, by its suffix, whether it can log in."""
        with psycopg.connect(self.servers.postgres.url) as admin:
            rows = admin.execute(
                "SELECT rolname, rolcanlogin FROM pg_roles WHERE starts_with(rolname, %s)", (f"{SCHEMA}_",)
            )
            return {name.removeprefix(f"{SCHEMA}_"): login for name, login in rows}


@pytest.fixture
def bench(servers: Servers, tmp_path: Path) -> Iterator[RotatedPipeline]:
    pipeline = RotatedPipeline(servers, tmp_path)
    pipeline.apply()
    yield pipeline
    pipeline.document["spec"]["reclaimPolicy"] = "Delete"
    release(pipeline.document, platform=Platform(), actuators=pipeline.actuators)
    assert pipeline.roles() == {}


GROUP_ROLES = {"owner": False, "writer": False, "reader": False}


def test_the_former_login_works_until_it_is_retired_after_a_minute(bench: RotatedPipeline) -> None:
    """A retired login loses its connections, and cannot open another connection."""
    bench.check_logins()
    assert bench.roles() == {**GROUP_ROLES, "writer_a": True, "reader_a": True}
    former = bench.login()
    open_connection = bench.connect(former)
    bench.document = with_rotation(bench.document, "1")
    bench.apply(seconds=1)
    assert bench.login()["user"] == f"{SCHEMA}_writer_b"
    bench.check_logins()
    assert open_connection.execute("SELECT current_user").fetchone() == (former["user"],)
    assert bench.may_log_in(former)
    bench.apply(seconds=60)
    assert bench.may_log_in(former)
    bench.apply(seconds=61)
    with open_connection, pytest.raises(psycopg.OperationalError):
        open_connection.execute("SELECT 1")
    assert not bench.may_log_in(former)
    bench.check_logins()
    assert bench.roles() == {**GROUP_ROLES, "writer_a": False, "reader_a": False, "writer_b": True, "reader_b": True}
    assert bench.status is not None
    assert bench.status["credentials"] == {"phase": "Complete", "rotated": "1"}


def test_a_second_rotation_uses_the_first_login_with_a_new_password(bench: RotatedPipeline) -> None:
    """Further passes write neither to Postgres nor to files."""
    first = bench.login()
    for number in (1, 2):
        bench.document = with_rotation(bench.document, str(number))
        bench.apply(seconds=100 * number)
        bench.apply(seconds=100 * number + 61)
        bench.check_logins()
    assert bench.login()["user"] == first["user"]
    assert not bench.may_log_in(first)
    before = bench.files()
    transactions = []
    for _ in range(3):
        transaction = bench.next_transaction()
        bench.apply(seconds=1000)
        transactions.append(bench.next_transaction() - transaction)
    assert min(transactions) == 0
    assert bench.files() == before


def test_a_schema_of_an_earlier_version_changes_to_two_logins_of_each_role(bench: RotatedPipeline) -> None:
    """In an earlier version, the roles that have the rights log in themselves."""
    folder = bench.folder / "rotated" / "orders"
    logins = {role: {"user": f"{SCHEMA}_{role}", "password": f"{role}'s"} for role in ("writer", "reader")}
    with psycopg.connect(bench.servers.postgres.url, autocommit=True) as admin:
        for role, login in logins.items():
            admin.execute(f"DROP ROLE {SCHEMA}_{role}_a")
            admin.execute(f"ALTER ROLE {SCHEMA}_{role} LOGIN PASSWORD '{role}''s'")
            (folder / f"{role}.json").write_text(json.dumps(login))
    open_connection = bench.connect(logins["writer"])
    bench.apply(seconds=1)
    bench.check_logins()
    assert bench.login()["user"] == f"{SCHEMA}_writer_a"
    assert open_connection.execute(f"SELECT count(*) FROM {SCHEMA}._offsets").fetchone() == (2,)
    assert bench.may_log_in(logins["writer"])
    bench.apply(seconds=61)
    bench.check_logins()
    assert not bench.may_log_in(logins["writer"])
    open_connection.close()
    assert bench.roles() == {**GROUP_ROLES, "writer_a": True, "reader_a": True}


def test_a_rotation_that_is_killed_at_any_step_is_completed_by_later_passes(bench: RotatedPipeline) -> None:
    """The current logins work after each kill."""
    steps = 0
    for number in range(1, 100):
        bench.document = with_rotation(bench.document, str(number))
        count, killed = [number - 1], False
        killing = Actuators(
            kafka=bench.actuators.kafka,
            postgres=Killer(bench.actuators.postgres, count, ("ensure",)),
            secrets=Killer(bench.actuators.secrets, count, ("ensure", "switch", "retire")),
            runtime=bench.actuators.runtime,
        )
        for seconds in (1000 * number, 1000 * number + 61):
            try:
                bench.apply(seconds=seconds, actuators=killing)
            except KilledError:
                killed = True
                break
        bench.check_logins()
        if not killed:
            break
        steps += 1
        former = {"_a": "_b", "_b": "_a"}
        bench.apply(seconds=1000 * number + 200)
        bench.check_logins()
        bench.apply(seconds=1000 * number + 300)
        bench.check_logins()
        ending = bench.login()["user"][-2:]
        assert bench.roles() == {
            **GROUP_ROLES,
            f"writer{ending}": True,
            f"reader{ending}": True,
            f"writer{former[ending]}": False,
            f"reader{former[ending]}": False,
        }
        assert bench.status is not None
        assert bench.status["credentials"] == {"phase": "Complete", "rotated": str(number)}
    print(f"killed at {steps} steps")
    assert steps == 14


@pytest.mark.slow
def test_rotations_under_load_lose_no_event_and_fail_no_query(make_local: Callable[..., Any]) -> None:
    """Two rotations take place while threads send events and queries. Each event counts once."""
    document = copy.deepcopy(DOCUMENT)
    document["metadata"]["namespace"] = "rotating"
    local = make_local(document)
    local.settle()
    local.eventually(lambda: local.reconcile().get("Ready"), what="the pipeline is ready")
    before = local.pids()
    load = Load(local.url("ingest"), local.url("api"))
    try:
        for number in (1, 2):
            local.document = with_rotation(local.document, str(number))
            load.await_more(500)
            local.reconcile()
            local.eventually(
                lambda n=number: (
                    local.reconcile().get("Ready")
                    and local.status["credentials"] == {"phase": "Complete", "rotated": str(n)}
                ),
                seconds=90,
                what="the rotation is complete",
            )
            load.await_more(500)
    finally:
        load.stop()
    local.eventually(lambda: local.consumed() == load.sent, seconds=60, what=f"{load.sent} events are counted")
    assert (load.failures, load.answers > 50) == ([], True)
    assert local.query("SELECT sum(_count), sum(_sum_amount) FROM {s}.by_shop_v1") == [(load.sent, load.total)]
    assert local.query("SELECT count(*) FROM {s}._dead_letters") == [(0,)]
    after = local.pids()
    assert after["processor-0"] != before["processor-0"]
    assert {**after, "processor-0": 0} == {**before, "processor-0": 0}
    sessions = {
        user for (user,) in local.query(f"SELECT usename FROM pg_stat_activity WHERE usename LIKE '{local.schema}%'")
    }
    assert sessions <= {f"{local.schema}_{role}_a" for role in ("writer", "reader")}


class Load:
    """Two threads that send events and queries until they are stopped."""

    def __init__(self, ingest: str, api: str) -> None:
        self.sent = self.total = self.answers = 0
        self.failures: list[str] = []
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=work, args=(url,)) for work, url in ((self._send, ingest), (self._ask, api))
        ]
        for thread in self._threads:
            thread.start()

    def await_more(self, number: int) -> None:
        """Wait until ingest has accepted this number of further events."""
        expected = self.sent + number
        eventually(
            lambda: self.sent >= expected,
            what=lambda: f"{number} further events accepted: {self.failures}",
            seconds=60.0,
        )

    def stop(self) -> None:
        """End both threads."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)

    def _send(self, url: str) -> None:
        with httpx.Client(timeout=30, trust_env=False) as client:
            while not self._stopping.wait(0.05):
                amounts = range(self.sent, self.sent + 20)
                events = [{"ts": "2026-03-01T10:00:00Z", "shop": "a", "amount": amount} for amount in amounts]
                answer = client.post(f"{url}/events", json=events)
                if answer.status_code not in (200, 202) or answer.json()["accepted"] != len(events):
                    self.failures.append(answer.text)
                    continue
                self.sent += len(events)
                self.total += sum(amounts)

    def _ask(self, url: str) -> None:
        with httpx.Client(timeout=30, trust_env=False) as client:
            while not self._stopping.wait(0.05):
                # Each query has another limit. Otherwise the API would answer from its cache.
                query = {"from": "2026-03-01T10:00:00Z", "limit": str(1 + self.answers % 900)}
                answer = client.get(f"{url}/aggregates/by_shop", params=query)
                if answer.status_code != 200:
                    self.failures.append(answer.text)
                self.answers += 1
