"""Reads the resilience settings from `config/resilience.yaml` and the environment, and creates the guards.

Environment variables override the file, for example `TIDEMILL_RESILIENCE__BREAKERS__DATABASE__FAILURES=7`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tidemill_chassis.resilience import failures
from tidemill_chassis.resilience.breaker import BreakerOpen, BreakerState
from tidemill_chassis.resilience.failures import Predicate
from tidemill_chassis.resilience.guard import Clock, Deadline, DeadlineExceeded, Guard, Guards, Policy
from tidemill_contract.files import read_bytes

__all__ = [
    "BreakerOpen",
    "BreakerState",
    "ConfigError",
    "Deadline",
    "DeadlineExceeded",
    "Guard",
    "Guards",
    "Policy",
    "ResilienceConfig",
]

ENV_PREFIX = "TIDEMILL_RESILIENCE__"

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
WaitSeconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class ConfigError(ValueError):
    """The error for invalid resilience settings, with one line for each wrong key or variable."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BreakerSettings(_Section):
    """A circuit breaker's limit of failures in a row, its longest pause, and its first pause."""

    failures: int = Field(5, ge=1, le=1_000_000)
    open_seconds: Seconds = 60.0
    first_pause_seconds: Seconds = 2.0


class BreakersSettings(_Section):
    """The settings of the circuit breakers, one for each dependency."""

    kafka_producer: BreakerSettings = BreakerSettings()
    kafka_consumer: BreakerSettings = BreakerSettings()
    database: BreakerSettings = BreakerSettings()
    redis: BreakerSettings = BreakerSettings(failures=3, open_seconds=30.0)


class RetrySettings(_Section):
    """The exponential backoff.

    Before retry n, the guard waits `initial_seconds * factor ** (n - 1)`, but at most `max_seconds`. The guard adds
    jitter.
    """

    retries: int = Field(3, ge=0, le=100)
    initial_seconds: WaitSeconds = 1.0
    factor: float = Field(2.0, ge=1, le=100, allow_inf_nan=False)
    max_seconds: WaitSeconds = 30.0
    jitter_seconds: WaitSeconds = 0.0

    @model_validator(mode="after")
    def _maximum_holds_the_initial_wait(self) -> RetrySettings:
        if self.max_seconds < self.initial_seconds:
            raise ValueError(
                f"max_seconds {self.max_seconds:g} is below initial_seconds {self.initial_seconds:g}: raise it"
            )
        return self


class RetriesSettings(_Section):
    """The retry settings for each kind of dependency."""

    kafka: RetrySettings = RetrySettings()
    database: RetrySettings = RetrySettings()
    redis: RetrySettings = RetrySettings(retries=2, initial_seconds=0.5, max_seconds=5.0)


class TimeoutSettings(_Section):
    """The timeout of one attempt for each dependency, and the timeout of a whole API request."""

    kafka_publish_seconds: Seconds = 30.0
    kafka_consume_seconds: Seconds = 60.0
    database_query_seconds: Seconds = 10.0
    redis_seconds: Seconds = 5.0
    api_request_seconds: Seconds = 30.0


class MemoryCacheSettings(_Section):
    """Settings of the cache in memory, which is used while Redis is down."""

    enabled: bool = True
    max_entries: int = Field(10_000, ge=1, le=10_000_000)


class StaleResultsSettings(_Section):
    """Settings for stale answers from the cache while the database is down."""

    enabled: bool = True
    max_age_seconds: Seconds = 3_600.0


class FallbackSettings(_Section):
    """Settings of the fallbacks that the API uses while Redis or the database is down."""

    memory_cache: MemoryCacheSettings = MemoryCacheSettings()
    stale_results: StaleResultsSettings = StaleResultsSettings()


class ResilienceConfig(_Section):
    """All resilience settings."""

    breakers: BreakersSettings = BreakersSettings()
    retries: RetriesSettings = RetriesSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    fallbacks: FallbackSettings = FallbackSettings()

    @classmethod
    def load(cls, path: Path | None, environ: Mapping[str, str]) -> ResilienceConfig:
        """Return the settings of a YAML file, or the defaults without a file. The environment overrides settings.

        Raises:
            ConfigError: the file cannot be read, or a key or value is wrong.
        """
        # Merge the file into the complete defaults. An incomplete `redis` section then keeps the defaults for Redis.
        document = _merged(cls().model_dump(), _read(path) if path is not None else {})
        variables, faults = _apply_environment(document, environ)
        try:
            config = cls.model_validate(document)
        except ValidationError as error:
            faults += [_fault(details, path, variables) for details in error.errors()]
        if faults:
            raise ConfigError("\n".join(faults))
        return config

    def guards(
        self,
        *,
        is_failure: Mapping[str, Predicate] | None = None,
        is_retryable: Mapping[str, Predicate] | None = None,
        clock: Clock = time.monotonic,
    ) -> Guards:
        """Create the guards of a process.

        Args:
            is_failure: replacements for the default failure predicates (failures.py), by guard name.
            is_retryable: replacements for the default retry predicates (failures.py), by guard name.
            clock: a monotonic clock, in seconds.
        """
        parameters = {
            "kafka_producer": (
                self.timeouts.kafka_publish_seconds,
                self.retries.kafka,
                failures.kafka_failed,
                failures.kafka_retryable,
            ),
            "kafka_consumer": (
                self.timeouts.kafka_consume_seconds,
                self.retries.kafka,
                failures.kafka_failed,
                failures.kafka_retryable,
            ),
            "database": (
                self.timeouts.database_query_seconds,
                self.retries.database,
                failures.database_failed,
                failures.database_retryable,
            ),
            "redis": (self.timeouts.redis_seconds, self.retries.redis, failures.redis_failed, failures.redis_retryable),
        }
        guards = {}
        for name, (timeout, retry, failed, retryable) in parameters.items():
            policy = Policy(
                **getattr(self.breakers, name).model_dump(),
                **retry.model_dump(),
                timeout_seconds=timeout,
                is_failure=(is_failure or {}).get(name, failed),
                is_retryable=(is_retryable or {}).get(name, retryable),
            )
            guards[name] = Guard(name, policy, clock=clock)
        return Guards(**guards)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(read_bytes(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror or error}); correct or unset TIDEMILL_RESILIENCE_FILE"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: holds a {type(document).__name__}; write the sections {_known_keys(())} at its top level"
        )
    return document


def _merged(base: dict[str, Any], overrides: dict[Any, Any]) -> dict[str, Any]:
    result: dict[str, Any] = dict(base)
    for key, value in overrides.items():
        base_value = base.get(key)
        if isinstance(base_value, dict):
            # An empty section changes nothing. A wrong value is kept, so that validation reports it.
            value = base_value if value is None else _merged(base_value, value) if isinstance(value, dict) else value
        result[str(key)] = value
    return result


def _apply_environment(
    document: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[tuple[str, ...], str], list[str]]:
    """Set values in `document` from environment variables."""
    variables, faults = {}, []
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        path = tuple(variable.removeprefix(ENV_PREFIX).lower().split("__"))
        if path[-1] not in _names(path[:-1]) or _section_model(path) is not None:
            faults.append(f"{variable}: sets nothing; {_known_keys_near(path)}")
            continue
        node = document
        for name in path[:-1]:
            if not isinstance(node.get(name), dict):
                node[name] = {}
            node = node[name]
        node[path[-1]] = _scalar(text)
        variables[path] = variable
    return variables, faults


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _section_model(path: tuple[str, ...]) -> type[BaseModel] | None:
    model: Any = ResilienceConfig
    for name in path:
        field = model.model_fields.get(name) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = field.annotation if field is not None else None
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _names(path: tuple[str, ...]) -> list[str]:
    model = _section_model(path)
    return list(model.model_fields) if model is not None else []


def _known_keys(path: tuple[str, ...]) -> str:
    return ", ".join(_names(path))


def _known_keys_near(path: tuple[str, ...]) -> str:
    section = path
    while section and _section_model(section) is None:
        section = section[:-1]
    return f"known keys of {'.'.join(section) or 'the top level'}: {_known_keys(section)}"


def _fault(details: Any, path: Path | None, variables: Mapping[tuple[str, ...], str]) -> str:
    location = tuple(str(part) for part in details["loc"])
    variable = variables.get(location)
    where = (
        f"{variable} ({'.'.join(location)})"
        if variable
        else f"{path or 'resilience settings'}: {'.'.join(location) or 'the top level'}"
    )
    if details["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_known_keys_near(location)}"
    if details["type"] == "model_type":
        return f"{where}: must be a section, not {details['input']!r}; {_known_keys_near(location)}"
    message = details["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if details["type"] == "value_error":
        message += "".join(f" (set by {name})" for set_path, name in variables.items() if set_path[:-1] == location)
        return f"{where}: {message}"
    return f"{where}: {message}, not {details['input']!r}"
