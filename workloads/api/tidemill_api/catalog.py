"""The pipelines that the API serves, with the columns and SQL of their aggregations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tidemill_api.query.selection import Column
from tidemill_chassis.pipelines import PipelineDirectory
from tidemill_chassis.web.problems import not_found
from tidemill_contract import names
from tidemill_contract.expressions.compiler import derived_types
from tidemill_contract.functions.fill_history import FillHistory, mask_incomplete_metrics
from tidemill_contract.functions.partials import AggregationLayout, build_layout, field_types, quote
from tidemill_contract.functions.registry import FUNCTIONS
from tidemill_contract.resource.spec import AggregationSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.windows import answer_columns, decoders


@dataclass(frozen=True)
class AggregationModel:
    """An aggregation of a pipeline, with the columns of its table."""

    spec: AggregationSpec
    version: int
    layout: AggregationLayout
    table: str

    @property
    def name(self) -> str:
        """The aggregation's name."""
        return self.spec.name

    @cached_property
    def groups(self) -> dict[str, Column]:
        """The group columns by name."""
        return {name: Column(name, kind) for name, kind in self.layout.group_by}

    @cached_property
    def metrics(self) -> dict[str, tuple[Column, str]]:
        """The column and the SQL of each metric, by the metric's name."""
        decode = decoders(self.layout)
        members = {metric.name: _members(metric.function, kind) for metric, kind in self.layout.metrics}
        return {
            name: (Column(name, kind, decode=decode.get(name), members=members[name]), expression)
            for name, kind, expression in answer_columns(self.layout, end="window_end")
        }

    @cached_property
    def functions(self) -> dict[str, str]:
        """The function of each metric, by the metric's name."""
        return {metric.name: metric.function for metric, _ in self.layout.metrics}

    def mask_incomplete(self, fill_history: FillHistory) -> AggregationModel:
        """Return a copy whose SQL replaces incomplete values of metrics with null.

        For example, a new metric can be incomplete in earlier windows.
        """
        masked = mask_incomplete_metrics(self.layout, fill_history)
        return self if masked is self.layout else replace(self, layout=masked)


def _members(function: str, field_type: str | None) -> tuple[Column, ...]:
    item = FUNCTIONS[function].item if function in FUNCTIONS else None
    if item is None:
        return ()
    return tuple(Column(name, _kind(schema) or str(field_type)) for name, schema in item.members.items())


def _kind(schema: Mapping[str, Any]) -> str | None:
    kinds = [variant["type"] for variant in schema.get("anyOf", [schema]) if "type" in variant]
    return kinds[0] if kinds else None


class PipelineModel:
    """A pipeline, with its config, schema name and aggregations."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.schema = quote(config.schema_name)
        types = field_types(config.spec, derived_types(config.spec))
        self.aggregations: dict[str, AggregationModel] = {}
        for spec in config.spec.aggregations:
            version = config.version(spec.name)
            table = f"{self.schema}.{quote(names.window_table(spec.name, version))}"
            self.aggregations[spec.name] = AggregationModel(spec, version, build_layout(spec, types), table)

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.config.name

    def aggregation(self, name: str) -> AggregationModel:
        """Return an aggregation.

        Raises:
            Problem: there is no aggregation of this name (404).
        """
        aggregation = self.aggregations.get(name)
        if aggregation is None:
            aggregation_names = ", ".join(self.aggregations)
            raise not_found(
                "aggregation_not_found", f"{self.name} has no aggregation of that name; it has {aggregation_names}"
            )
        return aggregation


class Catalog:
    """The pipelines with an enabled API. If `only` is set, the catalog contains only the pipeline of this name."""

    def __init__(self, directory: PipelineDirectory, only: str = "") -> None:
        self._directory, self._only = directory, only
        self._models: dict[str, PipelineModel] = {}

    def find(self, name: str) -> PipelineModel | None:
        """Return a pipeline, or None if the pipeline does not exist or its API is disabled."""
        config = self._directory.get(name)
        if config is None or not config.spec.api.enabled or (self._only and name != self._only):
            self._models.pop(name, None)
            return None
        model = self._models.get(name)
        if model is None or model.config is not config:
            model = self._models[name] = PipelineModel(config)
        return model

    def config(self, name: str) -> PipelineConfig | None:
        """Return the config of a pipeline, even if its API is disabled."""
        return None if self._only and name != self._only else self._directory.get(name)

    @property
    def has_protected_pipelines(self) -> bool:
        """Whether any pipeline requires an API key."""
        served = (config for config in self._directory.all() if self._only in ("", config.name))
        return any(config.spec.auth.required is not False for config in served)

    def all(self) -> list[PipelineModel]:
        """Return all pipelines, sorted by name."""
        models = (self.find(config.name) for config in self._directory.all())
        return [model for model in models if model is not None]

    @property
    def faults(self) -> dict[str, str]:
        """The errors of invalid config files, by pipeline."""
        return self._directory.faults
