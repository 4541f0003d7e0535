"""Fixtures that start real servers: one set for the session, and further sets for tests that break servers."""

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

# No deadline: the time of an example depends on the load of the machine. CI repeats the same examples.
settings.register_profile(
    "tidemill", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("tidemill")
# Brokers of tests run for minutes, so the time of Java's second compiler never pays off.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")


def pytest_configure(config: pytest.Config) -> None:
    """Collect the table of faults if `make faults-k8s` named a file for it."""
    if "FAULT_MATRIX" in os.environ:
        config.pluginmanager.register(FaultMatrix(Path(os.environ["FAULT_MATRIX"])), "fault-matrix")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files of tests, and exclude the exhaustive tests from coverage.

    Files with slow tests come first, so that no slow file starts when the others have ended. Files with tests on
    Kubernetes come after other files with servers, because its programs use the CPU until the session ends. Files
    without servers come last.

    Coverage would make the exhaustive tests half as long again, and they run the same lines as other tests.
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
    """Exclude processes from coverage if the test that starts them is excluded."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("no_cover"):
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


OwnServers = Callable[..., Servers]


def _folder() -> Path:
    # As root, Postgres runs as another user, who may not enter the folders that pytest creates.
    folder = Path(tempfile.mkdtemp(prefix="tidemill-test-"))
    folder.chmod(0o755)
    return folder


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """Yield a data folder that every user may enter."""
    folder = _folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Start Kafka, Postgres and Redis for this test session. Servers that the environment names are used instead."""
    folder = _folder()
    started = start_servers(folder, durable=False, on_progress=_say)
    try:
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServers]:
    """Return a function that starts servers which a test may kill: `own_servers(needs=("kafka",), brokers=3)`.

    The servers are never those of the environment, and all are stopped at the end of the module. Only one module at a
    time gets several brokers: seven brokers on two cores do not answer in time while tests kill some of them.
    """
    started: list[tuple[Servers, Path]] = []
    several_brokers = (tmp_path_factory.getbasetemp().parent / "several-brokers").open("w")

    def start(
        *, needs: tuple[str, ...] = ("kafka", "postgres", "redis"), brokers: int = 1, durable: bool = False
    ) -> Servers:
        if brokers > 1:
            fcntl.flock(several_brokers, fcntl.LOCK_EX)
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
    several_brokers.close()
