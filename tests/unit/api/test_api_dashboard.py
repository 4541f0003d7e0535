"""Tests of the dashboard's page and files: how they are served, their security policy, and their requests."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tidemill_api.app import create_app
from tidemill_api.dashboard import load_assets
from tidemill_api.services import make_services
from tidemill_contract.runtime import WorkloadSettings

ASSETS = load_assets()
SCRIPTS = {name: asset.body.decode() for name, asset in ASSETS.items() if name.endswith(".js")}
PAGE = ASSETS["index.html"].body.decode()


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    """Return a function that requests a path of the application, which has no pipelines and no servers."""

    def get(path: str, **headers: str) -> httpx.Response:
        async def once() -> httpx.Response:
            services = make_services(WorkloadSettings(config_dir=tmp_path, secrets_dir=tmp_path), {})
            transport = httpx.ASGITransport(create_app(services))  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
                answer = await client.get(path, headers=headers)
            await services.close()
            return answer

        return asyncio.run(once())

    return get


def test_the_page_is_served_at_the_root(ask: Any) -> None:
    answer = ask("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == PAGE


def test_the_security_policy_forbids_inline_code_and_other_servers(ask: Any) -> None:
    """The page, its styles and scripts follow the policy."""
    headers = ask("/").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert headers["x-content-type-options"] == "nosniff"
    assert re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", PAGE) is None
    for text in (PAGE, ASSETS["dashboard.css"].body.decode(), *SCRIPTS.values()):
        urls = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"'`]*", text)
        assert [url for url in urls if url != "http://www.w3.org/2000/svg"] == []


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_scripts_never_insert_values_as_markup(name: str) -> None:
    assert (
        re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", SCRIPTS[name])
        is None
    )


@pytest.mark.parametrize(
    ("name", "media"),
    [
        ("dashboard.css", "text/css; charset=utf-8"),
        ("dashboard.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        *((name, "text/javascript; charset=utf-8") for name in sorted(SCRIPTS) if name != "dashboard.js"),
    ],
)
def test_files_have_a_media_type_and_an_etag(ask: Any, name: str, media: str) -> None:
    """Browsers refuse scripts with another type. The etag avoids repeated downloads."""
    answer = ask(f"/static/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, media)
    assert answer.content == ASSETS[name].body
    again = ask(f"/static/{name}", **{"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]


@pytest.mark.parametrize("path", ["/static/none.js", "/static/../app.py", "/static/%2e%2e%2fapp.py", "/static/"])
def test_other_paths_are_not_found(ask: Any, path: str) -> None:
    assert ask(path).status_code == 404


def test_every_linked_file_exists_and_every_script_is_used(ask: Any) -> None:
    named = {path for path in re.findall(r'(?:href|src)="(/[^"]*)"', PAGE)}
    used = {f"/static/{name}" for text in SCRIPTS.values() for name in re.findall(r'from "\./([^"]+)"', text)}
    assert {path: 200 for path in named | used} == {path: ask(path).status_code for path in named | used}
    assert {f"/static/{name}" for name in SCRIPTS} == {path for path in named | used if path.endswith(".js")}


def test_every_element_id_in_the_scripts_exists_in_the_page() -> None:
    wanted = {name for text in SCRIPTS.values() for name in re.findall(r'\$\("([^"]+)"\)', text)}
    assert wanted - set(re.findall(r'id="([^"]+)"', PAGE)) == set()


def test_every_path_that_scripts_request_is_in_the_openapi_document(ask: Any) -> None:
    """Only `paths` in api.js contains addresses."""
    script = SCRIPTS["api.js"]
    base = re.search(r"pipelinePath = \(name\) => `([^`]+)`", script)
    assert base is not None
    block = script.partition("export const paths = {")[2].partition("};")[0]
    expressions = re.findall(r"\w+: \([^)]*\) => (.+),", block)
    called = [
        text.replace("${pipelinePath(name)}", base[1]).replace("pipelinePath(name)", base[1]) for text in expressions
    ]
    named = {text.strip('`"').replace("encodeURIComponent(name)", "pipeline") for text in called}
    paths = {re.sub(r"\$\{(?:encodeURIComponent\()?(\w+)\)?\}", r"{\1}", text) for text in named}
    assert len(paths) == 6
    assert paths - set(ask("/openapi.json").json()["paths"]) == set()
    assert [name for name, text in SCRIPTS.items() if name != "api.js" and "/v1" in text] == []
