"""Values files of the Helm charts, and functions that find parts of rendered manifests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
DEV, CI, PROD = (ROOT / "helm" / name / "values.yaml" for name in ("dev", "ci", "prod"))


def pod_templates(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return each pod and pod template, with the name of its object."""
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["metadata"]["name"], manifest
        elif manifest["kind"] == "CronJob":
            yield manifest["metadata"]["name"], manifest["spec"]["jobTemplate"]["spec"]["template"]
        elif "template" in manifest.get("spec", {}):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]


def containers(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return each container, also init containers, with its name as `object/container`."""
    for name, template in pod_templates(manifests):
        for container in [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]:
            yield f"{name}/{container['name']}", container


def of_kind(manifests: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the manifests of a kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def operator_container(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the container of the operator, from the manifests of the chart `tidemill`."""
    return next(d for d in of_kind(manifests, "Deployment"))["spec"]["template"]["spec"]["containers"][0]  # type: ignore[no-any-return]
