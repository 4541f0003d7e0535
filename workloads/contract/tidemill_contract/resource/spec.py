"""The model of the AnalyticsPipeline resource, from which the CRD is generated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tidemill_contract.duration import Duration
from tidemill_contract.functions.base import Expression as Expression
from tidemill_contract.functions.base import FieldType as FieldType
from tidemill_contract.functions.base import Name as Name
from tidemill_contract.resource.amounts import Bytes
from tidemill_contract.resource.kinds.base import Model
from tidemill_contract.resource.kinds.detectors import DETECTORS, AutoDetector, DetectorSpec
from tidemill_contract.resource.kinds.metrics import METRICS, MetricSpec
from tidemill_contract.resource.kinds.windows import WINDOWS, Window
from tidemill_contract.resource.lookups.model import LookupSpec
from tidemill_contract.resource.source import SourceSpec

API_VERSION = "tidemill.dev/v1alpha1"
KIND = "AnalyticsPipeline"

ScaledComponent = Literal["processor", "stage"]
"""The components that can be scaled automatically."""

ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$", max_length=253)]


class DeriveSpec(Model):
    """A computed field."""

    name: Name = Field(description="Name of the new field.")
    expression: Expression = Field(description="SQL expression over the event's fields and earlier derives.")


class ResourceAmounts(Model):
    """Amounts of CPU and memory, written as in Kubernetes."""

    cpu: Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?m?$", max_length=16)] | None = Field(
        None, description="CPU cores, such as 500m."
    )
    memory: Bytes | None = Field(None, description="Bytes, such as 512Mi.")


class ResourcesSpec(Model):
    """Requests and limits of a process."""

    requests: ResourceAmounts | None = Field(None, description="Amounts that Kubernetes reserves.")
    limits: ResourceAmounts | None = Field(None, description="Maximum amounts that a process may use.")


class ScalingTargetSpec(Model):
    """A target for scaling by freshness."""

    freshness: Duration = Field(
        description="Maximum time from the arrival of an event in Kafka to the commit of its result."
    )


class ScalingSpec(Model):
    """The settings for automatic scaling."""

    mode: Literal["lag", "external"] = Field(
        "lag", description="lag: Tidemill scales by consumer lag. external: an HPA or KEDA scales."
    )
    min_replicas: int = Field(
        1,
        ge=0,
        le=1024,
        description="Minimum number of replicas. scaleToZeroAfter can stop all replicas while no events arrive.",
    )
    max_replicas: int | None = Field(
        None, ge=1, le=1024, description="Maximum number of replicas. Default: one per partition."
    )
    lag_threshold: int = Field(
        100_000,
        ge=1,
        le=10**12,
        description="Number of unprocessed events per replica. A larger lag needs more replicas.",
    )
    target: ScalingTargetSpec | None = Field(
        None, description="Target freshness, in place of lag. If target is set, lagThreshold is ignored."
    )
    catch_up: Duration = Field("5m", description="Time within which the replicas should process the lag.")
    target_utilization: int = Field(
        70,
        ge=30,
        le=80,
        description="Target load of a replica in percent of its capacity. If the load reaches 15 percentage points"
        " above the target, replicas are added.",
    )
    scale_up_cooldown: Duration = Field(
        "90s", description="Time after a change of the number of replicas, during which no replicas are added."
    )
    scale_down_stabilization: Duration = Field(
        "10m",
        description="Replicas are removed only if they were not needed for this time. A small reduction waits longer"
        " than a large reduction.",
    )
    max_step_up: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Maximum number of replicas added at once. Default: the number of running replicas, but at least"
        " four.",
    )
    max_step_down: int | None = Field(
        None, ge=1, le=1024, description="Maximum number of replicas removed at once. Default: no limit."
    )
    poll_interval: Duration = Field("15s", description="Interval between decisions on the number of replicas.")
    lookback: Duration = Field("2m", description="Period for measuring the arrival rate and the speed of a replica.")
    scale_to_zero_after: Duration | None = Field(
        None, description="Stop all replicas when no event has arrived for this long. Default: never."
    )
    dry_run: bool = Field(False, description="True: decisions are only reported, not carried out.")


class PythonSpec(Model):
    """A user's Python function, which runs in separate processes between the source topic and the processors."""

    config_map: ObjectName | None = Field(
        None, description="ConfigMap in the pipeline's namespace that contains the file. Set either configMap or image."
    )
    image: Annotated[str, StringConstraints(pattern=r"^[^\s]+$", max_length=512)] | None = Field(
        None, description="Image that contains the file, built from the processor's image."
    )
    file: Annotated[str, StringConstraints(pattern=r"^/?[A-Za-z0-9._/-]+\.py$", max_length=253)] = Field(
        description="File with the function: a key of the ConfigMap or a path in the image. Examples: enrich.py,"
        " /app/enrich.py."
    )
    function: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=63)] = Field(
        description="Function with an event (dict) as its argument. The function returns an event, a list of events,"
        " or None to drop the event."
    )
    timeout: Duration = Field(
        "30s",
        description="Timeout of each function call and of the file's import, from 1s to 10m. After a timeout,"
        " the process is replaced. After three timeouts, the event becomes a dead letter.",
    )
    replicas: int = Field(
        1,
        ge=1,
        le=1024,
        description="Number of processes, at most one for each partition. Ignored if the stage is scaled"
        " automatically.",
    )
    scaling: ScalingSpec | None = Field(
        None,
        description="Automatic scaling by the lag of the stage. Default: the settings of processor.scaling, if"
        " processor.scaling.mode is lag. Without scaling, replicas sets the number of processes.",
    )
    resources: ResourcesSpec = Field(
        default_factory=lambda: ResourcesSpec(), description="Requests and limits of a process."
    )


class TransformSpec(Model):
    """Computed fields and a filter, applied before aggregation."""

    python: PythonSpec | None = Field(
        None, description="Python function that is called with each event before its fields are read. Default: none."
    )
    derive: list[DeriveSpec] = Field(default_factory=list, max_length=32, description="Computed fields, in order.")
    filter: Expression | None = Field(
        None,
        description="SQL condition. Events that do not fulfil the condition are left out, and counted as filtered.",
    )


class AggregationSpec(Model):
    """An aggregation, which computes metrics for each group and window."""

    name: Name = Field(description="Name of the aggregation.")
    group_by: list[Name] = Field(
        default_factory=list, max_length=8, description="Columns to group events by. Default: one group."
    )
    window: Annotated[Window, WINDOWS] = Field(description="The window.")
    late_policy: Literal["deadLetter", "drop", "reopen"] = Field(
        "deadLetter", description="What happens to an event whose window is already closed."
    )
    metrics: list[Annotated[MetricSpec, METRICS]] = Field(min_length=1, max_length=32, description="The metrics.")
    retention: Duration = Field("90d", description="How long windows are kept, counted back from the watermark.")


class AnomalySpec(Model):
    """A detector on a metric of closed windows, or on a field of single events."""

    name: Name = Field(description="Name of the rule.")
    aggregation: Name | None = Field(
        None, description="Aggregation that the metric belongs to. Not allowed with field."
    )
    metric: Name | None = Field(None, description="Metric that the rule watches. Set either metric or field.")
    field: Name | None = Field(None, description="Field or derived field that the rule watches in single events.")
    group_by: list[Name] = Field(
        default_factory=list,
        max_length=8,
        description="Only with field: columns to group events by. Each group is judged separately. Default: one group.",
    )
    detector: Annotated[DetectorSpec, DETECTORS] = Field(
        default_factory=AutoDetector, description="The detector and its settings."
    )

    @property
    def watched(self) -> str:
        """The metric or the field that the rule watches."""
        return self.metric or self.field or ""


class EventsSpec(Model):
    """The settings for storing raw events."""

    store: bool = Field(False, description="True: raw events are stored and can be queried.")
    retention: Duration = Field("7d", description="How long raw events are kept, counted back from the watermark.")


class DeadLettersSpec(Model):
    """The settings for storing refused events."""

    retention: Duration = Field("7d", description="How long dead letters are kept in Postgres, by the wall clock.")
    quota: Bytes = Field(
        "1Gi", description="Maximum size of dead letters in Postgres. Further dead letters are only counted."
    )


class AnomalyHistorySpec(Model):
    """The settings for storing anomalies."""

    retention: Duration = Field("90d", description="How long anomalies are kept in Postgres, by the wall clock.")
    quota: Bytes = Field(
        "1Gi", description="Maximum size of anomalies in Postgres. Further anomalies are only counted."
    )


class ResultsSpec(Model):
    """The settings for publishing closed windows."""

    publish: bool = Field(True, description="True: closed windows are published to the results topic.")


class ProcessorSpec(Model):
    """The settings of processors."""

    flush_interval: Duration = Field("500ms", description="Maximum time between two commits of results.")
    replicas: int = Field(1, ge=0, le=1024, description="Number of processors. Ignored if scaling is set.")
    scaling: ScalingSpec | None = Field(
        None, description="Automatic scaling. Without scaling, the number of processors is the value of replicas."
    )
    resources: ResourcesSpec = Field(default_factory=lambda: ResourcesSpec(), description="Requests and limits.")


class IngestSpec(Model):
    """The HTTP service that accepts events."""

    enabled: bool = Field(True, description="True: events are accepted over HTTP.")


class ApiSpec(Model):
    """The query service."""

    enabled: bool = Field(True, description="True: queries are served.")
    dedicated: bool = Field(False, description="True: the pipeline has a separate query service.")
    cache_ttl: Duration = Field("5s", description="Maximum age of a cached result that contains open windows.")


class AuthSpec(Model):
    """Access to the services by API keys."""

    required: bool | None = Field(
        None, description="True: requests need an API key. Default: true in a cluster, false in the local runtime."
    )


class PipelineSpec(Model):
    """The desired state of a pipeline."""

    suspend: bool = Field(False, description="True: no processors run. Data and topics are kept.")
    reclaim_policy: Literal["Retain", "Delete"] = Field(
        "Retain", description="What happens to topics and the Postgres schema when the resource is deleted."
    )
    source: SourceSpec = Field(description="Source of the events.")
    lookups: list[LookupSpec] | None = Field(
        None, max_length=8, description="Reference data that is joined to events before the transform, in order."
    )
    transform: TransformSpec = Field(default_factory=lambda: TransformSpec(), description="Filter and computed fields.")
    aggregations: list[AggregationSpec] = Field(min_length=1, max_length=16, description="Aggregations to compute.")
    anomalies: list[AnomalySpec] = Field(default_factory=list, max_length=32, description="Anomaly rules.")
    events: EventsSpec = Field(default_factory=lambda: EventsSpec(), description="Storing raw events.")
    dead_letters: DeadLettersSpec = Field(default_factory=lambda: DeadLettersSpec(), description="Refused events.")
    anomaly_history: AnomalyHistorySpec = Field(default_factory=lambda: AnomalyHistorySpec(), description="Anomalies.")
    results: ResultsSpec = Field(default_factory=lambda: ResultsSpec(), description="Publishing closed windows.")
    processor: ProcessorSpec = Field(default_factory=lambda: ProcessorSpec(), description="How events are processed.")
    ingest: IngestSpec = Field(default_factory=lambda: IngestSpec(), description="Sending events over HTTP.")
    api: ApiSpec = Field(default_factory=lambda: ApiSpec(), description="The query service.")
    auth: AuthSpec = Field(default_factory=lambda: AuthSpec(), description="Access by API keys.")

    @property
    def takes_http(self) -> bool:
        """Whether ingest accepts events for the pipeline."""
        source = self.source
        return (
            self.ingest.enabled
            and source.record_format.type == "json"
            and source.kafka is None
            and not source.is_multi_topic
        )

    @property
    def field_kinds(self) -> dict[str, str]:
        """The types of the event's fields and of the lookups' fields, by name."""
        kinds = {field.name: field.kind for field in self.source.fields}
        return kinds | {field.name: field.kind for lookup in self.lookups or () for field in lookup.fields}

    @property
    def group_columns(self) -> frozenset[str]:
        """All columns in `groupBy` of aggregations and anomaly rules."""
        lists = [*(a.group_by for a in self.aggregations), *(rule.group_by for rule in self.anomalies)]
        return frozenset(name for names in lists for name in names)

    def scaling_of(self, component: ScaledComponent) -> ScalingSpec | None:
        """Return the scaling settings of a component, or None if its number of replicas is fixed.

        A Python stage without scaling settings uses `processor.scaling` if the mode there is `lag`.
        """
        processor_scaling = self.processor.scaling
        if component == "processor":
            return processor_scaling
        python = self.transform.python
        if python is None or python.scaling is not None:
            return python.scaling if python is not None else None
        return processor_scaling if processor_scaling is not None and processor_scaling.mode == "lag" else None

    def aggregation(self, name: str) -> AggregationSpec:
        """Return the aggregation with this name, or raise KeyError."""
        for aggregation in self.aggregations:
            if aggregation.name == name:
                return aggregation
        raise KeyError(name)


class Metadata(BaseModel):
    """The members of Kubernetes' ObjectMeta that Tidemill reads. Other members are kept unchanged."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$", max_length=40)]
    namespace: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", max_length=63)] = (
        "default"
    )
    uid: str | None = None
    generation: int = 1
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class AnalyticsPipeline(BaseModel):
    """The whole resource."""

    model_config = ConfigDict(populate_by_name=True, extra="forbid", frozen=True)

    api_version: Literal["tidemill.dev/v1alpha1"] = Field(alias="apiVersion")
    kind: Literal["AnalyticsPipeline"]
    metadata: Metadata
    spec: PipelineSpec
    status: dict[str, Any] | None = None
