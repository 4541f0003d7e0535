"""README's own session, typed as it stands there: its file, its commands, its answers."""

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
    """The pipeline of the page, running."""
    # Not pytest's own folder: that is closed to other users, and as root Postgres runs as another one.
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
    """Runs the command of the page that begins so, with the ports of this run; what it prints."""

    def run(beginning: str) -> str:
        (command,) = [command for command in commands(README) if command.startswith(beginning)]
        urls = session.ready_file["pipelines"]["orders"]
        command = command.replace("localhost:8080", urls["ingest"].removeprefix("http://"))
        command = command.replace("localhost:8081", urls["api"].removeprefix("http://"))
        command = re.sub(r"\.venv/bin/", f"{ROOT}/.venv/bin/", command)
        environ = {**ENVIRON, "no_proxy": "*"}
        done = subprocess.run(
            ["bash", "-c", command], cwd=session.folder, env=environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def shown(answer: Any, page: Any) -> Any:
    """The part of an answer that the page shows."""
    if isinstance(page, dict) and isinstance(answer, dict):
        return {key: shown(value, page[key]) for key, value in answer.items() if key in page}
    if isinstance(page, list) and isinstance(answer, list) and len(page) == 1:
        return [shown(item, page[0]) for item in answer]
    return answer


def test_tidemill_validate_accepts_the_file_of_the_session(type_in: Callable[[str], str]) -> None:
    assert type_in(".venv/bin/tidemill validate") == "orders.yaml: ok\n"


def test_events_are_sent_and_asked_for(type_in: Callable[[str], str]) -> None:
    """Each answer is the one on the page; of long ones the page shows a part, and none that is not there."""
    sent = json.loads(type_in("curl -s localhost:8080"))
    assert shown(sent, ANSWERS[0]) == ANSWERS[0]
    asked: dict[str, Any] = {}

    def counted() -> bool:
        asked.update(json.loads(type_in("curl -s 'localhost:8081")))
        return bool(asked["data"])

    eventually(counted, seconds=30, what="the event is counted")
    assert asked["data"] == ANSWERS[1]["data"]
    assert asked["watermark"] == ANSWERS[1]["watermark"]
    assert set(ANSWERS[1]) <= set(asked)
    assert [item for item in ANSWERS[1]["meta"] if item not in asked["meta"]] == []


def test_live_changes_are_shown(session: Up) -> None:
    """The page's client prints a snapshot first."""
    (command,) = [command for command in commands(README) if "-m websockets" in command]
    api = session.ready_file["pipelines"]["orders"]["api"].removeprefix("http://")
    words = command.replace("localhost:8081", api).replace(".venv", f"{ROOT}/.venv").split()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=ENVIRON, **pipes) as client:
        try:
            deadline, seen = time.monotonic() + 60, ""
            assert client.stdout is not None
            while '"snapshot"' not in seen and time.monotonic() < deadline:
                seen += client.stdout.readline()
            assert '"snapshot"' in seen
        finally:
            client.kill()


def test_every_address_of_the_pages_is_served(session: Up) -> None:
    """By one of both services, as their OpenAPI documents have it."""
    urls = session.ready_file["pipelines"]["orders"]
    served: list[str] = []
    for url in urls.values():
        served += httpx.get(f"{url}/openapi.json", timeout=20, trust_env=False).json()["paths"]
        for path in ("/health", "/livez", "/readyz"):
            assert httpx.get(f"{url}{path}", timeout=20, trust_env=False).status_code == 200, path
    pages = [README, *sorted((ROOT / "docs").rglob("*.md"))]
    named = {path for page in pages for path in re.findall(r"/v1/[A-Za-z0-9{}_/-]*[A-Za-z0-9}]", page.read_text())}
    patterns = [re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path)) for path in served]
    live = re.compile(r"/v1/pipelines/[^/]+/live")
    assert {path for path in named if not any(p.fullmatch(path) for p in (*patterns, live))} == set()
    letters = httpx.get(f"{urls['api']}/v1/pipelines/orders/dead-letters", timeout=20, trust_env=False).json()
    assert [row["reason"] for row in letters["data"]] == ["mistyped"]


def test_the_other_commands_beside_it(session: Up) -> None:
    """`tidemill status`, `plan` of what runs, and `down`, which ends it."""
    told = {name: tidemill(*arguments, folder=session.folder) for name, arguments in OTHERS.items()}
    assert {name: done.returncode for name, done in told.items()} == dict.fromkeys(OTHERS, 0)
    assert "no changes" in told["plan"].stdout
    assert session.process.wait(30) == 0
    assert not Path(session.folder / ".tidemill").exists()


OTHERS = {"status": ["status"], "plan": ["plan", "orders.yaml"], "down": ["down", "--delete-data"]}
