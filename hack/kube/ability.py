"""Determines whether a cluster can run on this machine."""

from __future__ import annotations

from kube import kind
from kube.local import cluster


def why_not(provider: str) -> str:
    """Return why no cluster can run on this machine, or an empty text if one can.

    Args:
        provider: kind, local, or auto for either.
    """
    reasons = []
    if provider in ("auto", "kind"):
        reasons.append(kind.why_not())
    if provider in ("auto", "local"):
        reasons.append(cluster.why_not())
    return "" if "" in reasons else "; ".join(reasons)
