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

ASK_SECONDS = 3.0
"""The timeout in seconds of a request to the schema registry."""
TURN_SECONDS = 5.0
"""The time limit in seconds for all requests to the registry in one round of the loop."""
_MOST_UNKNOWN = 10_000
_UNKNOWN_SECONDS = 10.0
"""An unknown schema id is requested again after this many seconds."""
_NOT_FOUND = 40403
_MOST_REFERENCES = 100
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


class RegistryAwayError(Exception):
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
        self._known: dict[int, Schema] = {}
        self._unknown: dict[int, float] = {}
        self._missing: set[int] = set()
        self._spent, self._limited = 0.0, False
        self.error = ""

    def begin_turn(self) -> None:
        """Limit the total time of the next requests to TURN_SECONDS."""
        self._spent, self._limited = 0.0, True

    def schema(self, number: int) -> Schema:
        """Return the schema with this id.

        Raises:
            UnknownSchemaError: the registry does not have the schema.
            RegistryAwayError: the registry does not answer, or requests have used up the time limit.
        """
        cached = self._known.get(number)
        if cached is not None:
            return cached
        with self._lock:
            asked_at = self._unknown.get(number)
            if asked_at is not None and time.monotonic() - asked_at < _UNKNOWN_SECONDS:
                raise UnknownSchemaError(self._says_unknown(number))
            if self.error:
                self._missing.add(number)
                raise RegistryAwayError(self.error)
            if self._limited and self._spent >= TURN_SECONDS:
                raise RegistryAwayError("reading unknown schemas takes too long")
            began = time.monotonic()
            try:
                return self._fetch(number)
            finally:
                self._spent += time.monotonic() - began

    def away(self, numbers: Iterable[int]) -> frozenset[int]:
        """Return the ids of schemas that cannot be read now, because the registry does not answer."""
        unavailable = set()
        for number in numbers:
            try:
                self.schema(number)
            except RegistryAwayError:
                unavailable.add(number)
            except UnknownSchemaError:
                pass
        return frozenset(unavailable)

    @property
    def missing(self) -> bool:
        """Whether records are waiting for schemas."""
        return bool(self._missing)

    def look(self) -> None:
        """Request the missing schemas.

        Raises:
            RegistryAwayError: the registry does not answer.
        """
        with self._lock:
            for number in list(self._missing):
                with suppress(UnknownSchemaError):
                    self._fetch(number)
                self._missing.discard(number)
            if self.error:
                log.warning("registry: answers again")
                self.error = ""

    def close(self) -> None:
        """Close the connections. A later request to the registry opens new connections."""
        if self._client is not None:
            self._client[1].__exit__()
            self._client = None

    def _fetch(self, number: int) -> Schema:
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            client = self._connected()
            registered = client.get_schema(number, fmt=self._form)
            referred = list(self._referred(client, registered))
        except SchemaRegistryError as error:
            if error.error_code == _NOT_FOUND:
                if len(self._unknown) >= _MOST_UNKNOWN:
                    self._unknown.clear()
                self._unknown[number] = time.monotonic()
                raise UnknownSchemaError(self._says_unknown(number)) from None
            raise self._lost(number, f"HTTP {error.http_status_code}: {error.error_message}") from None
        except Exception as error:  # HTTP, TLS and proxies can cause many kinds of errors.
            raise self._lost(number, f"{type(error).__name__}: {error}") from None
        names = tuple(name for name, _ in referred)
        schema = Schema(
            registered.schema_str or "", registered.schema_type or "AVRO", tuple(text for _, text in referred), names
        )
        self._known[number] = schema
        return schema

    def _referred(self, client: SchemaRegistryClient, schema: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
        for reference in schema.references or ():
            if depth > _MOST_REFERENCES:
                raise ValueError("the references between schemas form a circle")
            version = client.get_version(reference.subject, reference.version, fmt=self._form).schema
            yield from self._referred(client, version, depth + 1)
            yield reference.name, version.schema_str or ""

    def _lost(self, number: int, error: str) -> RegistryAwayError:
        self._missing.add(number)
        self.close()
        text = f"{self._url}: {error}"
        if text != self.error:
            log.warning("registry: %s", text)
        self.error = text
        return RegistryAwayError(text)

    def _says_unknown(self, number: int) -> str:
        return f"the registry {self._url} has no schema {number}"

    def _connected(self) -> SchemaRegistryClient:
        # Import lazily, because the import takes a second.
        from confluent_kafka.schema_registry import SchemaRegistryClient

        credentials = self._credentials()
        if self._client is None or self._client[0] != credentials:
            self.close()
            settings = {"url": self._url, "timeout": ASK_SECONDS, "max.retries": 0, **credentials}
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
