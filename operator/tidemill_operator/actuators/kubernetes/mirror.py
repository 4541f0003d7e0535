"""What watches tell of the cluster, kept, so that a pass over a quiet pipeline asks the API server for its Secret only.

A copy is never older than what this process has written or read itself, and otherwise as old as the watch is late.
What a write finds to be out of date is asked for anew, and so is, now and then, what watches may have missed.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kubernetes import client

from tidemill_operator.actuators.kubernetes.api import (
    KINDS,
    MANAGER,
    PIPELINE,
    SECRET,
    Api,
    Conflict,
    Document,
    Kind,
    NotFound,
)
from tidemill_operator.plan.render import marks

SHARED_SECONDS = 600.0
"""How long a Secret that a namespace shares is believed to be as it was; Secrets are not watched."""
_OURS = f"{marks.MANAGED_BY}={marks.MANAGER}"


@dataclass(frozen=True)
class _Copy:
    """An object as it was seen.

    Attributes:
        version: a later one is greater.
        uid: its own.
        owner: the UID in its label of that name.
        packed: the object; None: only its version is known.
        at: when it was seen, seconds that only grow.
    """

    version: int
    uid: str
    owner: str
    packed: bytes | None
    at: float


class Mirror:
    """Copies of objects by kind, namespace and name. Safe to share between threads.

    Args:
        kinds: that are watched.
        clock: seconds that only grow.
    """

    def __init__(self, kinds: Collection[Kind], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.kinds, self._clock = frozenset(kinds), clock
        self._copies: dict[tuple[str, str], dict[str, _Copy]] = defaultdict(dict)
        self._whole: dict[tuple[str, str | None], float] = {}
        self._lock = threading.Lock()

    def saw(self, kind: Kind, document: Mapping[str, Any], *, gone: bool = False) -> None:
        """Note an object, unless something newer is known."""
        metadata, now = document["metadata"], self._clock()
        version = _number(metadata.get("resourceVersion"))
        packed = None if gone else _packed(document)
        with self._lock:
            copies = self._copies[kind.kind, metadata.get("namespace", "")]
            known = copies.get(metadata["name"])
            if known is not None and known.version > version:
                return
            if gone:
                copies.pop(metadata["name"], None)
            else:
                copies[metadata["name"]] = _Copy(version, metadata["uid"], _owner(metadata), packed, now)

    def doubt(self, kind: Kind, namespace: str, name: str) -> None:
        """What is known of an object is out of date."""
        with self._lock:
            self._copies[kind.kind, namespace].pop(name, None)

    def get(self, kind: Kind, namespace: str, name: str, *, seconds: float | None = None) -> Document | None:
        """An object; None: it is not known, or was not seen within so many seconds."""
        with self._lock:
            found = self._copies[kind.kind, namespace].get(name)
        if found is None or found.packed is None or (seconds is not None and self._clock() - found.at > seconds):
            return None
        return _unpacked(found.packed)

    def owned(self, kind: Kind, namespace: str, uids: Collection[str]) -> tuple[list[Document], list[str]]:
        """Objects with such owners in their label, and the names of those of which only the version is known."""
        with self._lock:
            found = [(n, copy) for n, copy in self._copies[kind.kind, namespace].items() if copy.owner in uids]
        whole = [_unpacked(copy.packed) for _, copy in found if copy.packed is not None]
        return whole, [name for name, copy in found if copy.packed is None]

    def names(self, kind: Kind, namespace: str) -> dict[str, str]:
        """Names by UID of all that is known of a kind in a namespace."""
        with self._lock:
            return {copy.uid: name for name, copy in self._copies[kind.kind, namespace].items()}

    def is_whole(self, kind: Kind, scope: str | None, *, seconds: float) -> bool:
        """Whether all objects of a kind in a namespace, or in all, were listed within so many seconds."""
        with self._lock:
            return self._clock() - self._whole.get((kind.kind, scope), -seconds) < seconds

    def listed(self, kind: Kind, scope: str | None, items: Sequence[Document], version: str) -> None:
        """All objects of a kind in a scope are these, as of a version: others are gone, and changed ones are doubted.

        Args:
            kind: theirs.
            scope: a namespace; None: all.
            items: at least their metadata.
            version: of the list.
        """
        at, now = _number(version), self._clock()
        with self._lock:
            there = {(item["metadata"].get("namespace", ""), item["metadata"]["name"]) for item in items}
            for (known, namespace), copies in self._copies.items():
                if known == kind.kind and scope in (None, namespace):
                    for name in [n for n, c in copies.items() if c.version <= at and (namespace, n) not in there]:
                        del copies[name]
            for metadata in (item["metadata"] for item in items):
                copies = self._copies[kind.kind, metadata.get("namespace", "")]
                copy, number = copies.get(metadata["name"]), _number(metadata.get("resourceVersion"))
                if copy is None or copy.version < number:
                    copies[metadata["name"]] = _Copy(number, metadata["uid"], _owner(metadata), None, now)
            self._whole[kind.kind, scope] = now


class MirroredApi(Api):
    """An API whose reads of watched kinds come from a mirror, as far as it knows.

    Args:
        mirror: what watches tell.
        everywhere: whether all namespaces are watched, or single ones.
        listed_seconds: how often all objects are listed, to find what watches have missed.
        configuration: address and credentials.
    """

    def __init__(
        self,
        mirror: Mirror,
        *,
        everywhere: bool,
        listed_seconds: float,
        configuration: client.Configuration | None = None,
    ) -> None:
        super().__init__(configuration)
        self._mirror, self._everywhere, self._seconds = mirror, everywhere, listed_seconds
        self._listing = threading.Lock()

    def get(self, kind: Kind, namespace: str | None, name: str, *, sure: bool = False) -> Document | None:
        """An object; what is not known is asked for."""
        if namespace and kind in self._mirror.kinds and not sure:
            known = self._mirror.get(kind, namespace, name)
            if known is not None:
                return known
        return self._asked(kind, namespace, name)

    def recent(self, kind: Kind, namespace: str, name: str) -> Document | None:
        """An object as it was at most ten minutes ago."""
        known = self._mirror.get(kind, namespace, name, seconds=SHARED_SECONDS)
        return self._asked(kind, namespace, name) if known is None else known

    def owned(self, kind: Kind, namespace: str, uids: Sequence[str]) -> list[Document]:
        """A namespace's objects that have one of these owners in their label."""
        self._list(kind, namespace)
        found, unknown = self._mirror.owned(kind, namespace, uids)
        asked = (self._asked(kind, namespace, name) for name in unknown)
        return found + [item for item in asked if item is not None]

    def alive(self, namespace: str, *, sure: bool = False) -> dict[str, str]:
        """Names of a namespace's pipelines by UID."""
        if sure:
            return super().alive(namespace)
        self._list(PIPELINE, namespace)
        return self._mirror.names(PIPELINE, namespace)

    def list(
        self, kind: Kind, namespace: str | None = None, *, selector: str = "", metadata_only: bool = False
    ) -> list[Document]:
        """The objects of a kind; the mirror learns which there are."""
        if selector or kind != PIPELINE:
            return super().list(kind, namespace, selector=selector, metadata_only=metadata_only)
        items, version = self._pages(kind, namespace, selector="", metadata_only=metadata_only)
        self._mirror.listed(kind, namespace, items, version)
        return items

    def create(self, body: Document) -> Document:
        """Make an object."""
        with self._writing(KINDS[body["kind"]], body["metadata"].get("namespace"), body["metadata"]["name"]):
            return self._told(super().create(body))

    def apply(self, body: Document, *, subresource: str = "", manager: str = MANAGER) -> Document:
        """Server-side apply."""
        with self._writing(KINDS[body["kind"]], body["metadata"].get("namespace"), body["metadata"]["name"]):
            return self._told(super().apply(body, subresource=subresource, manager=manager))

    def replace(self, body: Document) -> Document:
        """Write a whole object."""
        with self._writing(KINDS[body["kind"]], body["metadata"].get("namespace"), body["metadata"]["name"]):
            return self._told(super().replace(body))

    def merge(self, kind: Kind, namespace: str | None, name: str, patch: Mapping[str, Any]) -> Document:
        """Change members of an object."""
        with self._writing(kind, namespace, name):
            return self._told(super().merge(kind, namespace, name, patch))

    def delete(self, kind: Kind, namespace: str | None, name: str, *, uid: str = "") -> bool:
        """Delete an object."""
        self._mirror.doubt(kind, namespace or "", name)
        return super().delete(kind, namespace, name, uid=uid)

    def _asked(self, kind: Kind, namespace: str | None, name: str) -> Document | None:
        found = super().get(kind, namespace, name)
        if found is None:
            self._mirror.doubt(kind, namespace or "", name)
            return None
        return self._told(found)

    def _told(self, document: Document) -> Document:
        kind = KINDS[document["kind"]]
        if kind in self._mirror.kinds or kind == SECRET:
            self._mirror.saw(kind, document)
        return document

    @contextmanager
    def _writing(self, kind: Kind, namespace: str | None, name: str) -> Iterator[None]:
        """What cannot be written because it is another than was thought is not known."""
        try:
            yield
        except (Conflict, NotFound):
            self._mirror.doubt(kind, namespace or "", name)
            raise

    def _list(self, kind: Kind, namespace: str) -> None:
        """Have all objects known, those that no watch has told of at least by name."""
        scope = None if self._everywhere else namespace
        with self._listing:
            if not self._mirror.is_whole(kind, scope, seconds=self._seconds):
                selector = "" if kind == PIPELINE else _OURS
                items, version = self._pages(kind, scope, selector=selector, metadata_only=True)
                self._mirror.listed(kind, scope, items, version)


def _owner(metadata: Mapping[str, Any]) -> str:
    return str((metadata.get("labels") or {}).get(marks.OWNER_UID, ""))


def _number(version: object) -> int:
    text = str(version or "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _packed(document: Mapping[str, Any]) -> bytes:
    return zlib.compress(json.dumps(document, default=dict).encode(), 1)


def _unpacked(packed: bytes) -> Document:
    return dict(json.loads(zlib.decompress(packed)))
