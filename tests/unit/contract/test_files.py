"""Tests of reading files: every file is read up to a limit of bytes, also devices and pipes."""

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
from tidemill_operator.laptop.pipeline_files import PipelineFiles

ROOT = Path(__file__).resolve().parents[3]
HOMES = [ROOT / "operator" / "tidemill_operator", *sorted(ROOT.glob("workloads/*/tidemill_*"))]
VALID = (ROOT / "crds" / "examples" / "flights.yaml").read_bytes()
HOLDS = f"has more than {MAX_BYTES:,} bytes; at most {MAX_BYTES:,} are allowed"
# The limit of the command's memory. An endless read fails and does not use up the memory of this machine.
_MEMORY = 2 * 1024**3
# These modules read devices of the kernel, or files of the package itself.
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
    completed = subprocess.run(command, input=stdin, capture_output=True, preexec_fn=bounded, timeout=120)
    return completed.returncode, (completed.stdout + completed.stderr).decode()


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_an_endless_device_is_refused(command: str, tmp_path: Path) -> None:
    """The message names the file and the limit."""
    code, output = tidemill(command, "/dev/zero", *(["--data-dir", str(tmp_path)] if command == "plan" else []))
    assert (code, "/dev/zero: " in output, HOLDS in output) == (2, True, True)


def test_standard_input_beyond_the_limit_is_refused() -> None:
    code, output = tidemill("validate", "-", stdin=b"#" * (MAX_BYTES + 1))
    assert (code, f"<stdin>: {HOLDS}" in output) == (2, True)


def test_a_file_beyond_the_limit_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    code, output = tidemill("validate", str(path))
    assert code == 2
    assert f"huge.yaml: has {1 << 40:,} bytes; at most {MAX_BYTES:,} are allowed; split the file" in output


def test_a_pipe_is_read_up_to_the_limit(tmp_path: Path) -> None:
    """Shells pass pipes to commands such as `tidemill validate <(…)`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(VALID,))
    writer.start()
    assert read_bytes(pipe, MAX_BYTES) == VALID
    writer.join()
    assert tidemill("validate", "-", stdin=VALID) == (0, "<stdin>: ok\n")


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"#" * 100)
    assert len(read_bytes(path, 100)) == 100
    with pytest.raises(FileTooLarge, match=r"has 100 bytes; at most 99 are allowed"):
        read_bytes(path, 99)


def test_the_last_valid_documents_are_kept_if_a_file_exceeds_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(VALID)
    sources = PipelineFiles([path])
    assert sources.poll() is not None
    path.write_bytes(VALID + b"#" * MAX_BYTES)
    reading = sources.poll()
    assert reading is not None
    assert (list(reading.documents), "at most" in reading.faults[0]) == (["analytics/flights"], True)


@pytest.mark.parametrize("home", HOMES, ids=lambda home: home.name)
def test_modules_read_files_with_the_functions_that_have_a_limit(home: Path) -> None:
    modules = [
        str(path.relative_to(home))
        for path in home.rglob("*.py")
        if re.search(r"\.read_(?:text|bytes)\(|\.buffer\.read\(\)", path.read_text())
    ]
    assert set(modules) - _UNBOUNDED == set()
