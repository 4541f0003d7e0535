"""Cases of edits of the fields that define how the workloads of a pipeline run."""

from __future__ import annotations

from typing import Any

from spec_edits.edits import (
    API,
    IN_IMAGE,
    INGEST,
    OWN_API,
    PROCESSOR,
    RESTART,
    SCALE,
    STAGE,
    STAGED,
    Case,
    Document,
    invalid,
    put,
)


def scaled(spec: Document) -> None:
    spec["processor"] = {"scaling": {"minReplicas": 2}}


def scaling(member: str, value: Any, *changed: str) -> Case:
    """Return the case of an edit of the scaling of processors."""
    return Case(put(f"processor.scaling.{member}", value), changed, before=scaled)


with_stage = put("transform.python", STAGED)


def staged(member: str, value: Any) -> Case:
    """Return the case of an edit of the Python stage, which changes no other workload."""
    return Case(put(f"transform.python.{member}", value), (STAGE,), before=with_stage)


with_scaled_stage = put("transform.python", {**STAGED, "scaling": {}})


def stage_scaling(member: str, value: Any, *changed: str) -> Case:
    """Return the case of an edit of the scaling of the Python stage."""
    return Case(put(f"transform.python.scaling.{member}", value), changed, before=with_scaled_stage)


WORKLOAD_CASES: dict[str, list[Case]] = {
    "suspend": [Case(put("suspend", True), (SCALE,))],
    "reclaimPolicy": [Case(put("reclaimPolicy", "Delete"))],
    "transform.python.configMap": [
        staged("configMap", "cleaning"),
        Case(put("transform.python", STAGED), refused="spec.transform.python: was added", changes=None),
        Case(put("transform.python", None), None, "spec.transform.python: was taken out", before=with_stage),
        invalid("transform.python", {**STAGED, "image": "shop:1"}, "spec.transform.python.configMap: the file must be"),
    ],
    "transform.python.image": [
        Case(
            put("transform.python.image", "registry.example/shop:2"),
            (STAGE,),
            before=put("transform.python", {**IN_IMAGE, "image": "registry.example/shop:1"}),
        )
    ],
    "transform.python.file": [
        staged("file", "cleaning.py"),
        invalid(
            "transform.python", {**STAGED, "file": "a/b.py"}, "spec.transform.python.file: the keys of a ConfigMap"
        ),
    ],
    "transform.python.function": [staged("function", "clean")],
    "transform.python.timeout": [
        staged("timeout", "1m"),
        invalid("transform.python", {**STAGED, "timeout": "11m"}, "spec.transform.python.timeout: the timeout must be"),
    ],
    "transform.python.replicas": [
        staged("replicas", 3),
        invalid("transform.python", {**STAGED, "replicas": 4}, "spec.transform.python.replicas: is more than the"),
    ],
    "transform.python.scaling.mode": [stage_scaling("mode", "external", STAGE)],
    "transform.python.scaling.minReplicas": [stage_scaling("minReplicas", 3, STAGE)],
    "transform.python.scaling.maxReplicas": [
        stage_scaling("maxReplicas", 2),
        invalid(
            "transform.python",
            {**STAGED, "scaling": {"maxReplicas": 4}},
            "spec.transform.python.scaling.maxReplicas: is more than the",
        ),
    ],
    "transform.python.scaling.lagThreshold": [stage_scaling("lagThreshold", 5000)],
    "transform.python.scaling.target.freshness": [stage_scaling("target", {"freshness": "30s"})],
    "transform.python.scaling.catchUp": [stage_scaling("catchUp", "1m")],
    "transform.python.scaling.targetUtilization": [stage_scaling("targetUtilization", 80)],
    "transform.python.scaling.scaleUpCooldown": [stage_scaling("scaleUpCooldown", "2m")],
    "transform.python.scaling.scaleDownStabilization": [stage_scaling("scaleDownStabilization", "20m")],
    "transform.python.scaling.maxStepUp": [stage_scaling("maxStepUp", 1)],
    "transform.python.scaling.maxStepDown": [stage_scaling("maxStepDown", 1)],
    "transform.python.scaling.pollInterval": [stage_scaling("pollInterval", "20s")],
    "transform.python.scaling.lookback": [stage_scaling("lookback", "3m")],
    "transform.python.scaling.scaleToZeroAfter": [stage_scaling("scaleToZeroAfter", "1h")],
    "transform.python.scaling.dryRun": [stage_scaling("dryRun", True)],
    "transform.python.resources.requests.cpu": [staged("resources.requests.cpu", "500m")],
    "transform.python.resources.requests.memory": [staged("resources.requests.memory", "512Mi")],
    "transform.python.resources.limits.cpu": [staged("resources.limits.cpu", "1")],
    "transform.python.resources.limits.memory": [staged("resources.limits.memory", "1Gi")],
    "processor.flushInterval": [Case(put("processor.flushInterval", "1s"), (RESTART,))],
    "processor.replicas": [
        Case(put("processor.replicas", 3), (SCALE,)),
        invalid("processor.replicas", 4, "spec.processor.replicas: is more than the topic's 3 partitions"),
    ],
    "processor.scaling.mode": [scaling("mode", "external", PROCESSOR)],
    "processor.scaling.minReplicas": [scaling("minReplicas", 3, SCALE)],
    "processor.scaling.maxReplicas": [
        scaling("maxReplicas", 2),
        invalid("processor.scaling.maxReplicas", 4, "spec.processor.scaling.maxReplicas: ", before=scaled),
    ],
    "processor.scaling.lagThreshold": [scaling("lagThreshold", 5000)],
    "processor.scaling.target.freshness": [scaling("target", {"freshness": "30s"})],
    "processor.scaling.catchUp": [scaling("catchUp", "1m")],
    "processor.scaling.targetUtilization": [
        scaling("targetUtilization", 80),
        invalid("processor.scaling.targetUtilization", 90, "spec.processor.scaling.targetUtilization: ", before=scaled),
    ],
    "processor.scaling.scaleUpCooldown": [scaling("scaleUpCooldown", "2m")],
    "processor.scaling.scaleDownStabilization": [scaling("scaleDownStabilization", "20m")],
    "processor.scaling.maxStepUp": [scaling("maxStepUp", 1)],
    "processor.scaling.maxStepDown": [scaling("maxStepDown", 1)],
    "processor.scaling.pollInterval": [scaling("pollInterval", "20s")],
    "processor.scaling.lookback": [scaling("lookback", "3m")],
    "processor.scaling.scaleToZeroAfter": [scaling("scaleToZeroAfter", "1h")],
    "processor.scaling.dryRun": [scaling("dryRun", True)],
    "processor.resources.requests.cpu": [Case(put("processor.resources.requests.cpu", "500m"), (PROCESSOR,))],
    "processor.resources.requests.memory": [Case(put("processor.resources.requests.memory", "512Mi"), (PROCESSOR,))],
    "processor.resources.limits.cpu": [Case(put("processor.resources.limits.cpu", "1"), (PROCESSOR,))],
    "processor.resources.limits.memory": [Case(put("processor.resources.limits.memory", "1Gi"), (PROCESSOR,))],
    "ingest.enabled": [Case(put("ingest.enabled", False), (f"remove {INGEST}",))],
    "api.enabled": [Case(put("api.enabled", False), (f"remove {API}",))],
    "api.dedicated": [Case(put("api.dedicated", True), (f"create {OWN_API}", f"remove {API}"))],
    "api.cacheTtl": [Case(put("api.cacheTtl", "1m"))],
    "auth.required": [Case(put("auth.required", True))],
}
