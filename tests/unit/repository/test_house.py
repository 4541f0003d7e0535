"""The repository's own rules: locks, dependencies, purity, layout, scripts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
DISTRIBUTIONS = (
    "operator",
    "workloads/contract",
    "workloads/chassis",
    "workloads/ingest",
    "workloads/processor",
    "workloads/api",
)
LOCKS = sorted([*ROOT.glob("hack/requirements/*.txt"), *(ROOT / name / "requirements.txt" for name in DISTRIBUTIONS)])
LOADED_BY_NAME = {
    "httptools": "uvicorn's parser of HTTP, which tidemill_chassis.web.limits derives from",
    "uvloop": "uvicorn's event loop, which the services ask for by name",
    "websockets": "uvicorn's WebSockets, which tidemill_api.live.slow_clients derives from",
}
"""Dependencies that another library imports, and why they are declared."""
SERVERS = ("confluent_kafka", "kafka", "psycopg", "redis", "kopf", "kubernetes", "httpx", "subprocess")
# Prints the modules of SERVERS that the import of the pure packages has loaded. polars loads subprocess by itself.
PURE = """
import importlib, pkgutil, sys
import polars
sys.modules.pop("subprocess", None)
for name in ("tidemill_contract", "tidemill_operator.plan", "tidemill_operator.scaling"):
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(found.name)
for name in ("status", "outcome"):
    importlib.import_module(f"tidemill_operator.{name}")
print(*(name for name in sys.argv[1:] if name in sys.modules))
"""
LONG = {"ensure_partitions_sql": "it is the text of one SQL function"}
"""Functions that may have more than 40 lines, and why."""
SCRIPTS = sorted([*ROOT.glob("hack/*.sh"), ROOT / ".ci" / "run"])


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _locked(path: Path) -> dict[str, str]:
    return dict(
        re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[[a-z,]+\])?==(\S+)", path.read_text(), re.MULTILINE | re.IGNORECASE)
    )


@pytest.mark.parametrize(
    "folder", ["operator", *(str(p.relative_to(ROOT)) for p in (ROOT / "tests").glob("**/") if p.name != "__pycache__")]
)
def test_folders_that_must_not_be_packages(folder: str) -> None:
    """A package `operator` hides Python's own module; packages below tests/ break the import mode."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_types_of_all_that_tests_share_are_checked() -> None:
    """Mypy takes no folder beside packages: each module of tests/support is named in pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    support = ROOT / "tests" / "support"
    assert {path.stem for path in support.glob("*.py")} == set(settings["modules"])
    assert {path.name for path in support.iterdir() if any(path.glob("*.py"))} <= set(settings["packages"])


@pytest.mark.parametrize("lock", LOCKS, ids=_name)
def test_locks_carry_hashes_and_no_address(lock: Path) -> None:
    """The same bytes everywhere, from whichever index a machine is set up with."""
    text = lock.read_text()
    assert re.findall(r"https?:|file:|--index|--find-links|--extra|(?:^|\s)/\w+", text) == []
    requirements = re.split(r"\n(?=[a-zA-Z0-9])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    assert [r.splitlines()[0] for r in requirements if "--hash=sha256:" not in r] == []
    assert _locked(lock) != {}


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_images_run_what_development_tests(folder: str) -> None:
    """A distribution's lock has the development lock's versions."""
    development = _locked(ROOT / "hack" / "requirements" / "dev.txt")
    differing = {n: v for n, v in _locked(ROOT / folder / "requirements.txt").items() if development.get(n) != v}
    assert differing == {}


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_what_a_distribution_needs_is_locked(folder: str) -> None:
    """`make lock` was run after the last change of a pyproject.toml."""
    needs = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[\[><=~!]", need)[0] for need in needs if not need.startswith("tidemill-")}
    assert names - set(_locked(ROOT / folder / "requirements.txt")) == set()


def _distribution(name: str) -> str:
    """A distribution's normalised name."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def _distributions() -> dict[str, set[str]]:
    """The distributions that each top-level module comes from; our own, installed as links, name no modules."""
    found = {module: set(map(_distribution, names)) for module, names in packages_distributions().items()}
    own = [_project(folder)["name"] for folder in DISTRIBUTIONS]
    return found | {name.replace("-", "_"): {name} for name in own}


def _project(folder: str) -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"])


def _imports(package: Path) -> dict[str, str]:
    """The top-level modules outside of Python that a package imports, with a file that does."""
    found = {}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            found |= {name.split(".")[0]: _name(path) for name in names}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names}


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_a_distribution_declares_what_it_imports_and_nothing_else(folder: str) -> None:
    """Nothing works only because somebody else needs it too, and images hold nothing that is never used."""
    project = _project(folder)
    package = ROOT / folder / project["name"].replace("-", "_")
    declared = {_distribution(re.split(r"[\[><=~!]", need)[0]) for need in project["dependencies"]}
    imported = {name: path for name, path in _imports(package).items() if name != package.name}
    missing = {name: path for name, path in imported.items() if not declared & _distributions().get(name, set())}
    assert missing == {}, "imported, but not declared in pyproject.toml"
    used = set().union(*(_distributions()[name] for name in imported))
    assert declared - used - set(LOADED_BY_NAME) == set(), "declared in pyproject.toml, but never imported"


def test_planning_and_the_contract_load_no_server_and_no_cluster() -> None:
    """Whoever imports them gets no client of a server: in a process of its own each pure module is imported."""
    command = [sys.executable, "-c", PURE, *SERVERS]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout.split()) == (0, []), found.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=_name)
def test_scripts_are_strict_and_executable(script: Path) -> None:
    """A failing step fails the script."""
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert script.stat().st_mode & 0o111 == 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_every_distribution_has_the_same_version_and_licence() -> None:
    """They are released together."""
    projects = [tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in DISTRIBUTIONS]
    assert {(p["version"], p["license"]) for p in projects} == {(projects[0]["version"], "MIT")}


def test_librdkafka_is_asked_nothing_of_coordinators() -> None:
    """A request to a coordinator that was given up ends the process when the broker is back."""
    asked = r"\.(?:(?:describe|delete)_consumer_groups|(?:list|alter|delete)_consumer_group_offsets)\("
    sources = [path for folder in ("operator", "workloads") for path in (ROOT / folder).glob("**/*.py")]
    assert [_name(path) for path in sources if re.search(asked, path.read_text())] == []


def _lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Return the number of lines of a function's body, without its docstring, comments and empty lines."""
    body = function.body[ast.get_docstring(function) is not None :]
    texts = [text.strip() for text in lines[body[0].lineno - 1 : function.end_lineno]] if body else []
    return sum(bool(text) and not text.startswith("#") for text in texts)


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_classes_and_functions_can_be_looked_through(folder: str) -> None:
    """No class has more than 250 lines, no function more than 40 lines of code or 7 parameters."""
    too_long = []
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= 250:
                too_long.append(f"{_name(path)}: {node.name}")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in LONG:
                named = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)} - {"self", "cls"}
                if _lines_of_code(node, text.splitlines()) > 40 or len(named) > 7:
                    too_long.append(f"{_name(path)}: {node.name}")
    assert too_long == []


@pytest.mark.parametrize("folder", [*DISTRIBUTIONS, "hack", "tests"])
def test_modules_and_rooms_can_be_looked_through(folder: str) -> None:
    """No module has more than 400 lines, no room more than 15 modules."""
    modules = [path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py"]
    assert [str(path.relative_to(ROOT)) for path in modules if len(path.read_text().splitlines()) > 400] == []
    rooms = Counter(path.parent for path in modules)
    assert [str(room.relative_to(ROOT)) for room, number in rooms.items() if number > 15] == []
