"""Checks whether a program of the cluster answers."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from kube.pki import Pair

_SECONDS = 3.0


def answers(url: str, *, trust: Path | None = None, client: Pair | None = None) -> bool:
    """Return whether a GET request succeeds.

    Args:
        url: The URL, which begins with http or https.
        trust: The certificate of the authority that signed the server's certificate, or None for plain HTTP.
        client: The client's certificate and key.
    """
    context = ssl.create_default_context(cafile=trust) if trust else ssl.create_default_context()
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    try:
        with httpx.Client(verify=context, timeout=_SECONDS, trust_env=False) as session:
            return session.get(url).is_success
    except httpx.HTTPError:
        return False
