"""Tests of the repository's rules: locks, dependencies, pure packages, folders, scripts and sizes."""

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
    "httptools": "uvicorn's HTTP parser, which tidemill_chassis.web.limits extends",
    "uvloop": "uvicorn's event loop, which the services select by name",
    "websockets": "uvicorn's WebSockets, which tidemill_api.live.slow_clients extends",
}
"""Dependencies that only another library imports, and the reason why they are declared."""
SERVERS = ("confluent_kafka", "kafka", "psycopg", "redis", "kopf", "kubernetes", "httpx", "subprocess")
# Prints each module of SERVERS that the import of the pure packages loads. polars also loads subprocess.
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
"""Functions that may have more than 40 lines, and the reason."""
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
def test_operator_and_folders_of_tests_are_not_packages(folder: str) -> None:
    """A package `operator` would hide Python's module. Packages below tests/ would break pytest's import mode."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_mypy_checks_all_modules_of_tests_support() -> None:
    """With packages, mypy accepts no folder, so pyproject.toml names each module and folder of tests/support."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    support = ROOT / "tests" / "support"
    assert {path.stem for path in support.glob("*.py")} == set(settings["modules"])
    assert {path.name for path in support.iterdir() if any(path.glob("*.py"))} <= set(settings["packages"])


@pytest.mark.parametrize("lock", LOCKS, ids=_name)
def test_locks_have_hashes_and_name_no_package_index(lock: Path) -> None:
    """Hashes make installations equal, whichever index a machine uses."""
    text = lock.read_text()
    assert re.findall(r"https?:|file:|--index|--find-links|--extra|(?:^|\s)/\w+", text) == []
    requirements = re.split(r"\n(?=[a-zA-Z0-9])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    assert [r.splitlines()[0] for r in requirements if "--hash=sha256:" not in r] == []
    assert _locked(lock) != {}


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_the_lock_of_a_distribution_has_the_versions_of_development(folder: str) -> None:
    """Images contain the versions that were tested."""
    development = _locked(ROOT / "hack" / "requirements" / "dev.txt")
    differing = {n: v for n, v in _locked(ROOT / folder / "requirements.txt").items() if development.get(n) != v}
    assert differing == {}


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_all_dependencies_of_a_distribution_are_locked(folder: str) -> None:
    """If the test fails, run `make lock`."""
    needs = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[\[><=~!]", need)[0] for need in needs if not need.startswith("tidemill-")}
    assert names - set(_locked(ROOT / folder / "requirements.txt")) == set()


def _distribution(name: str) -> str:
    """Return the normalised name of a distribution."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def _distributions() -> dict[str, set[str]]:
    """Return the distributions of each top-level module. Editable installations list no modules, so add them."""
    installed = {module: set(map(_distribution, names)) for module, names in packages_distributions().items()}
    own = [_project(folder)["name"] for folder in DISTRIBUTIONS]
    return installed | {name.replace("-", "_"): {name} for name in own}


def _project(folder: str) -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"])


def _imports(package: Path) -> dict[str, str]:
    """Return the third-party top-level modules that a package imports, each with an importing file."""
    imported = {}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            imported |= {name.split(".")[0]: _name(path) for name in names}
    return {name: path for name, path in imported.items() if name not in sys.stdlib_module_names}


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_a_distribution_declares_exactly_the_dependencies_that_it_imports(folder: str) -> None:
    """A dependency is not left to another distribution, and images contain no unused dependency."""
    project = _project(folder)
    package = ROOT / folder / project["name"].replace("-", "_")
    declared = {_distribution(re.split(r"[\[><=~!]", need)[0]) for need in project["dependencies"]}
    imported = {name: path for name, path in _imports(package).items() if name != package.name}
    missing = {name: path for name, path in imported.items() if not declared & _distributions().get(name, set())}
    assert missing == {}, "imported, but not declared in pyproject.toml"
    used = set().union(*(_distributions()[name] for name in imported))
    assert declared - used - set(LOADED_BY_NAME) == set(), "declared in pyproject.toml, but never imported"


def test_pure_packages_import_no_client_of_a_server() -> None:
    """A separate process imports each module of the contract, of planning and of scaling."""
    command = [sys.executable, "-c", PURE, *SERVERS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=_name)
def test_scripts_are_strict_and_executable(script: Path) -> None:
    """With `set -euo pipefail`, a failing command fails the script."""
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert script.stat().st_mode & 0o111 == 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_every_distribution_has_the_same_version_and_licence() -> None:
    """All distributions are released together."""
    projects = [tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in DISTRIBUTIONS]
    assert {(p["version"], p["license"]) for p in projects} == {(projects[0]["version"], "MIT")}


def test_the_product_sends_no_requests_to_coordinators_through_librdkafka() -> None:
    """After the timeout of such a request, the process crashes when the broker is reachable again."""
    requests = r"\.(?:(?:describe|delete)_consumer_groups|(?:list|alter|delete)_consumer_group_offsets)\("
    sources = [path for folder in ("operator", "workloads") for path in (ROOT / folder).glob("**/*.py")]
    assert [_name(path) for path in sources if re.search(requests, path.read_text())] == []


def _lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Return the number of lines of a function's body, without its docstring, comments and empty lines."""
    body = function.body[ast.get_docstring(function) is not None :]
    texts = [text.strip() for text in lines[body[0].lineno - 1 : function.end_lineno]] if body else []
    return sum(bool(text) and not text.startswith("#") for text in texts)


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_classes_and_functions_are_short(folder: str) -> None:
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
def test_modules_and_folders_are_small(folder: str) -> None:
    """No module has more than 400 lines, no folder more than 15 modules."""
    modules = [path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py"]
    assert [str(path.relative_to(ROOT)) for path in modules if len(path.read_text().splitlines()) > 400] == []
    folders = Counter(path.parent for path in modules)
    assert [_name(path) for path, number in folders.items() if number > 15] == []
