"""Tests of the session in README.md: its file and commands work, and give the answers that the page shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from documented import ROOT, blocks, commands
from running.up import ENVIRON, Up, tidemill, up
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

README = ROOT / "README.md"
ANSWERS = [json.loads(block.text) for block in blocks(README) if block.language == "json"]


@pytest.fixture(scope="module")
def session() -> Iterator[Up]:
    """Start `tidemill up` with the pipeline of the page."""
    # Other users cannot read pytest's folder. If the tests run as root, Postgres runs as another user.
    folder = Path(tempfile.mkdtemp(prefix="tidemill-test-"))
    folder.chmod(0o755)
    (written,) = [block.text for block in blocks(README) if block.language == "yaml"]
    (folder / "orders.yaml").write_text(written)
    with up(folder, "orders.yaml") as running:
        running.wait_ready()
        yield running
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def type_in(session: Up) -> Callable[[str], str]:
    """Return a function that runs the command of the page with this beginning, and returns its output.

    It replaces the ports of the page by the ports of this run.
    """

    def run(beginning: str) -> str:
        (command,) = [command for command in commands(README) if command.startswith(beginning)]
        urls = session.ready_file["pipelines"]["orders"]
        command = command.replace("localhost:8080", urls["ingest"].removeprefix("http://"))
        command = command.replace("localhost:8081", urls["api"].removeprefix("http://"))
        command = re.sub(r"\.venv/bin/", f"{ROOT}/.venv/bin/", command)
        environ = {**ENVIRON, "no_proxy": "*"}
        result = subprocess.run(
            ["bash", "-c", command], cwd=session.folder, env=environ, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def shown(answer: Any, page: Any) -> Any:
    """Return the part of an answer that the page shows."""
    if isinstance(page, dict) and isinstance(answer, dict):
        return {key: shown(value, page[key]) for key, value in answer.items() if key in page}
    if isinstance(page, list) and isinstance(answer, list) and len(page) == 1:
        return [shown(item, page[0]) for item in answer]
    return answer


def test_tidemill_validate_accepts_the_file_of_the_page(type_in: Callable[[str], str]) -> None:
    assert type_in(".venv/bin/tidemill validate") == "orders.yaml: ok\n"


def test_events_are_sent_and_queried_with_the_answers_of_the_page(type_in: Callable[[str], str]) -> None:
    """The page may show a part of a long answer. Everything that it shows is in the answer."""
    sent = json.loads(type_in("curl -s localhost:8080"))
    assert shown(sent, ANSWERS[0]) == ANSWERS[0]
    answer: dict[str, Any] = {}

    def counted() -> bool:
        answer.update(json.loads(type_in("curl -s 'localhost:8081")))
        return bool(answer["data"])

    eventually(counted, seconds=30, what="the event is counted")
    assert answer["data"] == ANSWERS[1]["data"]
    assert answer["watermark"] == ANSWERS[1]["watermark"]
    assert set(ANSWERS[1]) <= set(answer)
    assert [item for item in ANSWERS[1]["meta"] if item not in answer["meta"]] == []


def test_the_live_client_of_the_page_prints_a_snapshot(session: Up) -> None:
    (command,) = [command for command in commands(README) if "-m websockets" in command]
    api = session.ready_file["pipelines"]["orders"]["api"].removeprefix("http://")
    words = command.replace("localhost:8081", api).replace(".venv", f"{ROOT}/.venv").split()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=ENVIRON, **pipes) as client:
        try:
            deadline, output = time.monotonic() + 60, ""
            assert client.stdout is not None
            while '"snapshot"' not in output and time.monotonic() < deadline:
                output += client.stdout.readline()
            assert '"snapshot"' in output
        finally:
            client.kill()


def test_a_service_serves_every_address_that_the_pages_name(session: Up) -> None:
    """The OpenAPI documents of both services list the addresses."""
    urls = session.ready_file["pipelines"]["orders"]
    served: list[str] = []
    for url in urls.values():
        served += httpx.get(f"{url}/openapi.json", timeout=20, trust_env=False).json()["paths"]
        for path in ("/health", "/livez", "/readyz"):
            assert httpx.get(f"{url}{path}", timeout=20, trust_env=False).status_code == 200, path
    pages = [README, *sorted((ROOT / "docs").rglob("*.md"))]
    paths = {path for page in pages for path in re.findall(r"/v1/[A-Za-z0-9{}_/-]*[A-Za-z0-9}]", page.read_text())}
    patterns = [re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path)) for path in served]
    live = re.compile(r"/v1/pipelines/[^/]+/live")
    assert {path for path in paths if not any(p.fullmatch(path) for p in (*patterns, live))} == set()
    letters = httpx.get(f"{urls['api']}/v1/pipelines/orders/dead-letters", timeout=20, trust_env=False).json()
    assert [row["reason"] for row in letters["data"]] == ["mistyped"]


def test_status_plan_and_down_work_beside_a_running_up(session: Up) -> None:
    """`tidemill down` ends the run and deletes its data."""
    done = {name: tidemill(*arguments, folder=session.folder) for name, arguments in OTHERS.items()}
    assert {name: run.returncode for name, run in done.items()} == dict.fromkeys(OTHERS, 0)
    assert "no changes" in done["plan"].stdout
    assert session.process.wait(30) == 0
    assert not Path(session.folder / ".tidemill").exists()


OTHERS = {"status": ["status"], "plan": ["plan", "orders.yaml"], "down": ["down", "--delete-data"]}
