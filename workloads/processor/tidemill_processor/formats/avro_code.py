"""Generates Python code that reads the wanted members of one Avro schema and skips all other members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

from tidemill_contract.calendars import DAY_MS
from tidemill_contract.events.formats.framing import FRAME_BYTES
from tidemill_contract.resource.paths import Steps
from tidemill_processor.formats.avro_types import AvroSchema, Node

_SIZES = {"float": 4, "double": 8}
MAX_BRANCHES = 64
_MAX_LINES = 20_000
"""The maximum number of generated lines. Nested record types can need very many lines."""


class UnsupportedError(Exception):
    """Raised if generated code cannot read a type of the schema."""


class MalformedError(Exception):
    """Raised if the generated code finds bytes that do not match the schema."""


@dataclass(frozen=True)
class WantedMember:
    """A member that the generated code reads.

    Attributes:
        steps: the path of the member.
        type: the type of the field in the pipeline's spec.
        scale: the digits after the point, if the field is a decimal.
    """

    steps: Steps
    type: str
    scale: int = 0


def read_size(x: bytes, p: int) -> tuple[int, int]:
    """Read the length at index `p`. Return twice the length (the zigzag code) and the next index.

    Raises:
        MalformedError: the length is negative.
    """
    code, p = (x[p], p + 1) if x[p] < 128 else read_long(x, p)
    if code & 1:
        raise MalformedError
    return code, p


def read_long(x: bytes, p: int) -> tuple[int, int]:
    """Return the number at index `p` in zigzag encoding, and the next index.

    Raises:
        MalformedError: the number has more than 64 bits.
    """
    number = x[p] - 128
    b = x[p + 1]
    if b < 128:
        return number + (b << 7), p + 2
    c = x[p + 2]
    if c < 128:
        return number + ((b - 128) << 7) + (c << 14), p + 3
    number += ((b - 128) << 7) + ((c - 128) << 14)
    b = x[p + 3]
    if b < 128:
        return number + (b << 21), p + 4
    c = x[p + 4]
    if c < 128:
        return number + ((b - 128) << 21) + (c << 28), p + 5
    number += ((b - 128) << 21) + ((c - 128) << 28)
    b = x[p + 5]
    if b < 128:
        return number + (b << 35), p + 6
    number += (b - 128) << 35
    for index in range(6, 10):
        b = x[p + index]
        if b < 128:
            if index == 9 and b > 1:
                raise MalformedError
            return number + (b << 7 * index), p + index + 1
        number += (b - 128) << 7 * index
    raise MalformedError


def decimal_factor(node: Node, wanted: WantedMember) -> int:
    """Return the factor that converts an Avro decimal's integer to the scale of the field.

    Raises:
        UnsupportedError: the type is not a decimal, or has more digits after the point than the field.
    """
    digits = wanted.scale - int(node.get("scale", 0))
    if node.get("logicalType") != "decimal" or digits < 0:
        raise UnsupportedError("a decimal with more digits than the field")
    return int(10**digits)


def generate_reader(
    schema: AvroSchema, wanted: Sequence[WantedMember | None], row: type, *, within: Steps = (), op: Steps | None = None
) -> Callable[[Sequence[bytes]], tuple[list[Any], list[Any]]]:
    """Return a function for reading many records. Each record starts with a schema id.

    Args:
        schema: the schema of the records.
        wanted: the members for the arguments of `row`. Where a member is None, the argument is None.
        row: the class of the events to create.
        within: the path of the row in a record, or empty if the whole record is the row.
        op: the path of the string member with the operation of a change, or None.

    Returns:
        A function that returns each record's row, and each record's member at the path `op`.

    Raises:
        UnsupportedError: generated code cannot read this schema, but fastavro can.
    """
    generator = _CodeGenerator(schema, wanted, within, op)
    code = compile(generator.code(), "<avro>", "exec")
    namespace = {"row": row, "long": read_long, "size": read_size, "Broken": MalformedError, **generator.constants}
    exec(code, namespace)  # noqa: S102 - made of the schema's types, not of its texts
    return namespace["read"]  # type: ignore[no-any-return]


class _CodeGenerator:
    def __init__(
        self, schema: AvroSchema, wanted: Sequence[WantedMember | None], within: Steps, op: Steps | None
    ) -> None:
        self._schema, self._wanted, self._within, self._op = schema, wanted, within, op
        self.constants: dict[str, Any] = {f"{kind}s": Struct(f"<{kind[0]}").unpack_from for kind in _SIZES}
        self._lines: list[str] = []
        self._assigned: set[int] = set()
        self._open_records: list[str] = []
        self._depth = 2

    def code(self) -> str:
        wants = [(slot, each) for slot, each in enumerate(self._wanted) if each is not None]
        if self._op is not None:
            wants.append((len(self._wanted), WantedMember(self._op, "string")))
        self._read_type(self._schema.parsed, (), wants)
        missing = {slot for slot, _ in wants} - self._assigned
        names = [f"v{slot}" if slot in self._assigned else "None" for slot in range(len(self._wanted))]
        op = f"v{len(self._wanted)}" if len(self._wanted) in self._assigned else "None"
        head = ["def read(raws):", "    rows, ops = [], []", "    for x in raws:", f"        p = {FRAME_BYTES}"]
        nulls = [f"v{slot}" for slot in sorted(self._assigned | missing)]
        head += [f"        {' = '.join(nulls)} = None"] if nulls else []
        head += ["        there = True"] if self._within else []
        end = ["        if p != len(x): raise Broken", f"        rows.append(row({', '.join(names)}))"]
        if self._within or self._op is not None:
            end.append(f"        ops.append({op}{' if there else None' if self._within else ''})")
        return "\n".join([*head, *self._lines, *end, "    return rows, ops"])

    def _add(self, line: str) -> None:
        if len(self._lines) >= _MAX_LINES:
            raise UnsupportedError("a large schema")
        self._lines.append(f"{'    ' * self._depth}{line}")

    def _read_number(self, name: str = "b") -> None:
        self._add(f"{name} = x[p]")
        self._add(f"if {name} > 127: {name}, p = long(x, p)")
        self._add("else: p += 1")

    def _read_size(self) -> None:
        self._add("b = x[p]")
        self._add("if b & 129: b, p = size(x, p)")
        self._add("else: p += 1")

    def _read_type(self, written: Any, path: Steps, wants: Sequence[tuple[int, WantedMember]]) -> None:
        node = self._schema.node(written)
        leaves = [(slot, each) for slot, each in wants if each.steps == path]
        if not wants and path != self._within[: len(path)]:
            self._skip(node)
        elif node["type"] == "union":
            self._union(node, lambda branch: self._read_type(branch, path, wants), path)
        elif leaves:
            self._leaf(node, *leaves[0])
        elif node["type"] in ("record", "error"):
            with_name = self._enter(node)
            for field in node["fields"]:
                steps = (*path, field["name"])
                self._read_type(field["type"], steps, [each for each in wants if each[1].steps[: len(steps)] == steps])
            self._leave(with_name)
        elif node["type"] == "null":
            pass
        else:
            raise UnsupportedError(f"a path leads through {node['type']}")

    def _union(self, node: Node, read: Callable[[Any], None], path: Steps | None) -> None:
        branches = node["branches"]
        if len(branches) > MAX_BRANCHES:
            raise UnsupportedError("a union of many types")
        self._add("b = x[p]; p += 1")
        for index, branch in enumerate(branches):
            self._add(f"{'elif' if index else 'if'} b == {2 * index}:")
            self._depth += 1
            if self._depth > 15:
                raise UnsupportedError("nested deeply")  # Python allows 20 blocks.
            if self._schema.node(branch)["type"] == "null":
                self._add("there = False" if path and path == self._within else "pass")
            else:
                self._add("pass")
                read(branch)
            self._depth -= 1
        self._add("else: raise Broken")

    def _enter(self, node: Node) -> str:
        name = str(node["name"])
        if name in self._open_records:
            raise UnsupportedError(f"{name} holds itself")
        self._open_records.append(name)
        return name

    def _leave(self, name: str) -> None:
        self._open_records.remove(name)

    def _leaf(self, node: Node, slot: int, wanted: WantedMember) -> None:
        name, kind = f"v{slot}", node["type"]
        self._assigned.add(slot)
        if kind == "null":
            return
        match wanted.type, kind:
            case (("string" | "timestamp"), "string"):
                self._read_size()
                self._add(f"q = p + (b >> 1); {name} = x[p:q].decode(); p = q")
            case "string", "enum":
                if len(node["symbols"]) > MAX_BRANCHES:
                    raise UnsupportedError("an enum of many symbols")
                self.constants[f"symbols{slot}"] = tuple(node["symbols"])
                self._add("b = x[p]; p += 1")
                self._add("if b & 129: raise Broken")
                self._add(f"{name} = symbols{slot}[b >> 1]")
            case (("integer" | "timestamp" | "number"), ("int" | "long")):
                self._read_number()
                expression = "(b >> 1) ^ -(b & 1)"
                if wanted.type == "number":
                    expression = f"float({expression})"
                elif node.get("logicalType") == "date":
                    expression = f"({expression}) * {DAY_MS}"
                self._add(f"{name} = {expression}")
            case "number", ("float" | "double"):
                self._add(f"{name}, = {kind}s(x, p); p += {_SIZES[kind]}")
            case "boolean", "boolean":
                self._add("b = x[p]; p += 1")
                self._add("if b > 1: raise Broken")
                self._add(f"{name} = b == 1")
            case "decimal", ("bytes" | "fixed"):
                self._decimal(node, name, decimal_factor(node, wanted))
            case _:
                raise UnsupportedError(f"{kind} as {wanted.type}")

    def _decimal(self, node: Node, name: str, factor: int) -> None:
        if node["type"] == "fixed":
            self._add(f"q = p + {int(node['size'])}")
        else:
            self._read_size()
            self._add("q = p + (b >> 1)")
        self._add(f'{name} = int.from_bytes(x[p:q], "big", signed=True); p = q')
        limit = 10 ** int(node["precision"])  # fastavro would round a number with more digits than `precision`
        self._add(f"if not -{limit} < {name} < {limit}: raise Broken")
        if factor != 1:
            self._add(f"{name} *= {factor}")

    def _skip(self, node: Node) -> None:
        match node["type"]:
            case "null":
                pass
            case "boolean":
                self._add("if x[p] > 1: raise Broken")
                self._add("p += 1")
            case "int" | "long":
                self._read_number()
            case "enum":
                self._read_number()
                self._add(f"if b & 1 or b >> 1 >= {len(node['symbols'])}: raise Broken")
            case "float" | "double":
                self._add(f"p += {_SIZES[node['type']]}")
            case "string" | "bytes":
                self._read_size()
                self._add("p += b >> 1")
            case "fixed":
                self._add(f"p += {int(node['size'])}")
            case "union":
                self._union(node, lambda branch: self._skip(self._schema.node(branch)), None)
            case "record" | "error":
                name = self._enter(node)
                for field in node["fields"]:
                    self._skip(self._schema.node(field["type"]))
                self._leave(name)
            case "array":
                self._skip_blocks(lambda: self._skip(self._schema.node(node["items"])))
            case "map":
                self._skip_blocks(lambda: self._skip_entry(self._schema.node(node["values"])))
            case other:
                raise UnsupportedError(str(other))

    def _skip_entry(self, value: Node) -> None:
        self._skip({"type": "string"})
        self._skip(value)

    def _skip_blocks(self, skip: Callable[[], object]) -> None:
        count = f"n{self._depth}"
        self._add("while True:")
        self._depth += 1
        if self._depth > 15:
            raise UnsupportedError("nested deeply")
        self._read_number(count)
        self._add(f"if not {count}: break")
        # After a negative count, Avro writes the block's size in bytes. Skip the size.
        self._add(f"if {count} & 1:")
        self._depth += 1
        self._read_size()
        self._depth -= 1
        self._add(f"{count} = ({count} + 1) >> 1")
        # Invalid bytes may contain a huge count, which would keep the loop busy for years.
        self._add(f"if {count} > len(x): raise Broken")
        self._add(f"for _ in range({count}):")
        self._depth += 1
        self._add("pass")
        skip()
        self._depth -= 2
