"""Tests of the files that `up` watches: read again after a change, and ignored while they are faulty."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidemill_operator.laptop.pipeline_files import PipelineFiles, parse

GOOD = """\
apiVersion: tidemill.dev/v1alpha1
kind: AnalyticsPipeline
metadata: {name: %s}
spec:
  source:
    fields:
      - {name: carrier, type: string, required: true}
      - {name: ts, type: timestamp, required: true}
    eventTime: {field: ts}
  aggregations:
    - name: by_carrier
      groupBy: [carrier]
      window: {type: tumbling, size: %s}
      metrics:
        - {name: events, function: count}
"""


def good(name: str = "flights", size: str = "1h") -> str:
    return GOOD % (name, size)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(good())
    return path


def test_each_change_of_a_file_is_read_once(path: Path) -> None:
    """A file with a new time but the same content is no change. A file that is replaced is a change."""
    files = PipelineFiles([path])
    first = files.poll()
    assert first is not None
    assert (list(first.documents), first.faults) == (["default/flights"], ())
    assert files.poll() is None
    os.utime(path, ns=(1, 1))
    assert files.poll() is None
    path.write_text(good(size="2h"))
    changed = files.poll()
    assert changed is not None
    assert changed.documents["default/flights"]["spec"]["aggregations"][0]["window"]["size"] == "2h"
    replacement = path.with_name("new")
    replacement.write_text(good(size="3h"))
    replacement.replace(path)
    assert files.poll() is not None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (good(size="soon"), "a fault of one field"),
        ("a: [", "not YAML"),
        ("", "an empty file"),
        (good() + "---\n" + good(), "two documents of one name"),
        (good() + "---\nkind: Other\n", "one of two documents is faulty, so neither is read"),
    ],
)
def test_a_faulty_edit_keeps_the_last_good_documents(path: Path, content: str, reason: str) -> None:
    """Each fault begins with the name of the file. The corrected file is a change."""
    files = PipelineFiles([path])
    before = files.poll()
    path.write_text(content)
    edited = files.poll()
    assert before is not None
    assert edited is not None, reason
    assert edited.documents == before.documents
    assert edited.faults
    assert all(fault.startswith(f"{path}: ") for fault in edited.faults)
    path.write_text(good(size="2h"))
    repaired = files.poll()
    assert repaired is not None
    assert repaired.faults == ()


def test_a_missing_file_is_a_fault_and_removes_no_pipeline(path: Path) -> None:
    """The fault is reported once. The pipelines are kept, and a restored file is a change."""
    files = PipelineFiles([path])
    files.poll()
    path.unlink()
    content = files.poll()
    assert content is not None
    assert list(content.documents) == ["default/flights"]
    assert "cannot be read" in content.faults[0]
    assert files.poll() is None
    path.write_text(good())
    returned = files.poll()
    assert returned is not None
    assert returned.faults == ()


def test_a_pipeline_may_be_in_only_one_of_several_files(path: Path, tmp_path: Path) -> None:
    """The fault names the pipeline that is in two files."""
    other = tmp_path / "b.yaml"
    other.write_text(good("traffic"))
    content = PipelineFiles([path, other, path]).poll()
    assert content is not None
    assert (sorted(content.documents), content.faults) == (["default/flights", "default/traffic"], ())
    other.write_text(good())
    overlap = PipelineFiles([path, other]).poll()
    assert overlap is not None
    assert overlap.faults == (f"{other}: default/flights is also in another file; keep one of them",)


def test_a_namespace_is_part_of_the_identity() -> None:
    """The same name in two namespaces is two pipelines."""
    spaced = good().replace("{name: flights}", "{name: flights, namespace: other}")
    documents, faults = parse(good() + "---\n" + spaced)
    assert (sorted(documents), faults) == (["default/flights", "other/flights"], ())
