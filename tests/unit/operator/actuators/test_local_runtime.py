"""Tests of the local runtime, which runs the workloads of a plan as processes. The workload is a small HTTP server."""

from __future__ import annotations

import json
import os
import signal
import socket
import textwrap
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tidemill_operator.actuators.local.process_specs import ProcessSpecs
from tidemill_operator.actuators.local.references import References
from tidemill_operator.actuators.local.runtime import LocalRuntime
from tidemill_operator.actuators.local.stage import stage_environment
from tidemill_operator.outcome import Component, Rank
from tidemill_operator.plan.model import Reference, Workload
from tidemill_operator.processes.child import start_time
from waiting import eventually

ECHO = textwrap.dedent("""
    import http.server, json, os
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            settings = {name: value for name, value in os.environ.items() if name.startswith("TIDEMILL_")}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(settings).encode())
        def log_message(self, *arguments):
            pass
    http.server.HTTPServer((os.environ["TIDEMILL_HOST"], int(os.environ["TIDEMILL_PORT"])), Handler).serve_forever()
""")
ADDRESSES = {"TIDEMILL_KAFKA_BROKERS": "127.0.0.1:1", "TIDEMILL_POSTGRES_HOST": "127.0.0.1"}


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[LocalRuntime]:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "echo_workload.py").write_text(ECHO)
    environ = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "modules"),
        "TIDEMILL_POSTGRES_URL": "postgresql://admin:secret@127.0.0.1/x",
        "TIDEMILL_RESILIENCE__REDIS__TIMEOUT": "1",
        "TIDEMILL_INGEST_EVENTS_PER_SECOND": "5",
        "TIDEMILL_ALLOWED_HOSTS": "shop.example",
        "TIDEMILL_SESSION_TIMEOUT_MS": "6000",
    }
    local = LocalRuntime(
        ProcessSpecs(tmp_path / "data", environ=environ, addresses=ADDRESSES, ports={"ingest": 21000, "api": 21100})
    )
    local.start()
    yield local
    local.close()


def processor(pipeline: str = "p", *, config: str = "{}", replicas: int = 1, revision: str = "1") -> Workload:
    return Workload(
        name=f"{pipeline}-processor",
        namespace="ns",
        component="processor",
        pipeline=pipeline,
        module="echo_workload",
        replicas=replicas,
        environment={"TIDEMILL_LOG_LEVEL": "DEBUG"},
        configs={f"{pipeline}.json": config},
        ports={"status": 0},
        revision=revision,
    )


def shared(pipeline: str = "p", *, config: str = "{}") -> Workload:
    return Workload(
        name="tidemill-ingest",
        namespace="ns",
        component="ingest",
        pipeline=None,
        module="echo_workload",
        replicas=1,
        configs={f"{pipeline}.json": config},
        ports={"http": 8080, "status": 0},
    )


def run(runtime: LocalRuntime, *workloads: Workload, pipeline: str = "p") -> None:
    """Apply workloads, and wait until they are ready."""
    for workload in workloads:
        runtime.apply(workload, {pipeline})
    eventually(lambda: all(runtime.is_ready(workload) for workload in workloads), what="all workloads ready")


def settings(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
        return dict(json.load(answer))


def pids(runtime: LocalRuntime) -> dict[str, int | None]:
    return {name: state.pid for name, state in runtime.states().items()}


def test_a_workload_gets_its_settings_and_no_administrator_login(runtime: LocalRuntime, tmp_path: Path) -> None:
    """The workload gets the plan, addresses, paths and resilience settings, but no URL with a login."""
    run(runtime, processor())
    state = runtime.states()["ns.p-processor-0"]
    assert settings(state.port) == {
        **ADDRESSES,
        "TIDEMILL_ALLOWED_HOSTS": f"localhost,{socket.gethostname()},shop.example,127.0.0.1",
        "TIDEMILL_CONFIG_DIR": str(tmp_path / "data" / "pipelines" / "ns"),
        "TIDEMILL_HOST": "127.0.0.1",
        "TIDEMILL_INGEST_EVENTS_PER_SECOND": "5",
        "TIDEMILL_LOG_LEVEL": "DEBUG",
        "TIDEMILL_NAMESPACE": "ns",
        "TIDEMILL_PIPELINE": "p",
        "TIDEMILL_PORT": str(state.port),
        "TIDEMILL_RESILIENCE__REDIS__TIMEOUT": "1",
        "TIDEMILL_SECRETS_DIR": str(tmp_path / "data" / "secrets" / "ns"),
        "TIDEMILL_SESSION_TIMEOUT_MS": "6000",
    }


def test_the_secret_of_a_user_is_a_folder(runtime: LocalRuntime, tmp_path: Path) -> None:
    run(runtime, replace(processor(), registry_secret="registry", kafka_secret="crm"))
    folder = settings(runtime.states()["ns.p-processor-0"].port)["TIDEMILL_REGISTRY_DIR"]
    assert folder == str(tmp_path / "data" / "secret-refs" / "ns" / "registry")
    folder = settings(runtime.states()["ns.p-processor-0"].port)["TIDEMILL_SOURCE_KAFKA_DIR"]
    assert folder == str(tmp_path / "data" / "secret-refs" / "ns" / "crm")


def test_keys_of_a_webhook_secret_are_files_of_the_pipeline(runtime: LocalRuntime, tmp_path: Path) -> None:
    """The files are links, so a changed key is used at once. A missing key is named, and ingest serves without it."""
    hooked = replace(
        shared(), secrets={"p": ("api-keys.json",)}, secret_sources={"webhook-github": ("hooks", "github")}
    )
    run(runtime, hooked)
    (outcome,) = runtime.ensure([hooked])
    assert (outcome.rank, outcome.serving, outcome.changed) == (Rank.WAITING, True, 0)
    assert outcome.message == "Secret hooks has no key github; add the key for tidemill-ingest"
    key = tmp_path / "data" / "secret-refs" / "ns" / "hooks" / "github"
    key.parent.mkdir(parents=True)
    key.write_text("swordfish")
    assert (tmp_path / "data" / "secrets" / "ns" / "p" / "webhook-github").read_text() == "swordfish"
    (outcome,) = runtime.ensure([hooked])
    assert (outcome.rank, outcome.component) == (Rank.DONE, Component.INGEST)
    moved = replace(hooked, secret_sources={"webhook-github": ("other", "github")})
    assert runtime.ensure([moved])[0].changed == 1


def test_a_bridge_gets_the_folder_of_its_secret(runtime: LocalRuntime, tmp_path: Path) -> None:
    run(runtime, replace(processor(), component="mqtt", mqtt_secret="broker"))
    folder = settings(runtime.states()["ns.p-processor-0"].port)["TIDEMILL_MQTT_DIR"]
    assert folder == str(tmp_path / "data" / "secret-refs" / "ns" / "broker")


def test_files_of_lookups_are_beside_the_pipeline_file(runtime: LocalRuntime, tmp_path: Path) -> None:
    """Secrets are folders below the data folder, as for a registry."""
    lookups = {"plans": Reference("configMap", "plans"), "products": Reference("secret", "shop-db")}
    runtime.references.set_fallback("ns/p", tmp_path / "here")
    run(runtime, replace(processor(), lookups=lookups))
    lookup_dirs = settings(runtime.states()["ns.p-processor-0"].port)["TIDEMILL_LOOKUP_DIRS"]
    secret = tmp_path / "data" / "secret-refs" / "ns" / "shop-db"
    assert json.loads(lookup_dirs) == {"plans": str(tmp_path / "here"), "products": str(secret)}


def test_applying_twice_writes_and_starts_nothing(runtime: LocalRuntime, tmp_path: Path) -> None:
    """The second pass reports no change, and file and processes are the same."""
    first = runtime.ensure([processor(), shared()])
    assert [(outcome.rank, outcome.changed) for outcome in first] == [(Rank.WAITING, 2), (Rank.WAITING, 1)]
    run(runtime, processor(), shared())
    config = tmp_path / "data" / "pipelines" / "ns" / "p.json"
    before = (config.stat().st_ino, config.stat().st_mtime_ns, pids(runtime))
    second = runtime.ensure([processor(), shared()])
    assert [(outcome.rank, outcome.changed) for outcome in second] == [(Rank.DONE, 0), (Rank.DONE, 0)]
    assert (config.stat().st_ino, config.stat().st_mtime_ns, pids(runtime)) == before


def test_another_config_restarts_the_processor_only(runtime: LocalRuntime) -> None:
    """The processor restarts only for a new revision. Ingest reads configs again without a restart."""
    run(runtime, processor(), shared())
    before = pids(runtime)
    run(runtime, processor(config='{"auth": 1}'), shared(config='{"auth": 1}'))
    assert pids(runtime) == before
    run(runtime, processor(config='{"generation": 2}', revision="2"), shared(config='{"generation": 2}'))
    after = pids(runtime)
    assert after["ns.p-processor-0"] != before["ns.p-processor-0"]
    assert after["ns.tidemill-ingest-0"] == before["ns.tidemill-ingest-0"]


def test_replicas_are_started_and_ended(runtime: LocalRuntime) -> None:
    """A further process has another port, and the first keeps running. With zero replicas no process runs."""
    run(runtime, processor())
    first = pids(runtime)["ns.p-processor-0"]
    run(runtime, processor(replicas=3))
    assert pids(runtime)["ns.p-processor-0"] == first
    assert len({state.port for state in runtime.states().values()}) == 3
    run(runtime, processor(replicas=0))
    assert runtime.states() == {}


def test_a_killed_replica_is_not_ready_until_it_runs_again(runtime: LocalRuntime) -> None:
    """The process keeps its port, and the endpoints are unchanged."""
    run(runtime, shared())
    before = runtime.states()["ns.tidemill-ingest-0"]
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    eventually(lambda: not runtime.is_ready(shared()), what="the end of the process is noticed")
    eventually(lambda: runtime.is_ready(shared()), what="the process is ready again")
    after = runtime.states()["ns.tidemill-ingest-0"]
    assert (after.port, after.restarts) == (before.port, 1)
    assert after.pid != before.pid


def test_shared_workloads_serve_every_pipeline_of_the_namespace(runtime: LocalRuntime, tmp_path: Path) -> None:
    """One process serves two pipelines, and ends with the last of them. Each pipeline has a config file."""
    run(runtime, processor("p"), shared("p"), pipeline="p")
    run(runtime, processor("q"), shared("q"), pipeline="q")
    folder = tmp_path / "data" / "pipelines" / "ns"
    assert sorted(path.name for path in folder.iterdir()) == ["p.json", "q.json"]
    endpoint = runtime.endpoints("ns", "p")
    assert endpoint == runtime.endpoints("ns", "q") == {"ingest": "http://127.0.0.1:21000"}
    before = pids(runtime)

    runtime.remove("ns", "p")
    assert pids(runtime) == {name: pid for name, pid in before.items() if name != "ns.p-processor-0"}
    assert [path.name for path in folder.iterdir()] == ["q.json"]
    assert runtime.endpoints("ns", "p") == {}

    runtime.remove("ns", "q")
    assert runtime.states() == {}
    assert all(pid is None or start_time(pid) is None for pid in before.values())


def test_a_workload_that_a_pipeline_no_longer_needs_ends(runtime: LocalRuntime) -> None:
    """Without `ingest.enabled`, ingest is not among the workloads."""
    run(runtime, processor(), shared())
    runtime.ensure([processor()])
    eventually(lambda: list(runtime.states()) == ["ns.p-processor-0"], what="ingest ends")


def test_the_log_of_a_crashing_workload_is_named(runtime: LocalRuntime) -> None:
    """The message has the exit status and the path of the log."""
    broken = replace(processor(), module="no_such_module")
    eventually(lambda: "exit status 1, see" in runtime.ensure([broken])[0].message, what="the crash is reported")
    outcome = runtime.ensure([broken])[0]
    assert (outcome.rank, outcome.component) == (Rank.WAITING, Component.PROCESSORS)
    log = Path(outcome.message.rpartition("see ")[2])
    eventually(lambda: "no_such_module" in log.read_text() if log.exists() else False, what="the log names the module")


def test_closing_ends_every_process(runtime: LocalRuntime, tmp_path: Path) -> None:
    """No process and no pid file remains, but the configs do."""
    run(runtime, processor(replicas=2), shared())
    running = [pid for pid in pids(runtime).values() if pid is not None]
    assert len(running) == 3
    runtime.close()
    assert [pid for pid in running if start_time(pid)] == []
    assert list((tmp_path / "data" / "run").iterdir()) == []
    assert (tmp_path / "data" / "pipelines" / "ns" / "p.json").exists()


def test_the_endpoint_is_that_of_a_dedicated_api(runtime: LocalRuntime) -> None:
    api = replace(shared(), name="tidemill-api", component="api")
    own = replace(api, name="p-api", pipeline="p")
    run(runtime, api, own)
    own_port = runtime.states()["ns.p-api-0"].port
    assert runtime.endpoints("ns", "p") == {"api": f"http://127.0.0.1:{own_port}"}


def test_every_process_is_a_target_of_prometheus(runtime: LocalRuntime) -> None:
    """The replicas of a workload are one target group. A shared workload has no label for a pipeline.

    Ingest and API serve their metrics at another port.
    """
    run(runtime, processor(replicas=2), shared())
    status_port = settings(21000)["TIDEMILL_STATUS_PORT"]
    assert status_port != "21000"
    ports = {name: state.port for name, state in runtime.states().items()}
    processors = [f"127.0.0.1:{ports[f'ns.p-processor-{number}']}" for number in range(2)]
    assert runtime.targets() == [
        {"targets": processors, "labels": {"namespace": "ns", "component": "processor", "pipeline": "p"}},
        {"targets": [f"127.0.0.1:{status_port}"], "labels": {"namespace": "ns", "component": "ingest"}},
    ]


def test_in_a_container_all_processes_listen_at_its_address(tmp_path: Path) -> None:
    """Ingest, API and processors listen at the address of the container."""
    specs = ProcessSpecs(tmp_path, environ={}, addresses={}, ports={}, reserved=(), host="192.0.2.1")
    process_specs = [specs.make(workload, workload.name) for workload in (processor(), shared())]
    assert {spec.command.environment["TIDEMILL_HOST"] for spec in process_specs} == {"192.0.2.1"}


def test_a_python_stage_gets_the_folder_of_its_file_and_no_login(tmp_path: Path) -> None:
    environment = {
        "TIDEMILL_POSTGRES_HOST": "h",
        "TIDEMILL_REDIS_URL": "r",
        "TIDEMILL_SECRETS_DIR": "s",
        "PATH": "/bin",
    }
    expected = {"PATH": "/bin", "TIDEMILL_INSTANCE": "ns.p-stage-0"}
    environment_of_stage = stage_environment(environment, process="ns.p-stage-0", folder=tmp_path)
    assert environment_of_stage == {**expected, "TIDEMILL_STAGE_DIR": str(tmp_path)}
    assert stage_environment(environment, process="ns.p-stage-0", folder=None) == expected


def test_the_folder_of_a_config_map_counts_more_than_the_folder_of_the_pipeline_file(tmp_path: Path) -> None:
    maps, home = tmp_path / "maps", tmp_path / "home"
    references, workload = References(tmp_path / "secrets", maps), processor()
    assert references.config_map(workload, "enrich") == maps / "ns" / "enrich"
    references.set_fallback("ns/p", home)
    assert references.config_map(workload, "enrich") == home
    (maps / "ns" / "enrich").mkdir(parents=True)
    assert references.config_map(workload, "enrich") == maps / "ns" / "enrich"
