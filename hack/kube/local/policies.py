"""The command and rights of kube-netpol, which enforces NetworkPolicies, and the removal of its rules."""

from __future__ import annotations

import re
import subprocess

from kube.api import SERVICE_RANGE, Api, to_arguments
from kube.local.layout import NODE_ADDRESS, NODE_NAME, PORTS
from kube.local.node import program
from kube.local.rbac import may_watch
from tidemill_operator.processes.child import Command

_USER = "tidemill:network-policies"
# Names that kube-router's controller gives its chains and sets.
_CHAIN = re.compile(r"KUBE-(?:ROUTER|NWPLCY|POD-FW)-\S+")
_SET = re.compile(r"KUBE-(?:SRC|DST)-\S+")


def policies_command(api: Api) -> Command:
    """Return the command of kube-netpol, which contains kube-router's controller."""
    user = api.authority.issue("kube-netpol", common_name=_USER)
    flags = {
        "kubeconfig": api.client_config("kube-netpol", user=user),
        "node": NODE_NAME,
        "service-cluster-ip-range": SERVICE_RANGE,
        "healthz-bind-address": f"{NODE_ADDRESS}:{PORTS.policies_health}",
    }
    return program("kube-netpol", [str(api.programs / "kube-netpol"), *to_arguments(flags)])


def permissions() -> list[dict[str, object]]:
    """Return the manifests of kube-netpol's rights."""
    resources = {"": ["nodes", "pods", "namespaces"], "networking.k8s.io": ["networkpolicies"]}
    return may_watch(_USER, resources, verbs=["get", "list", "watch"])


def remove_rules() -> None:
    """Remove the rules and sets that remain after the end of kube-netpol."""
    saved = _output(["iptables-save", "-t", "filter"]).splitlines()
    chains = [line[1:].split()[0] for line in saved if line.startswith(":")]
    ours = [name for name in chains if _CHAIN.fullmatch(name)]
    jumps = [line for line in saved if line.startswith("-A") and line.split()[1] not in ours]
    lines = [f"-D{line[2:]}" for line in jumps if any(f"-j {name}" in line for name in ours)]
    lines += [f"-F {name}" for name in ours] + [f"-X {name}" for name in ours]
    if ours:
        text = "\n".join(["*filter", *lines, "COMMIT", ""])
        subprocess.run(["iptables-restore", "--noflush"], input=text, capture_output=True, text=True, check=True)
    for name in _output(["ipset", "list", "-name"]).split():
        if _SET.fullmatch(name):
            subprocess.run(["ipset", "destroy", name], capture_output=True, check=False)


def rules() -> list[str]:
    """Return all rules of the table `filter`, including those of other programs."""
    return [line for line in _output(["iptables-save", "-t", "filter"]).splitlines() if line.startswith("-A")]


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:  # The program was never installed, so there are no rules.
        return ""
