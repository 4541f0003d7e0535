"""The admission webhook, which refuses invalid AnalyticsPipelines.

It is also registered as mutating, to run before the API server's less helpful checks.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import socket
import ssl
import tempfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from tidemill_contract.resource.validate import TopicLimits, check_document
from tidemill_operator.actuators.kubernetes.api import WEBHOOKS, Api, Kind
from tidemill_operator.cluster.admission.certificates import CertificateKeeper, Certificates
from tidemill_operator.errors import TidemillError

log = logging.getLogger(__name__)
PATH = "/validate"
_MAX_BYTES = 8 * 1024 * 1024
_CLIENT_SECONDS = 10.0
_REFRESH_SECONDS = 60.0
_RETRY_SECONDS = 2.0


def review(request: Mapping[str, Any], limits: TopicLimits) -> dict[str, Any]:
    """Return the response to an admission request."""
    document, before = request.get("object") or {}, request.get("oldObject") or {}
    response: dict[str, Any] = {"uid": request["uid"], "allowed": True}
    metadata = document.get("metadata") or {}
    # Allow changes outside the spec, such as new labels, without a check. A newer rule may refuse the unchanged spec.
    if metadata.get("deletionTimestamp") or (before and before.get("spec") == document.get("spec")):
        return response
    named_metadata = {**metadata, "namespace": metadata.get("namespace") or request.get("namespace") or "default"}
    if not named_metadata.get("name"):
        named_metadata["name"] = "generated"  # with generateName, the API server sets the name after this check
    _, faults = check_document({**document, "metadata": named_metadata, "status": None}, limits)
    if faults:
        text = "\n".join(str(fault) for fault in faults)
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        status = {"code": 422, "reason": "Invalid", "message": f"{count}:\n{text}"}
        return {**response, "allowed": False, "status": status}
    return response


class Webhook:
    """The webhook's server and its certificate."""

    def __init__(
        self, api: Api, keeper: CertificateKeeper, *, port: int, configuration: str, limits: TopicLimits
    ) -> None:
        self._api, self._keeper, self._configuration = api, keeper, configuration
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._certificates: Certificates | None = None
        handler = type("_BoundHandler", (_Handler,), {"limits": limits})
        self._server = _Server(("0.0.0.0", port), handler, self._context)  # noqa: S104 - a pod's own address
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._renew_certificate, name="webhook-certificate", daemon=True),
            threading.Thread(target=self._serve, name="webhook", daemon=True),
        ]
        self._serving = threading.Event()

    @property
    def port(self) -> int:
        """The listening port."""
        return int(self._server.server_address[1])

    @property
    def ready(self) -> bool:
        """Whether the webhook has a certificate and serves requests."""
        return self._serving.is_set()

    def start(self) -> None:
        """Start the server as soon as it has a certificate."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the server."""
        self._stopping.set()
        if self._serving.is_set():
            self._server.shutdown()
        self._serving.clear()
        self._server.server_close()

    def publish(self) -> None:
        """Write the certificate authority into the cluster's webhook configurations.

        Raises:
            TidemillError: the API does not answer, or refuses the request.
        """
        if self._certificates is None:
            return
        bundle = base64.b64encode(self._certificates.bundle.encode()).decode()
        for kind in WEBHOOKS:
            self._publish(kind, bundle)

    def _publish(self, kind: Kind, bundle: str) -> None:
        live = self._api.get(kind, None, self._configuration)
        if live is None:
            log.warning("%s %s does not exist", kind.kind, self._configuration)
            return
        updated = [{**hook, "clientConfig": {**hook["clientConfig"], "caBundle": bundle}} for hook in live["webhooks"]]
        if updated != live["webhooks"]:
            self._api.replace({**live, "webhooks": updated})
            log.info("the webhook's authority was published in %s %s", kind.kind, self._configuration)

    def _renew_certificate(self) -> None:
        while not self._stopping.is_set():
            try:
                certificates = self._keeper.ensure()
                if certificates != self._certificates:
                    load_certificate(self._context, certificates)
                    self._certificates = certificates
                    self._serving.set()
            except TidemillError as error:
                log.warning("the webhook's certificate: %s", error)
            except Exception:
                log.exception("the webhook's certificate cannot be loaded")
            self._stopping.wait(_REFRESH_SECONDS if self._certificates else _RETRY_SECONDS)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            if self._serving.wait(0.2):
                self._server.serve_forever(poll_interval=0.2)
                return


def load_certificate(context: ssl.SSLContext, certificates: Certificates) -> None:
    """Make `context` use the server certificate for new TLS connections."""
    with tempfile.TemporaryDirectory(prefix="tidemill-webhook-") as folder:  # only the owner can read `folder`
        path = Path(folder) / "pair.pem"
        path.touch(mode=0o600)
        path.write_text(certificates.server.certificate + certificates.server.key)
        context.load_cert_chain(path)


class _Server(ThreadingHTTPServer):
    """Runs each TLS handshake in its client's thread, so that a silent client does not block others."""

    daemon_threads, block_on_close = True, False

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext
    ) -> None:
        self._context = context
        super().__init__(address, handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        request.settimeout(_CLIENT_SECONDS)
        try:
            tls_socket = self._context.wrap_socket(request, server_side=True)
        except (OSError, ssl.SSLError) as error:
            log.debug("a TLS handshake failed: %s", error)
            self.shutdown_request(request)
            return
        super().process_request_thread(tls_socket, client_address)

    def shutdown_request(self, request: Any) -> None:
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client's request failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    limits: ClassVar[TopicLimits]
    timeout = _CLIENT_SECONDS
    server_version, sys_version = "tidemill", ""

    def do_POST(self) -> None:
        code, body = self._answer()
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _answer(self) -> tuple[int, dict[str, Any]]:
        if self.path.partition("?")[0] != PATH:
            return 404, {"detail": f"{self.path} does not exist; use {PATH}"}
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MAX_BYTES:
            return 413, {"detail": f"send a body of at most {_MAX_BYTES} bytes, with its length"}
        try:
            admission_review = json.loads(self.rfile.read(int(length)))
            response = review(admission_review["request"], self.limits)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return 400, {"detail": f"not an AdmissionReview: {type(error).__name__}"}
        return 200, {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}

    def log_message(self, format: str, *args: Any) -> None:
        """Suppress the log line of each request."""
