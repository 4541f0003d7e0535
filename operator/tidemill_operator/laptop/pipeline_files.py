"""Reads, validates and watches the YAML files of `up`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidemill_contract.files import FileTooLarge, read_text
from tidemill_contract.resource.documents import MAX_BYTES, DocumentError, load_documents
from tidemill_contract.resource.rules import TopicLimits
from tidemill_contract.resource.validate import check_document

Document = Mapping[str, Any]


@dataclass(frozen=True)
class FilesContent:
    """The content of the files.

    Attributes:
        documents: the documents by `namespace/name`. For an invalid file, the last valid documents are used.
        faults: one line `file: fault` for each fault.
        folders: the folder of each document's file, by `namespace/name`.
    """

    documents: Mapping[str, Document]
    faults: tuple[str, ...]
    folders: Mapping[str, Path] = field(default_factory=dict)


@dataclass
class _File:
    path: Path
    signature: tuple[int, int, int] | None = None
    text: str | None = None
    documents: dict[str, Document] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


class PipelineFiles:
    """The files of pipelines with which `up` was started."""

    def __init__(self, paths: Iterable[Path], *, limits: TopicLimits | None = None) -> None:
        self._limits = limits or TopicLimits()
        self._files = [_File(path) for path in dict.fromkeys(path.absolute() for path in paths)]

    def poll(self) -> FilesContent | None:
        """Read the changed files, and return the content of all files.

        If no file has changed, return None.
        """
        changed = [file for file in self._files if _refresh(file, self._limits)]
        if not changed:
            return None
        documents: dict[str, Document] = {}
        folders: dict[str, Path] = {}
        faults = [fault for file in self._files for fault in file.faults]
        for file in self._files:
            for key, document in file.documents.items():
                if key in documents:
                    faults.append(f"{file.path}: {key} is also in another file; keep one of them")
                documents.setdefault(key, document)
                folders.setdefault(key, file.path.parent)
        return FilesContent(documents, tuple(faults), folders)


def _refresh(file: _File, limits: TopicLimits) -> bool:
    try:
        status = file.path.stat()
        signature = (status.st_mtime_ns, status.st_size, status.st_ino)
        if signature == file.signature:
            return False
        text = read_text(file.path, MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        unreadable = (f"{file.path}: cannot be read ({_error_text(error)}); make it readable, or stop `up`",)
        changed = unreadable != file.faults
        file.faults, file.signature, file.text = unreadable, None, None
        return changed
    file.signature = signature
    if text == file.text:
        return False
    file.text = text
    documents, faults = parse(text, limits)
    file.faults = tuple(f"{file.path}: {fault}" for fault in faults)
    if not faults:
        file.documents = documents
    return True


def _error_text(error: OSError | UnicodeDecodeError) -> str:
    return str(error.strerror) if isinstance(error, FileTooLarge) else str(error)


def parse(text: str, limits: TopicLimits | None = None) -> tuple[dict[str, Document], tuple[str, ...]]:
    """Return the valid documents of a YAML text by `namespace/name`, and the faults of invalid documents."""
    try:
        loaded = load_documents(text)
    except DocumentError as error:
        return {}, tuple(str(fault) for fault in error.faults)
    documents: dict[str, Document] = {}
    faults: list[str] = []
    for document in loaded:
        pipeline, document_faults = check_document(document, limits)
        faults += [str(fault) for fault in document_faults]
        if pipeline is None or document_faults:
            continue
        key = f"{document['metadata'].get('namespace', 'default')}/{document['metadata']['name']}"
        if key in documents:
            faults.append(f"metadata.name: {key} is in this file twice; keep one of them")
        documents[key] = document
    return documents, tuple(faults)
