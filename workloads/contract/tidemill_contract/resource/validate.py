"""Validate a whole resource, and report all faults at once."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tidemill_contract.functions.registry import PARAMETERS
from tidemill_contract.resource.documents import DocumentError, load_documents
from tidemill_contract.resource.faults import ABSENT, Fault, did_you_mean
from tidemill_contract.resource.kinds.base import MISPLACED, Kinds
from tidemill_contract.resource.parts import split_document
from tidemill_contract.resource.rules import TopicLimits, check_rules
from tidemill_contract.resource.spec import AnalyticsPipeline

__all__ = ["DocumentError", "Fault", "TopicLimits", "check_document", "load_documents"]

_MAX_DEPTH = 12
_NAME = "use at most 41 characters: a-z, 0-9 and _, with a letter first"
_REMEDIES = (
    (r"^metadata\.name$", "use at most 40 characters: a-z, 0-9 and -, with a letter or digit first and last"),
    (r"^metadata\.namespace$", "use at most 63 characters: a-z, 0-9 and -, with a letter or digit first and last"),
    (r"^spec\.source\.(topic\.name|topics\[\d+\])$", "use at most 249 characters: letters, digits, '.', '_' and '-'"),
    (
        r"^spec\.transform\.python\.file$",
        "name a Python file, such as enrich.py; use only letters, digits, '.', '_' and '-'",
    ),
    (r"^spec\.transform\.python\.function$", "write the name of a function alone, such as enrich"),
    (r"^spec\.transform\.python\.image$", "write an image without blanks, such as registry.example/shop-stage:3"),
    (r"\.configMap$", "write the name of a ConfigMap: a-z, 0-9, '-' and '.'"),
    (r"\.mqtt\.clientId$", "use at most 128 printable ASCII characters without blanks"),
    (r"^spec\.lookups\[\d+\]\.from\.topic$", "use at most 249 characters: letters, digits, '.', '_' and '-'"),
    (
        r"^spec\.lookups\[\d+\]\.(on|true)$",
        "name a field with at most 41 characters: a-z, 0-9 and _, with a letter first",
    ),
    (r"\.(cpu|memory)$", "write an amount as Kubernetes does, such as 500m or 512Mi"),
    (r"^spec\.lookups\[\d+\]\.from\.key$", "write a column name without quotes, backslashes or control characters"),
    (r"^spec\.lookups\[\d+\]\.from\.table$", "write schema.table, without quotes; for other names, write a query"),
    (r"^spec\.lookups\[\d+\]\.from\.file$", "write the name of the file alone, without a folder"),
    (r"\.connectors\[\d+\]\.class$", "write a class name, such as io.debezium.connector.postgresql.PostgresConnector"),
    (r"\.secrets\..*\.name$", "write the name of a Secret: a-z, 0-9, '-' and '.'"),
    (r"\.secrets\..*\.key$", "write a key of the Secret: letters, digits, '-', '_' and '.'"),
    (r"\.quota$", "write an amount of bytes as Kubernetes does, such as 512Mi or 1Gi"),
    (r"\.webhooks\[\d+\]\.name$", "use at most 40 characters: a-z, 0-9 and -, with a letter or digit first and last"),
    (r"\.secretRef\.name$", "write the name of a Secret: a-z, 0-9, '-' and '.'"),
    (r"\.secretRef\.key$", "write a key of the Secret: letters, digits, '-', '_' and '.'"),
    (r"\.(header|timestampHeader|idHeader)$", "write the name of a header, such as X-Signature"),
    (r"(\.name|\.key|\.field|\.metric|\.aggregation|\.groupBy\[\d+\])$", _NAME),
    *((rf"\.metrics\[\d+\]\.{p.alias}$", _NAME) for p in PARAMETERS.values() if p.field_types is not None),
)


def check_document(document: Any, limits: TopicLimits | None = None) -> tuple[AnalyticsPipeline | None, list[Fault]]:
    """Validate a document, and return the resource and all faults. The resource is None if there are faults."""
    if not isinstance(document, dict):
        return None, [Fault("", document, "is not a mapping", "start with apiVersion, kind, metadata and spec")]
    # Kubernetes drops null members, so null members count as absent.
    document = _without_nulls(document, _MAX_DEPTH)
    pipeline, faults = None, []
    try:
        pipeline = AnalyticsPipeline.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        faults = [_translate(d) for d in error.errors(include_url=False) if d["type"] != MISPLACED]
    except RecursionError:
        return None, [Fault("", ABSENT, "is nested too deeply", "write it flatter")]
    fault_paths = {fault.path for fault in faults}
    rule_faults = check_rules(split_document(document), limits or TopicLimits())
    faults += [fault for fault in rule_faults if fault.path not in fault_paths]
    return (None if faults else pipeline), faults


def _without_nulls(value: Any, depth: int) -> Any:
    if depth == 0:
        return value
    if isinstance(value, dict):
        return {
            key: _without_nulls(member, depth - 1)
            for key, member in value.items()
            if member is not None or key not in _MEMBERS
        }
    if isinstance(value, list):
        return [_without_nulls(item, depth - 1) for item in value]
    return value


def _translate(details: ErrorDetails) -> Fault:
    path, value, context = _path_text(details["loc"]), details["input"], details.get("ctx", {})
    match details["type"]:
        case "missing":
            return Fault(path, ABSENT, "is missing", _missing_remedy(path))
        case "extra_forbidden":
            model = _model_at(details["loc"][:-1])
            members = [str(f.alias or name) for name, f in model.model_fields.items()] if model else []
            return Fault(path, value, "there is no such member", did_you_mean(str(details["loc"][-1]), members))
        case "invalid_key":
            return Fault(
                path,
                ABSENT,
                "the key is not a text",
                "put the key in quotes, because YAML reads it as a number or boolean",
            )
        case "literal_error":
            expected = str(context.get("expected", ""))
            choices = re.findall(r"'([^']*)'", expected)
            if len(choices) == 1:
                return Fault(path, value, f"must be {choices[0]}", f"write {choices[0]}")
            return Fault(path, value, f"must be one of {', '.join(choices)}", did_you_mean(str(value), choices))
        case "value_error":
            message = str(context.get("error", details["msg"]))
            return Fault(path, value, *_split_message(message))
        case "string_type":
            return _not_a_text(path, value)
        case "string_pattern_mismatch":
            return Fault(path, value, "is not an allowed name", _remedy(path, "write another name"))
    return Fault(path, value, *_describe_error(details["type"], context, path, details["msg"]))


def _describe_error(kind: str, context: dict[str, Any], path: str, message: str) -> tuple[str, str]:
    match kind:
        case "model_type" | "model_attributes_type" | "dict_type":
            return "is not a mapping", "write indented members, one 'name: value' per line"
        case "list_type":
            return "is not a list", "start each item with '- ', or write [a, b]"
        case "bool_type":
            return "is not a boolean", "write true or false, without quotes"
        case "int_type" | "int_from_float" | "int_parsing" | "int_parsing_size":
            return "is not a whole number", "write digits only, without quotes"
        case "float_type" | "finite_number":
            return "is not a number", "write digits, without quotes"
        case "greater_than_equal" | "greater_than":
            limit = context.get("ge", context.get("gt"))
            least = f"at least {limit}" if kind.endswith("equal") else f"more than {limit}"
            return "is too small", f"write {least}"
        case "less_than_equal" | "less_than":
            limit = context.get("le", context.get("lt"))
            return "is too large", f"write {'at most' if kind.endswith('equal') else 'less than'} {limit}"
        case "too_long" | "string_too_long":
            what = "characters" if kind.startswith("string") else "items"
            return "is too long", _remedy(path, f"at most {context.get('max_length')} {what} are allowed")
        case "too_short" | "string_too_short":
            return (
                "is empty",
                "add at least one item" if kind == "too_short" else "write a text or remove the line",
            )
        case "string_unicode" | "string_sub_type":
            return "contains half a surrogate pair", "remove this character"
    return message, "correct the value as described in docs/reference/pipeline.md"


def _not_a_text(path: str, value: Any) -> Fault:
    if isinstance(value, bool):
        remedy = "put the value in quotes: YAML reads y, n, yes, no, on, off, true, false as booleans"
        return Fault(path, value, "is a boolean, not a text", remedy)
    if isinstance(value, int | float):
        return Fault(
            path, value, "is a number, not a text", "put the value in quotes; a duration needs a unit, such as 5m"
        )
    return Fault(path, value, "is not a text", _remedy(path, "write a text"))


def _split_message(message: str) -> tuple[str, str]:
    first, _, rest = message.partition(": ")
    return (first, rest) if rest else (message, "write a shorter one")


def _missing_remedy(path: str) -> str:
    hints = {
        "apiVersion": "add apiVersion: tidemill.dev/v1alpha1",
        "kind": "add kind: AnalyticsPipeline",
        "metadata": "add metadata with a name",
        "metadata.name": "add metadata.name, which names the pipeline",
        "spec": "add spec with source and aggregations",
        "spec.transform.python.file": "name the file with the function, such as file: enrich.py",
        "spec.transform.python.function": "name the function in the file, such as function: enrich",
    }
    return hints.get(path, f"add {path.rsplit('.', 1)[-1]}")


def _remedy(path: str, otherwise: str) -> str:
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, path)), otherwise)


def _path_text(loc: tuple[int | str, ...]) -> str:
    path = ""
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    return path[:300]


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = AnalyticsPipeline
    for step in loc:
        if isinstance(step, int) or model is None:
            continue
        field = next((f for name, f in model.model_fields.items() if (f.alias or name) == step), None)
        model = None if field is None else _model_of(field)
    return model


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    return next((model for part in (*field.metadata, field.annotation) if (model := _model_in(part))), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, Kinds):
        return annotation.flat_model
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for argument in reversed(get_args(annotation)) if (model := _model_in(argument))), None)


def _members(model: type[BaseModel]) -> frozenset[str]:
    names = {str(field.alias or name) for name, field in model.model_fields.items()}
    inner = map(_model_of, model.model_fields.values())
    return frozenset(names).union(*(_members(m) for m in inner if m is not None))


_MEMBERS = _members(AnalyticsPipeline)
