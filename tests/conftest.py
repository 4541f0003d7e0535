"""Real servers for the integration tests: one set for the session, and sets of their own for tests that break them."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from fault_matrix import FaultMatrix
from tidemill_operator.laptop.servers import Servers, start_servers

# How fast an example runs says more about what else the machine does. CI repeats the same examples.
settings.register_profile(
    "tidemill", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("tidemill")
# Brokers of tests live for minutes: what Java's second compiler takes is never earned back.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")


def pytest_configure(config: pytest.Config) -> None:
    """`make faults-k8s` asks for a table of what tests of faults found."""
    if "FAULT_MATRIX" in os.environ:
        config.pluginmanager.register(FaultMatrix(Path(os.environ["FAULT_MATRIX"])), "fault-matrix")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: the one that ends last decides when all have ended.

    Those on Kubernetes come after the other ones with servers, since its programs compute as long as the session lasts;
    those without servers fill the end. The exhaustive ones are not measured: they repeat the same lines, and take half
    as long again when they are.
    """
    slow, servers, kubernetes = (
        {item.path for item in items if item.get_closest_marker(marker)}
        for marker in ("slow", "integration", "kubernetes")
    )
    items.sort(key=lambda item: (item.path not in servers | kubernetes, item.path in kubernetes, item.path not in slow))
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def _unmeasured(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes that a test starts which is not measured are not measured either."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("no_cover"):
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


OwnServers = Callable[..., Servers]


def _folder() -> Path:
    # Not pytest's own: those are closed to other users, and as root Postgres runs as another one.
    folder = Path(tempfile.mkdtemp(prefix="tidemill-test-"))
    folder.chmod(0o755)
    return folder


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """A data folder that every user may enter."""
    folder = _folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Kafka, Postgres and Redis of this test session; the environment's, where it names some."""
    folder = _folder()
    started = start_servers(folder, durable=False, on_progress=_say)
    try:
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServers]:
    """A function that starts servers which a test may kill: `own_servers(needs=("kafka",), brokers=3)`.

    They are never the environment's, and all are stopped at the module's end. Several brokers are there for one module
    at a time: seven of them on two cores, with tests that kill some, answer nobody in time.
    """
    started: list[tuple[Servers, Path]] = []
    turn = (tmp_path_factory.getbasetemp().parent / "several-brokers").open("w")

    def start(
        *, needs: tuple[str, ...] = ("kafka", "postgres", "redis"), brokers: int = 1, durable: bool = False
    ) -> Servers:
        if brokers > 1:
            fcntl.flock(turn, fcntl.LOCK_EX)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
        folder = _folder()
        servers = start_servers(
            folder, environ=environ, needs=needs, durable=durable, brokers=brokers, on_progress=_say
        )
        started.append((servers, folder))
        return servers

    yield start
    for servers, folder in started:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
    turn.close()
