"""A cache of watched objects.

A read never returns a version older than a version that this process has already read or written.
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
    FIELD_MANAGER,
    KINDS,
    PIPELINE,
    SECRET,
    Api,
    Conflict,
    Document,
    Kind,
    NotFound,
)
from tidemill_operator.plan.render import object_metadata

SECRET_MAX_AGE_SECONDS = 600.0
"""The maximum age in seconds of a cached Secret. Secrets are not watched."""
_OURS = f"{object_metadata.MANAGED_BY}={object_metadata.MANAGER}"


@dataclass(frozen=True)
class _Copy:
    """A cached object. If `packed` is None, only the metadata is cached."""

    version: int
    uid: str
    owner: str
    packed: bytes | None
    stored_at: float


class ObjectCache:
    """A thread-safe store of cached objects. `clock` returns monotonic seconds."""

    def __init__(self, kinds: Collection[Kind], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.kinds, self._clock = frozenset(kinds), clock
        self._copies: dict[tuple[str, str], dict[str, _Copy]] = defaultdict(dict)
        self._listed_at: dict[tuple[str, str | None], float] = {}
        self._lock = threading.Lock()

    def store(self, kind: Kind, document: Mapping[str, Any], *, deleted: bool = False) -> None:
        """Store an object, unless a newer version is known."""
        metadata, now = document["metadata"], self._clock()
        version = _version_number(metadata.get("resourceVersion"))
        packed = None if deleted else _packed(document)
        with self._lock:
            copies = self._copies[kind.kind, metadata.get("namespace", "")]
            copy = copies.get(metadata["name"])
            if copy is not None and copy.version > version:
                return
            if deleted:
                copies.pop(metadata["name"], None)
            else:
                copies[metadata["name"]] = _Copy(version, metadata["uid"], _owner_uid(metadata), packed, now)

    def discard(self, kind: Kind, namespace: str, name: str) -> None:
        """Discard the outdated copy of an object."""
        with self._lock:
            self._copies[kind.kind, namespace].pop(name, None)

    def get(self, kind: Kind, namespace: str, name: str, *, seconds: float | None = None) -> Document | None:
        """Return the copy of an object, or None if the copy is missing or older than `seconds`."""
        with self._lock:
            copy = self._copies[kind.kind, namespace].get(name)
        if copy is None or copy.packed is None or (seconds is not None and self._clock() - copy.stored_at > seconds):
            return None
        return _unpacked(copy.packed)

    def list_owned(self, kind: Kind, namespace: str, uids: Collection[str]) -> tuple[list[Document], list[str]]:
        """Return the cached objects that belong to the given owners.

        The second list names objects of which only the metadata is cached.
        """
        with self._lock:
            copies = [(name, copy) for name, copy in self._copies[kind.kind, namespace].items() if copy.owner in uids]
        documents = [_unpacked(copy.packed) for _, copy in copies if copy.packed is not None]
        return documents, [name for name, copy in copies if copy.packed is None]

    def names(self, kind: Kind, namespace: str) -> dict[str, str]:
        """Return the names of the known objects, by UID."""
        with self._lock:
            return {copy.uid: name for name, copy in self._copies[kind.kind, namespace].items()}

    def is_complete(self, kind: Kind, scope: str | None, *, seconds: float) -> bool:
        """Return whether all objects of a kind were listed within the last `seconds`."""
        with self._lock:
            return self._clock() - self._listed_at.get((kind.kind, scope), -seconds) < seconds

    def store_list(self, kind: Kind, scope: str | None, items: Sequence[Document], version: str) -> None:
        """Store the result of a list, and drop objects that are not in the list.

        Args:
            kind: the kind of the objects.
            scope: the listed namespace, or None if all namespaces were listed.
            items: the objects, at least their metadata.
            version: the resource version of the list.
        """
        list_version, now = _version_number(version), self._clock()
        with self._lock:
            listed = {(item["metadata"].get("namespace", ""), item["metadata"]["name"]) for item in items}
            for (cached_kind, namespace), copies in self._copies.items():
                if cached_kind == kind.kind and scope in (None, namespace):
                    outdated = [name for name, copy in copies.items() if copy.version <= list_version]
                    for name in [name for name in outdated if (namespace, name) not in listed]:
                        del copies[name]
            for metadata in (item["metadata"] for item in items):
                copies = self._copies[kind.kind, metadata.get("namespace", "")]
                copy, number = copies.get(metadata["name"]), _version_number(metadata.get("resourceVersion"))
                if copy is None or copy.version < number:
                    copies[metadata["name"]] = _Copy(number, metadata["uid"], _owner_uid(metadata), None, now)
            self._listed_at[kind.kind, scope] = now


class CachedApi(Api):
    """An API client that reads objects of watched kinds from a cache."""

    def __init__(
        self,
        cache: ObjectCache,
        *,
        all_namespaces: bool,
        listed_seconds: float,
        configuration: client.Configuration | None = None,
    ) -> None:
        super().__init__(configuration)
        self._cache, self._all_namespaces, self._seconds = cache, all_namespaces, listed_seconds
        self._list_lock = threading.Lock()

    def get(self, kind: Kind, namespace: str | None, name: str, *, uncached: bool = False) -> Document | None:
        """Return an object from the cache, or else from the API."""
        if namespace and kind in self._cache.kinds and not uncached:
            cached = self._cache.get(kind, namespace, name)
            if cached is not None:
                return cached
        return self._fetch(kind, namespace, name)

    def get_maybe_cached(self, kind: Kind, namespace: str, name: str) -> Document | None:
        """Return an object. A cached version may be up to ten minutes old."""
        cached = self._cache.get(kind, namespace, name, seconds=SECRET_MAX_AGE_SECONDS)
        return self._fetch(kind, namespace, name) if cached is None else cached

    def list_owned(self, kind: Kind, namespace: str, uids: Sequence[str]) -> list[Document]:
        """Return the objects in a namespace that carry one of the owner UIDs as a label."""
        self._list(kind, namespace)
        documents, unknown = self._cache.list_owned(kind, namespace, uids)
        fetched = (self._fetch(kind, namespace, name) for name in unknown)
        return documents + [item for item in fetched if item is not None]

    def names_by_uid(self, namespace: str, *, uncached: bool = False) -> dict[str, str]:
        """Return the names of a namespace's pipelines by UID."""
        if uncached:
            return super().names_by_uid(namespace)
        self._list(PIPELINE, namespace)
        return self._cache.names(PIPELINE, namespace)

    def list(
        self, kind: Kind, namespace: str | None = None, *, selector: str = "", metadata_only: bool = False
    ) -> list[Document]:
        """Return the objects of a kind, and update the cache."""
        if selector or kind != PIPELINE:
            return super().list(kind, namespace, selector=selector, metadata_only=metadata_only)
        items, version = self._pages(kind, namespace, selector="", metadata_only=metadata_only)
        self._cache.store_list(kind, namespace, items, version)
        return items

    def create(self, body: Document) -> Document:
        """Create an object."""
        with self._discard_on_conflict(*_identity(body)):
            return self._store(super().create(body))

    def apply(self, body: Document, *, subresource: str = "", manager: str = FIELD_MANAGER) -> Document:
        """Apply an object server-side."""
        with self._discard_on_conflict(*_identity(body)):
            return self._store(super().apply(body, subresource=subresource, manager=manager))

    def replace(self, body: Document) -> Document:
        """Replace a whole object."""
        with self._discard_on_conflict(*_identity(body)):
            return self._store(super().replace(body))

    def merge(self, kind: Kind, namespace: str | None, name: str, patch: Mapping[str, Any]) -> Document:
        """Apply a merge patch."""
        with self._discard_on_conflict(kind, namespace, name):
            return self._store(super().merge(kind, namespace, name, patch))

    def delete(self, kind: Kind, namespace: str | None, name: str, *, uid: str = "") -> bool:
        """Delete an object."""
        self._cache.discard(kind, namespace or "", name)
        return super().delete(kind, namespace, name, uid=uid)

    def _fetch(self, kind: Kind, namespace: str | None, name: str) -> Document | None:
        document = super().get(kind, namespace, name)
        if document is None:
            self._cache.discard(kind, namespace or "", name)
            return None
        return self._store(document)

    def _store(self, document: Document) -> Document:
        kind = KINDS[document["kind"]]
        if kind in self._cache.kinds or kind == SECRET:
            self._cache.store(kind, document)
        return document

    @contextmanager
    def _discard_on_conflict(self, kind: Kind, namespace: str | None, name: str) -> Iterator[None]:
        try:
            yield
        except (Conflict, NotFound):
            self._cache.discard(kind, namespace or "", name)
            raise

    def _list(self, kind: Kind, namespace: str) -> None:
        scope = None if self._all_namespaces else namespace
        with self._list_lock:
            if not self._cache.is_complete(kind, scope, seconds=self._seconds):
                selector = "" if kind == PIPELINE else _OURS
                items, version = self._pages(kind, scope, selector=selector, metadata_only=True)
                self._cache.store_list(kind, scope, items, version)


def _identity(body: Document) -> tuple[Kind, str | None, str]:
    return KINDS[body["kind"]], body["metadata"].get("namespace"), body["metadata"]["name"]


def _owner_uid(metadata: Mapping[str, Any]) -> str:
    return str((metadata.get("labels") or {}).get(object_metadata.OWNER_UID, ""))


def _version_number(version: object) -> int:
    text = str(version or "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _packed(document: Mapping[str, Any]) -> bytes:
    return zlib.compress(json.dumps(document, default=dict).encode(), 1)


def _unpacked(packed: bytes) -> Document:
    return dict(json.loads(zlib.decompress(packed)))
