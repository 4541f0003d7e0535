"""The client of a schema registry, which reads each schema once by its id."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill_contract.files import read_text
from tidemill_contract.resource.kinds.formats import RegistrySpec

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient

log = logging.getLogger(__name__)

REQUEST_SECONDS = 3.0
"""The timeout in seconds of a request to the schema registry."""
ROUND_SECONDS = 5.0
"""The time limit in seconds for all requests to the registry in one round of the loop."""
_MAX_UNKNOWN = 10_000
_UNKNOWN_SECONDS = 10.0
"""An unknown schema id is requested again after this many seconds."""
_NOT_FOUND = 40403
_MAX_REFERENCES = 100
USERNAME, PASSWORD, CA, CERTIFICATE, KEY = "username", "password", "ca.crt", "tls.crt", "tls.key"
"""The optional keys of the Secret. The names follow Kubernetes' Secret types `basic-auth` and `tls`."""


@dataclass(frozen=True)
class Schema:
    """A schema with which records were written.

    Attributes:
        text: the text of the schema, as it was registered.
        kind: one of AVRO, PROTOBUF and JSON.
        references: the texts of the referenced schemas, each after the schemas that it references.
        names: the names of the referenced schemas, in the same order.
    """

    text: str
    kind: str = "AVRO"
    references: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class UnknownSchemaError(Exception):
    """Raised if the registry does not have a schema."""


class RegistryUnavailableError(Exception):
    """Raised if the registry does not answer, or answers with an error."""


class Registry:
    """The client of one pipeline's registry."""

    def __init__(self, spec: RegistrySpec, folder: Path | None = None, *, form: str | None = None) -> None:
        """Create the client without sending a request.

        Args:
            spec: the registry in the pipeline's spec.
            folder: the folder in which each key of the Secret is a file, or None if there is no Secret.
            form: the form in which schemas are requested, or None for the form in which they were registered.
        """
        self._url, self._folder, self._form = spec.url, folder, form
        self._lock = threading.Lock()
        self._client: tuple[Any, SchemaRegistryClient] | None = None
        self._schemas: dict[int, Schema] = {}
        self._unknown_since: dict[int, float] = {}
        self._missing: set[int] = set()
        self._spent_seconds, self._limited = 0.0, False
        self.error = ""

    def begin_round(self) -> None:
        """Limit the total time of the next requests to ROUND_SECONDS."""
        self._spent_seconds, self._limited = 0.0, True

    def schema(self, schema_id: int) -> Schema:
        """Return the schema with this id.

        Raises:
            UnknownSchemaError: the registry does not have the schema.
            RegistryUnavailableError: the registry does not answer, or requests have used up the time limit.
        """
        cached = self._schemas.get(schema_id)
        if cached is not None:
            return cached
        with self._lock:
            unknown_since = self._unknown_since.get(schema_id)
            if unknown_since is not None and time.monotonic() - unknown_since < _UNKNOWN_SECONDS:
                raise UnknownSchemaError(self._unknown_message(schema_id))
            if self.error:
                self._missing.add(schema_id)
                raise RegistryUnavailableError(self.error)
            if self._limited and self._spent_seconds >= ROUND_SECONDS:
                raise RegistryUnavailableError("reading unknown schemas takes too long")
            began = time.monotonic()
            try:
                return self._fetch(schema_id)
            finally:
                self._spent_seconds += time.monotonic() - began

    def find_unavailable(self, schema_ids: Iterable[int]) -> frozenset[int]:
        """Return the ids of schemas that cannot be read now, because the registry does not answer."""
        unavailable = set()
        for schema_id in schema_ids:
            try:
                self.schema(schema_id)
            except RegistryUnavailableError:
                unavailable.add(schema_id)
            except UnknownSchemaError:
                pass
        return frozenset(unavailable)

    @property
    def has_missing(self) -> bool:
        """Whether records are waiting for schemas."""
        return bool(self._missing)

    def fetch_missing(self) -> None:
        """Request the missing schemas.

        Raises:
            RegistryUnavailableError: the registry does not answer.
        """
        with self._lock:
            for schema_id in list(self._missing):
                with suppress(UnknownSchemaError):
                    self._fetch(schema_id)
                self._missing.discard(schema_id)
            if self.error:
                log.warning("registry: answers again")
                self.error = ""

    def close(self) -> None:
        """Close the connections. A later request to the registry opens new connections."""
        if self._client is not None:
            self._client[1].__exit__()
            self._client = None

    def _fetch(self, schema_id: int) -> Schema:
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            client = self._current_client()
            registered = client.get_schema(schema_id, fmt=self._form)
            references = list(self._read_references(client, registered))
        except SchemaRegistryError as error:
            if error.error_code == _NOT_FOUND:
                if len(self._unknown_since) >= _MAX_UNKNOWN:
                    self._unknown_since.clear()
                self._unknown_since[schema_id] = time.monotonic()
                raise UnknownSchemaError(self._unknown_message(schema_id)) from None
            raise self._record_failure(schema_id, f"HTTP {error.http_status_code}: {error.error_message}") from None
        except Exception as error:  # HTTP, TLS and proxies can cause many kinds of errors.
            raise self._record_failure(schema_id, f"{type(error).__name__}: {error}") from None
        names = tuple(name for name, _ in references)
        schema = Schema(
            registered.schema_str or "", registered.schema_type or "AVRO", tuple(text for _, text in references), names
        )
        self._schemas[schema_id] = schema
        return schema

    def _read_references(self, client: SchemaRegistryClient, schema: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
        for reference in schema.references or ():
            if depth > _MAX_REFERENCES:
                raise ValueError("the references between schemas form a circle")
            version = client.get_version(reference.subject, reference.version, fmt=self._form).schema
            yield from self._read_references(client, version, depth + 1)
            yield reference.name, version.schema_str or ""

    def _record_failure(self, schema_id: int, error: str) -> RegistryUnavailableError:
        self._missing.add(schema_id)
        self.close()
        text = f"{self._url}: {error}"
        if text != self.error:
            log.warning("registry: %s", text)
        self.error = text
        return RegistryUnavailableError(text)

    def _unknown_message(self, schema_id: int) -> str:
        return f"the registry {self._url} has no schema {schema_id}"

    def _current_client(self) -> SchemaRegistryClient:
        # Import lazily, because the import takes a second.
        from confluent_kafka.schema_registry import SchemaRegistryClient

        credentials = self._credentials()
        if self._client is None or self._client[0] != credentials:
            self.close()
            settings = {"url": self._url, "timeout": REQUEST_SECONDS, "max.retries": 0, **credentials}
            self._client = credentials, SchemaRegistryClient(settings)
        return self._client[1]

    def _credentials(self) -> dict[str, str]:
        if self._folder is None:
            return {}
        settings: dict[str, str] = {}
        if (self._folder / USERNAME).exists():
            texts = [read_text(self._folder / name).strip() for name in (USERNAME, PASSWORD)]
            settings["basic.auth.user.info"] = ":".join(texts)
        for name, setting in (
            (CA, "ssl.ca.location"),
            (CERTIFICATE, "ssl.certificate.location"),
            (KEY, "ssl.key.location"),
        ):
            if (self._folder / name).exists():
                settings[setting] = str(self._folder / name)
        return settings
