"""A schema registry in this process, with the part of Confluent's REST interface that clients use."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]


@dataclass
class SchemaRegistry:
    """The schemas of the registry, and its answers.

    Attributes:
        schemas: the registered schemas by id, from 1.
        versions: the ids of schemas by subject, in the order of versions.
        asked: the paths of requests for schemas by id.
        login: the user and password that requests need, or None.
        failing: the status of every answer, or 0 if the registry works.
    """

    schemas: dict[int, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, list[int]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    login: tuple[str, str] | None = None
    failing: int = 0
    port: int = 0
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """The address of the registry."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start to answer, on the same port as before."""
        registry = self

        class Handler(_Handler):
            answers = registry

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stop the server, so that connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        """Register a schema as a version of a subject, and return its id.

        Args:
            subject: the subject.
            schema: `schema`, `schemaType` and `references`, as in a request.
        """
        members = {name: schema[name] for name in ("schema", "schemaType", "references") if schema.get(name)}
        number = next((number for number, stored in self.schemas.items() if stored == members), len(self.schemas) + 1)
        self.schemas[number] = members
        versions = self.versions.setdefault(subject, [])
        if number not in versions:
            versions.append(number)
        return number

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        """Return status and body of the answer to a request."""
        place, _, query = path.partition("?")
        if self.failing:
            return self.failing, {"error_code": self.failing * 100, "message": "out of order"}
        if match := re.fullmatch(r"/schemas/ids/(\d+)", place):
            self.asked.append(path)
            number = int(match[1])
            if number not in self.schemas:
                return 404, {"error_code": 40403, "message": f"Schema {number} not found"}
            return 200, self._form(self.schemas[number], query)
        if match := re.fullmatch(r"/subjects/([^/]+)/versions", place):
            if method == "POST":
                return 200, {"id": self.register(match[1], body)}
            return 200, list(range(1, len(self.versions.get(match[1], [])) + 1))
        if match := re.fullmatch(r"/subjects/([^/]+)/versions/(latest|\d+)", place):
            versions = self.versions.get(match[1], [])
            version = len(versions) if match[2] == "latest" else int(match[2])
            if not 0 < version <= len(versions):
                return 404, {"error_code": 40402, "message": "Version not found"}
            return 200, self._version(match[1], version, query)
        if (match := re.fullmatch(r"/subjects/([^/]+)", place)) and method == "POST":
            members = {name: body[name] for name in ("schema", "schemaType", "references") if body.get(name)}
            for version, number in enumerate(self.versions.get(match[1], []), 1):
                if self.schemas[number] == members:
                    return 200, self._version(match[1], version, query)
            return 404, {"error_code": 40403, "message": "Schema not found"}
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def _version(self, subject: str, version: int, query: str) -> dict[str, Any]:
        number = self.versions[subject][version - 1]
        return {"subject": subject, "version": version, "id": number, **self._form(self.schemas[number], query)}

    def _form(self, schema: dict[str, Any], query: str) -> dict[str, Any]:
        return schema


class _Handler(BaseHTTPRequestHandler):
    answers: SchemaRegistry

    def do_GET(self) -> None:
        self._reply("GET")

    def do_POST(self) -> None:
        self._reply("POST")

    def _reply(self, method: str) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        status, body = self.answers.answer(method, self.path, json.loads(raw) if raw else {})
        if self.answers.login is not None:
            text = base64.b64encode(":".join(self.answers.login).encode()).decode()
            if self.headers.get("authorization") != f"Basic {text}":
                status, body = 401, {"error_code": 401, "message": "Unauthorized"}
        out = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/vnd.schemaregistry.v1+json")
        self.send_header("content-length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@contextmanager
def running_registry() -> Iterator[SchemaRegistry]:
    """Start a registry, and stop it after the block."""
    registry = SchemaRegistry()
    registry.start()
    try:
        yield registry
    finally:
        registry.stop()
