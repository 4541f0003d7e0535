#!/usr/bin/python3
"""Starts Debian's Prometheus, which cannot discover pods because it is built without a Kubernetes client.

This program lists the pods every few seconds, and writes a file of targets with the labels of `kubernetes_sd_configs`.
Other settings and arguments are unchanged, so this image and the official image can use the same configuration.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import yaml

PROGRAM = "/usr/bin/prometheus"
TARGETS = Path("/tmp/pods.json")  # noqa: S108 - in a container
CONFIG = Path("/tmp/prometheus.yml")  # noqa: S108
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
EVERY_SECONDS = 5.0
PREFIX = "__meta_kubernetes_"


def label_name(name: str) -> str:
    """Convert the name of a label or annotation like Prometheus."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)


def targets(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a target for each container port of a pod, like Prometheus."""
    metadata, address = pod["metadata"], pod["status"].get("podIP")
    common = {
        f"{PREFIX}namespace": metadata["namespace"],
        f"{PREFIX}pod_name": metadata["name"],
        f"{PREFIX}pod_phase": pod["status"].get("phase", ""),
    }
    for kind in ("label", "annotation"):
        for name, value in (metadata.get(f"{kind}s") or {}).items():
            common[f"{PREFIX}pod_{kind}_{label_name(name)}"] = value
    groups = []
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", ()):
            number = str(port["containerPort"])
            labels = {
                f"{PREFIX}pod_container_name": container["name"],
                f"{PREFIX}pod_container_port_name": port.get("name", ""),
                f"{PREFIX}pod_container_port_number": number,
            }
            groups.append({"targets": [f"{address}:{number}"], "labels": {**common, **labels}})
    return groups if address else []


def write(path: Path, text: str) -> None:
    """Replace a file atomically."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def discover() -> None:
    """List all pods, and write their targets."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    request = urllib.request.Request(f"https://{host}:{port}/api/v1/pods?resourceVersion=0")
    request.add_header("Authorization", f"Bearer {(ACCOUNT / 'token').read_text()}")
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310
        pods = json.load(answer)["items"]
    write(TARGETS, json.dumps([target for pod in pods for target in targets(pod)]))


def translate(path: str) -> bool:
    """Write the configuration with a file in place of the discovery. Return whether a job needs discovery."""
    config = yaml.safe_load(Path(path).read_text())
    jobs = [job for job in config.get("scrape_configs", ()) if job.pop("kubernetes_sd_configs", None)]
    for job in jobs:
        job["file_sd_configs"] = [{"files": [str(TARGETS)], "refresh_interval": "30s"}]
    write(CONFIG, yaml.safe_dump(config, sort_keys=False))
    return bool(jobs)


def main() -> int:
    """Run Prometheus until it ends."""
    arguments = sys.argv[1:]
    stopping = threading.Event()
    for index, argument in enumerate(arguments):
        if argument.startswith("--config.file=") and translate(argument.partition("=")[2]):
            arguments[index] = f"--config.file={CONFIG}"
            write(TARGETS, "[]")
    process = subprocess.Popen([PROGRAM, *arguments])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: process.send_signal(received))

    def watch() -> None:
        while TARGETS.exists() and not stopping.wait(EVERY_SECONDS):
            try:
                discover()
            except (OSError, ValueError, KeyError) as error:
                print(f"pods cannot be listed: {error}", file=sys.stderr, flush=True)

    threading.Thread(target=watch, daemon=True).start()
    code = process.wait()
    stopping.set()
    return code


if __name__ == "__main__":
    sys.exit(main())
