"""Stores the last accepted document, generation and status of each pipeline between runs of `up`."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tidemill_contract.files import MAX_STATE_FILE_BYTES, read_text
from tidemill_operator.processes.files import write_atomic


@dataclass(frozen=True)
class StoredPipeline:
    """The last accepted version of a pipeline."""

    document: Mapping[str, Any]
    status: Mapping[str, Any]

    @property
    def namespace(self) -> str:
        """The pipeline's namespace."""
        return str(self.document["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return str(self.document["metadata"]["name"])

    @property
    def key(self) -> str:
        """The key `namespace/name` of the pipeline."""
        return f"{self.namespace}/{self.name}"

    @property
    def ready(self) -> bool:
        """Whether the status is Ready for this generation, and no change is under way."""
        true_types = {c["type"] for c in self.status.get("conditions", ()) if c["status"] == "True"}
        current = self.status.get("observedGeneration") == self.document["metadata"]["generation"]
        return current and "Ready" in true_types and "Progressing" not in true_types


class Store:
    """The stored pipelines, in files `<folder>/<namespace>/<name>.json`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __iter__(self) -> Iterator[StoredPipeline]:
        for path in sorted(self._folder.glob("*/*.json")):
            if (stored := self._read(path)) is not None:
                yield stored

    def accept(self, document: Mapping[str, Any]) -> StoredPipeline:
        """Store a valid document. A changed spec increases the generation by one."""
        metadata = {"namespace": "default", **document["metadata"]}
        path = self._path(metadata["namespace"], metadata["name"])
        previous = self._read(path)
        if previous is None:
            metadata |= {"uid": str(uuid.uuid4()), "generation": 1}
            stored = StoredPipeline({**document, "metadata": metadata}, {})
        else:
            before = previous.document["metadata"]
            spec_changed = previous.document.get("spec") != document.get("spec")
            metadata |= {"uid": before["uid"], "generation": before["generation"] + spec_changed}
            stored = replace(previous, document={**document, "metadata": metadata})
        self._write(stored)
        return stored

    def update(self, stored: StoredPipeline, status: Mapping[str, Any]) -> StoredPipeline:
        """Store a pipeline's new status."""
        updated = replace(stored, status=status)
        self._write(updated)
        return updated

    def forget(self, stored: StoredPipeline) -> None:
        """Remove a pipeline."""
        self._path(stored.namespace, stored.name).unlink(missing_ok=True)

    def _path(self, namespace: str, name: str) -> Path:
        return self._folder / namespace / f"{name}.json"

    def _read(self, path: Path) -> StoredPipeline | None:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            record = json.loads(read_text(path, MAX_STATE_FILE_BYTES))
            return StoredPipeline(record["document"], record["status"])
        return None

    def _write(self, stored: StoredPipeline) -> None:
        text = json.dumps({"document": stored.document, "status": stored.status}, indent=1, default=str)
        write_atomic(self._path(stored.namespace, stored.name), text)
