"""Configures the machine's network for the cluster: bridge, address, routes, packet filter and forwarding.

No packet leaves the machine, and none from outside reaches the cluster. The bridge's alias is the cluster's folder.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
from pathlib import Path

from kube.local import layout
from kube.local.layout import BRIDGE, Layout

_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
# The network plugin names a pod's link to the host: veth and some digits.
_RULES = f"""
table ip {layout.NFT_TABLE} {{
  chain arriving {{
    type filter hook prerouting priority raw; policy accept;
    ip daddr {layout.WHOLE_RANGE} iifname != "lo" iifname != "{BRIDGE}" iifname != "veth*" drop
  }}
  chain forwarded {{
    type filter hook forward priority filter - 10; policy accept;
    ip saddr {layout.POD_RANGE} ip daddr != {layout.POD_RANGE} reject with icmp type admin-prohibited
  }}
}}
"""
_OURS = (("ip", layout.NFT_TABLE), ("ip", "kube-proxy"), ("ip6", "kube-proxy"))


class NetworkError(RuntimeError):
    """The machine's network cannot be set up. The message contains the reason."""


def owner() -> Path | None:
    """Return the folder of the cluster on this machine, or None if there is no cluster."""
    if shutil.which("ip") is None:  # `up` installs this program, so it has never run here.
        return None
    output = subprocess.run(["ip", "-json", "link", "show", BRIDGE], capture_output=True, text=True, check=False)
    if output.returncode != 0:
        return None
    return Path(json.loads(output.stdout)[0].get("ifalias", "/"))


def set_up(place: Layout) -> None:
    """Create the missing objects of the network.

    Raises:
        NetworkError: Another cluster is on this machine, or the system refuses the change.
    """
    present = owner()
    if present is None:
        _run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        _run(["ip", "link", "set", BRIDGE, "alias", str(place.folder), "up"])
    elif present != place.folder:
        raise NetworkError(
            f"the cluster in {present} uses this machine; remove it with `hack/cluster down --dir {present}`"
        )
    _run(["ip", "address", "replace", f"{layout.NODE_ADDRESS}/32", "dev", BRIDGE])
    # Packets that kube-proxy does not forward end at the bridge, and do not reach the machine's router.
    _run(["ip", "route", "replace", layout.WHOLE_RANGE, "dev", BRIDGE, "src", layout.NODE_ADDRESS])
    _run(["nft", "-f", "-"], text=f"table ip {layout.NFT_TABLE}\ndelete table ip {layout.NFT_TABLE}\n{_RULES}")
    forward("1")


def tear_down(place: Layout) -> None:
    """Remove all objects of this cluster's network."""
    if owner() == place.folder:
        for family, table in _OURS:
            _try(["nft", "delete", "table", family, table])
        for link in links_to_pods():
            _try(["ip", "link", "delete", link])
        _try(["ip", "link", "delete", BRIDGE])


def links_to_pods() -> list[str]:
    """Return the host's ends of links to pods.

    A link outlives its pod while the kernel still tries to end connections, about a minute. The link's route would
    take the packets of a later cluster's pod with the same address.
    """
    output = subprocess.run(["ip", "-json", "-4", "address"], capture_output=True, text=True, check=True)
    pods = ipaddress.ip_network(layout.POD_RANGE)
    return [
        link["ifname"]
        for link in json.loads(output.stdout)
        if link["ifname"].startswith("veth")
        and any(ipaddress.ip_address(address["local"]) in pods for address in link["addr_info"])
    ]


def has_table(name: str) -> bool:
    """Return whether the packet filter has an IPv4 table of that name."""
    return subprocess.run(["nft", "list", "table", "ip", name], capture_output=True, check=False).returncode == 0


def drop_table(name: str) -> None:
    """Remove an IPv4 table, if it is there."""
    _try(["nft", "delete", "table", "ip", name])


def forwards() -> str:
    """Return 1 if the machine forwards packets, otherwise 0."""
    return _FORWARDING.read_text().strip()


def forward(setting: str) -> None:
    """Set whether the machine forwards packets: 1 or 0."""
    if forwards() != setting:
        _FORWARDING.write_text(setting)


def _run(command: list[str], *, text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(command)} failed: {done.stderr.strip()}")


def _try(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, check=False)
