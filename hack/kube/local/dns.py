"""Configures CoreDNS, which runs on the machine; pods reach it through a Service."""

from __future__ import annotations

import os
import signal

from kube.api import Api
from kube.local.layout import CLUSTER_DOMAIN, DNS_ADDRESS, NODE_ADDRESS, PORTS, Layout
from kube.local.rbac import LABELS, may_watch
from tidemill_operator.processes.child import Command
from tidemill_operator.processes.files import write_atomic

# Resolves only names of the cluster. CoreDNS answers all other queries with NXDOMAIN at once.
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
_USER = "tidemill:coredns"
_LABELS = {"k8s-app": "kube-dns", **LABELS}


def dns_command(place: Layout, api: Api) -> Command:
    """Return the command of CoreDNS."""
    reader = api.authority.issue("coredns", common_name=_USER)
    config = api.client_config("coredns", user=reader)
    text = _COREFILE.format(ports=PORTS, address=NODE_ADDRESS, domain=CLUSTER_DOMAIN, api=api, config=config)
    path = place.folder / "Corefile"
    write_atomic(path, text)
    return Command(
        "coredns",
        [str(api.programs / "coredns"), "-conf", str(path)],
        environment={"PATH": os.defpath},
        death_signal=0,
        stop_signal=signal.SIGKILL,  # CoreDNS stores nothing, and SIGTERM would drain it for seconds.
    )


def manifests() -> list[dict[str, object]]:
    """Return the manifests of the Service for CoreDNS, and of CoreDNS's rights."""
    service: dict[str, object] = {
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
    endpoints: dict[str, object] = {
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
    resources = {"": ["namespaces", "services", "pods"], "discovery.k8s.io": ["endpointslices"]}
    return [service, endpoints, *may_watch(_USER, resources, verbs=["list", "watch"])]
