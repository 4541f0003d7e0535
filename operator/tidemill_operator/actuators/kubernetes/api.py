"""A thread-safe Kubernetes client that reads and writes objects as dicts, with a timeout for every call."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.connect import strimzi
from tidemill_operator.plan.render import object_metadata

Document = dict[str, Any]
Documents = list[Document]
FIELD_MANAGER = "tidemill"
_SECONDS = 10.0
_PAGE = 500
_NAMESPACE_TERMINATING = "NamespaceTerminating"
_APPLY, _MERGE, _JSON = "application/apply-patch+yaml", "application/merge-patch+json", "application/json"
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


@dataclass(frozen=True)
class Kind:
    """A kind of object, with its API group and path."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True


DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
SERVICE = Kind("v1", "Service", "services")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
SECRET = Kind("v1", "Secret", "secrets")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
INGRESS = Kind("networking.k8s.io/v1", "Ingress", "ingresses")
PIPELINE = Kind("tidemill.dev/v1alpha1", "AnalyticsPipeline", "analyticspipelines")
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("v1", "Event", "events")
KAFKA_CONNECTOR = Kind(strimzi.API_VERSION, strimzi.KIND, strimzi.PLURAL)
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
# Mutating webhooks come first, because the API server calls mutating webhooks before validating webhooks.
WEBHOOKS = tuple(
    Kind("admissionregistration.k8s.io/v1", kind, f"{kind.lower()}s", namespaced=False)
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
)
KINDS = {
    kind.kind: kind
    for kind in (
        DEPLOYMENT,
        SERVICE,
        CONFIG_MAP,
        SECRET,
        SERVICE_ACCOUNT,
        DISRUPTION_BUDGET,
        NETWORK_POLICY,
        INGRESS,
        PIPELINE,
        POD,
        EVENT,
        LEASE,
        KAFKA_CONNECTOR,
        *WEBHOOKS,
    )
}


class NotFound(TidemillError):
    """The object does not exist."""


class Conflict(TidemillError):
    """The object has changed since it was read."""


class Terminating(TidemillError):
    """The namespace is being deleted, so no object can be created."""


class Api:
    """The API of one cluster."""

    def __init__(self, configuration: client.Configuration | None = None, *, timeout_seconds: float = _SECONDS) -> None:
        self.configuration = configuration or load_configuration()
        self.configuration.retries = False  # the operator's queue retries, with a delay
        self._client = client.ApiClient(self.configuration)
        self._timeout = timeout_seconds

    def get(self, kind: Kind, namespace: str | None, name: str, *, uncached: bool = False) -> Document | None:
        """Return an object, or None if it does not exist. `uncached` bypasses the cache.

        Raises:
            TidemillError: the API does not answer, or refuses the request.
        """
        try:
            return self._call("GET", _path(kind, namespace, name))
        except NotFound:
            return None

    def list(
        self, kind: Kind, namespace: str | None = None, *, selector: str = "", metadata_only: bool = False
    ) -> list[Document]:
        """Return the objects of a kind in one namespace, or in all namespaces.

        Raises:
            TidemillError: the API does not answer, or refuses the request.
        """
        return self._pages(kind, namespace, selector=selector, metadata_only=metadata_only)[0]

    def _pages(self, kind: Kind, namespace: str | None, *, selector: str, metadata_only: bool) -> tuple[Documents, str]:
        documents: list[Document] = []
        query = {"limit": str(_PAGE), **({"labelSelector": selector} if selector else {})}
        accept = _METADATA_ONLY if metadata_only else _JSON
        while True:
            page = self._call("GET", _path(kind, namespace), query=query, accept=accept)
            # The API server leaves out kind and apiVersion in the items of a list.
            type_meta = {} if metadata_only else {"apiVersion": kind.api_version, "kind": kind.kind}
            documents += [{**type_meta, **item} for item in page.get("items") or ()]
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return documents, str(metadata.get("resourceVersion", ""))
            query["continue"] = metadata["continue"]

    def get_maybe_cached(self, kind: Kind, namespace: str, name: str) -> Document | None:
        """Return an object, or None if it does not exist. A subclass may use a cache.

        Raises:
            TidemillError: the API does not answer, or refuses the request.
        """
        return self.get(kind, namespace, name)

    def list_owned(self, kind: Kind, namespace: str, uids: Sequence[str]) -> Sequence[Document]:
        """Return the objects in a namespace that carry one of the owner UIDs as a label.

        Raises:
            TidemillError: the API does not answer, or refuses the request.
        """
        return self.list(kind, namespace, selector=f"{object_metadata.OWNER_UID} in ({','.join(uids)})")

    def names_by_uid(self, namespace: str, *, uncached: bool = False) -> dict[str, str]:
        """Return the names of a namespace's pipelines by UID. `uncached` bypasses the cache.

        Raises:
            TidemillError: the API does not answer, or refuses the request.
        """
        pipelines = self.list(PIPELINE, namespace, metadata_only=True)
        return {item["metadata"]["uid"]: item["metadata"]["name"] for item in pipelines}

    def create(self, body: Document) -> Document:
        """Create an object.

        Raises:
            Conflict: the object already exists.
            TidemillError: the API does not answer, or refuses the request.
        """
        path = _path(_kind(body), body["metadata"].get("namespace"))
        return self._call("POST", path, body=body, query={"fieldManager": FIELD_MANAGER})

    def apply(self, body: Document, *, subresource: str = "", manager: str = FIELD_MANAGER) -> Document:
        """Apply an object server-side, and take over fields of other managers.

        Raises:
            Conflict: the given `resourceVersion` or `uid` differs from the live object.
        """
        query = {"fieldManager": manager, "force": "true"}
        return self._call("PATCH", _object_path(body, subresource), body=body, query=query, content=_APPLY)

    def replace(self, body: Document) -> Document:
        """Replace a whole object, including `metadata.resourceVersion`.

        Raises:
            Conflict: the object has changed since it was read.
        """
        return self._call("PUT", _object_path(body), body=body, query={"fieldManager": FIELD_MANAGER})

    def merge(self, kind: Kind, namespace: str | None, name: str, patch: Mapping[str, Any]) -> Document:
        """Change some fields of an object with a merge patch.

        Raises:
            Conflict: the given `resourceVersion` differs from the live object.
        """
        query = {"fieldManager": FIELD_MANAGER}
        return self._call("PATCH", _path(kind, namespace, name), body=patch, query=query, content=_MERGE)

    def delete(self, kind: Kind, namespace: str | None, name: str, *, uid: str = "") -> bool:
        """Delete an object and its dependents, and return whether the object existed.

        Raises:
            TidemillError: the API does not answer, or refuses the request.
        """
        body: Document = {"propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            self._call("DELETE", _path(kind, namespace, name), body=body)
        except NotFound:
            return False
        return True

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content: str = _JSON,
        accept: str = _JSON,
    ) -> Document:
        url = f"{self.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": accept, "User-Agent": "tidemill-operator"}
        token = self.configuration.get_api_key_with_prefix("BearerToken")
        if token:
            headers["Authorization"] = token
        text = None if body is None else json.dumps(body)
        try:
            answer = self._client.rest_client.pool_manager.request(
                method,
                url,
                body=text,
                headers={**headers, **({"Content-Type": content} if text else {})},
                timeout=urllib3.Timeout(total=self._timeout),
                retries=False,
            )
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise TidemillError(
                Reason.UNREACHABLE,
                f"{method} {path}: the Kubernetes API does not answer within {self._timeout:g} s"
                f" ({type(error).__name__})",
            ) from error
        if answer.status >= 400:
            raise _response_error(f"{method} {path}", answer.status, answer.data)
        return dict(json.loads(answer.data))


def load_configuration(environ: Mapping[str, str] = os.environ) -> client.Configuration:
    """Return the API's address and credentials, from the pod's service account or from the file in KUBECONFIG.

    Raises:
        TidemillError: there is neither a service account nor a file in KUBECONFIG.
    """
    configuration = client.Configuration()
    try:
        if environ.get("KUBERNETES_SERVICE_HOST") and not environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            path = environ.get("KUBECONFIG") or None
            config.load_kube_config(path, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise TidemillError(
            Reason.UNREACHABLE, f"no Kubernetes cluster is configured: {error}", "run in a pod, or set KUBECONFIG"
        ) from error
    return configuration


def _kind(body: Mapping[str, Any]) -> Kind:
    return KINDS[body["kind"]]


def _object_path(body: Mapping[str, Any], subresource: str = "") -> str:
    metadata = body["metadata"]
    return _path(_kind(body), metadata.get("namespace"), metadata["name"], subresource)


def _path(kind: Kind, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
    root = "/apis/" if "/" in kind.api_version else "/api/"
    parts = [root + kind.api_version]
    if kind.namespaced and namespace:
        parts.append(f"namespaces/{namespace}")
    parts += [part for part in (kind.plural, name, subresource) if part]
    return "/".join(parts)


def _response_error(doing: str, code: int, data: bytes) -> TidemillError:
    try:
        status = json.loads(data)
        message = str(status.get("message") or "")
        causes = [cause.get("reason") for cause in (status.get("details") or {}).get("causes") or ()]
    except (ValueError, AttributeError):
        message, causes = data[:200].decode(errors="replace"), []
    text = f"{doing}: {message or 'no reason given'} ({code})"
    if code == 404:
        return NotFound(Reason.REFUSED, text)
    if code == 409:
        return Conflict(Reason.WAITING, text)
    if code == 403 and _NAMESPACE_TERMINATING in causes:
        return Terminating(Reason.WAITING, text)
    if code == 429 or code >= 500:
        return TidemillError(Reason.UNREACHABLE, text)
    remedy = "grant the operator this permission; the chart's roles include it" if code in (401, 403) else ""
    return TidemillError(Reason.REFUSED, text, remedy)
