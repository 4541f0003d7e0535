"""No file is read without a bound, whatever its name stands for."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tidemill_contract.files import FileTooLarge, read_bytes
from tidemill_contract.resource.documents import MAX_BYTES
from tidemill_operator.laptop.sources import Sources

ROOT = Path(__file__).resolve().parents[3]
HOMES = [ROOT / "operator" / "tidemill_operator", *sorted(ROOT.glob("workloads/*/tidemill_*"))]
VALID = (ROOT / "crds" / "examples" / "flights.yaml").read_bytes()
HOLDS = f"has more than {MAX_BYTES:,} bytes; at most {MAX_BYTES:,} are allowed"
# Of the process that is asked, so that a read without an end is a failure and not the end of this machine.
_MEMORY = 2 * 1024**3
# Devices of the kernel, and files that the distribution itself carries.
_UNBOUNDED = {
    "processes/child.py",
    "processes/ports.py",
    "processes/files.py",
    "files.py",
    "http/reference.py",
    "dashboard.py",
}


def bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def tidemill(*arguments: str, stdin: bytes = b"") -> tuple[int, str]:
    command = [sys.executable, "-m", "tidemill_operator.cli", *arguments]
    found = subprocess.run(command, input=stdin, capture_output=True, preexec_fn=bounded, timeout=120)
    return found.returncode, (found.stdout + found.stderr).decode()


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_a_device_without_an_end(command: str, tmp_path: Path) -> None:
    """The message names the file, its size as far as it was read, and the limit."""
    code, told = tidemill(command, "/dev/zero", *(["--data-dir", str(tmp_path)] if command == "plan" else []))
    assert (code, "/dev/zero: " in told, HOLDS in told) == (2, True, True)


def test_standard_input_without_an_end() -> None:
    code, told = tidemill("validate", "-", stdin=b"#" * (MAX_BYTES + 1))
    assert (code, f"<stdin>: {HOLDS}" in told) == (2, True)


def test_a_large_file_is_not_read_at_all(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    code, told = tidemill("validate", str(path))
    assert code == 2
    assert f"huge.yaml: has {1 << 40:,} bytes; at most {MAX_BYTES:,} are allowed; split the file" in told


def test_a_pipe_is_read_up_to_the_bound(tmp_path: Path) -> None:
    """As with `tidemill validate <(…)`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(VALID,))
    writer.start()
    assert read_bytes(pipe, MAX_BYTES) == VALID
    writer.join()
    assert tidemill("validate", "-", stdin=VALID) == (0, "<stdin>: ok\n")


def test_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"#" * 100)
    assert len(read_bytes(path, 100)) == 100
    with pytest.raises(FileTooLarge, match=r"has 100 bytes; at most 99 are allowed"):
        read_bytes(path, 99)


def test_a_file_that_grows_keeps_its_last_good_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(VALID)
    sources = Sources([path])
    assert sources.poll() is not None
    path.write_bytes(VALID + b"#" * MAX_BYTES)
    found = sources.poll()
    assert found is not None
    assert (list(found.documents), "at most" in found.faults[0]) == (["analytics/flights"], True)


@pytest.mark.parametrize("home", HOMES, ids=lambda home: home.name)
def test_files_are_read_by_the_bounded_functions(home: Path) -> None:
    """Whoever reads one otherwise is told of these."""
    found = [
        str(path.relative_to(home))
        for path in home.rglob("*.py")
        if re.search(r"\.read_(?:text|bytes)\(|\.buffer\.read\(\)", path.read_text())
    ]
    assert set(found) - _UNBOUNDED == set()
