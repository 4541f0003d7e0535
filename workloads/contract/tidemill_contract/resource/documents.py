"""Read YAML text into documents by the rules of kubectl.

`y` and `on` are booleans, and dates are strings.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from tidemill_contract.resource.faults import ABSENT, Fault

MAX_BYTES = 1024 * 1024
_MAX_NODES = 100_000


class DocumentError(ValueError):
    """The error for an invalid YAML text, or a document other than a mapping."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


_REPLACED_TAGS = ("timestamp", "int", "float", "bool")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own protocol
        first: [(tag, regexp) for tag, regexp in resolvers if tag.rsplit(":", 1)[1] not in _REPLACED_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicate_keys: list[yaml.Node] = []
        self._merged_values = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Expand `<<` keys, or raise ConstructorError if too many values result."""
        super().flatten_mapping(node)
        self._merged_values += len(node.value)
        if self._merged_values > _MAX_NODES:
            problem = f"more than {_MAX_NODES} values after `<<` is expanded"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    self.duplicate_keys.append(key_node)
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


_DIGITS = "-+0123456789."
for _tag, _pattern, _first in (
    ("bool", r"^(?:y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", "yYnNtTfFoO"),
    ("int", r"^(?:[-+]?0b[01_]+|[-+]?0o?[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+)$", _DIGITS),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        _DIGITS,
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
_Loader.bool_values = yaml.SafeLoader.bool_values | {"y": True, "n": False}
_Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda loader, node: int(re.sub("^([-+]?)0(?=[0-7_])", r"\g<1>0o", node.value.replace("_", "")), 0),
)


def load_documents(text: str) -> list[dict[str, Any]]:
    """Return the documents in a YAML text.

    Raises:
        DocumentError: the YAML is invalid or empty, a key is repeated, or a document is no mapping.
    """
    if len(text) > MAX_BYTES:
        raise DocumentError(
            [Fault("", ABSENT, f"{len(text)} characters are too many", f"a file may have at most {MAX_BYTES}")]
        )
    documents, faults = _read_documents(text)
    if not documents and not faults:
        faults.append(
            Fault("", ABSENT, "the file is empty", "write an AnalyticsPipeline, such as crds/examples/flights.yaml")
        )
    if faults:
        raise DocumentError(faults)
    return documents


def _read_documents(text: str) -> tuple[list[dict[str, Any]], list[Fault]]:
    loader = None
    documents: list[dict[str, Any]] = []
    faults: list[Fault] = []
    try:
        loader = _Loader(text)
        while loader.check_data():  # type: ignore[no-untyped-call]
            document = loader.get_data()
            if document is None:
                continue
            number = len(documents) + len(faults) + 1
            fault = _document_fault(document, number)
            if fault:
                faults.append(fault)
            else:
                documents.append(document)
        faults += [_duplicate_key_fault(node) for node in loader.duplicate_keys]
    except yaml.YAMLError as error:
        faults.append(_syntax_fault(error))
    except RecursionError:
        faults.append(Fault("", ABSENT, "the document is nested too deeply to read", "write it flatter"))
    except (
        ValueError,
        ArithmeticError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:
        faults.append(Fault("", ABSENT, f"a value cannot be read: {error}", "put the value in quotes"))
    finally:
        if loader is not None:
            loader.dispose()
    return documents, faults


def _document_fault(document: Any, number: int) -> Fault | None:
    if not isinstance(document, dict):
        return Fault(
            "", document, f"document {number} is not a mapping", "start with apiVersion, kind, metadata and spec"
        )
    if _count_values(document, _MAX_NODES) > _MAX_NODES:
        return Fault(
            "",
            ABSENT,
            f"document {number} has more than {_MAX_NODES} values after its aliases are expanded",
            "shorten the document, or use fewer aliases",
        )
    return None


def _count_values(value: Any, budget: int) -> int:
    """Count nested values, and stop counting once the count exceeds `budget`.

    The values of a YAML alias are counted at each use.
    """
    stack, count = [value], 0
    while stack and count <= budget:
        item = stack.pop()
        count += 1
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return count


def _syntax_fault(error: yaml.YAMLError) -> Fault:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return Fault("", ABSENT, f"{where}not valid YAML: {problem}", "check the indentation and the quotes at this place")


def _duplicate_key_fault(node: yaml.Node) -> Fault:
    mark = node.start_mark
    key = str(node.value)
    return Fault(
        "",
        ABSENT,
        f"line {mark.line + 1}, column {mark.column + 1}: the key '{key}' is listed twice",
        "keep one of them",
    )
