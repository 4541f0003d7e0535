"""The repository's own rules: locks, layout, scripts."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = (
    "operator",
    "workloads/contract",
    "workloads/chassis",
    "workloads/ingest",
    "workloads/processor",
    "workloads/api",
)
LOCKS = sorted([*ROOT.glob("hack/requirements/*.txt"), *(ROOT / name / "requirements.txt" for name in DISTRIBUTIONS)])
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
