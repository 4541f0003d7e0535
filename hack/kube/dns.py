"""Names of services: CoreDNS on the machine itself, reached by pods through a Service that points at the node."""

from __future__ import annotations

import json
import os
import signal

from kube.api import Api
from kube.layout import CLUSTER_DOMAIN, DNS_ADDRESS, NODE_ADDRESS, PORTS, Layout
from tidemill_operator.local.child import Command
from tidemill_operator.local.files import write_atomic

# Names of the cluster only: whatever else is asked for does not exist, at once.
_COREFILE = """\
.:{ports.dns} {{
    bind {address}
    errors
    health {address}:{ports.dns_health}
    ready {address}:{ports.dns_ready}
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        endpoint {api.url}
        kubeconfig {config}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
    cache 5
}}
"""
_LABELS = {"k8s-app": "kube-dns", "app.kubernetes.io/managed-by": "tidemill"}


def dns_command(place: Layout, api: Api) -> Command:
    """Run CoreDNS."""
    reader = api.authority.issue("coredns", common_name="tidemill:coredns")
    config = api.client_config("coredns", user=reader)
    text = _COREFILE.format(ports=PORTS, address=NODE_ADDRESS, domain=CLUSTER_DOMAIN, api=api, config=config)
    path = place.folder / "Corefile"
    write_atomic(path, text)
    return Command(
        "coredns",
        [str(api.programs / "coredns"), "-conf", str(path)],
        environment={"PATH": os.defpath},
        death_signal=0,
        stop_signal=signal.SIGKILL,  # it keeps nothing, and would drain for seconds
    )


def manifests() -> str:
    """What pods reach CoreDNS by, and what CoreDNS may read, as a JSON list."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": _LABELS},
        "spec": {
            "clusterIP": DNS_ADDRESS,
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": PORTS.dns},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": PORTS.dns},
            ],
        },
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns-node",
            "namespace": "kube-system",
            "labels": {**_LABELS, "kubernetes.io/service-name": "kube-dns"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": True}}],
        "ports": [
            {"name": "dns", "port": PORTS.dns, "protocol": "UDP"},
            {"name": "dns-tcp", "port": PORTS.dns, "protocol": "TCP"},
        ],
    }
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [service, endpoints, *_permissions()]})


def _permissions() -> list[dict[str, object]]:
    readable = [
        {"apiGroups": [""], "resources": ["namespaces", "services", "pods"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    authorization = "rbac.authorization.k8s.io"
    role: dict[str, object] = {
        "apiVersion": f"{authorization}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "tidemill:coredns", "labels": _LABELS},
        "rules": readable,
    }
    binding: dict[str, object] = {
        "apiVersion": f"{authorization}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "tidemill:coredns", "labels": _LABELS},
        "roleRef": {"apiGroup": authorization, "kind": "ClusterRole", "name": "tidemill:coredns"},
        "subjects": [{"apiGroup": authorization, "kind": "User", "name": "tidemill:coredns"}],
    }
    return [role, binding]
