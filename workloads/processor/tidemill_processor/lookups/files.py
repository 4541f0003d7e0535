"""Reads the rows of a lookup from a file. In Kubernetes, the file comes from a ConfigMap."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec

from tidemill_contract.events.formats.csv_lines import CsvLines, without_paths
from tidemill_contract.events.invalid_events import InvalidEvent
from tidemill_contract.files import read_bytes
from tidemill_contract.resource.kinds.formats import FormatSpec
from tidemill_contract.resource.lookups.model import LookupSpec
from tidemill_contract.resource.paths import show_path
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.lookups.rows import RowDecoder, key_field, row_spec
from tidemill_processor.lookups.table import LookupFault, Table

_DELIMITERS = ",;\t"


class FileSource:
    """The file of one lookup."""

    refresh_seconds = 1.0

    def __init__(self, spec: PipelineSpec, lookup: LookupSpec, folder: Path) -> None:
        """Prepare the decoder. `folder` contains the files of the ConfigMap."""
        self._spec, self._lookup = spec, lookup
        name = lookup.source.file or ""
        self._path = folder / name
        self._suffix = self._path.suffix
        self.source_name = f"file {name} of the ConfigMap {lookup.source.config_map} ({self._path})"
        self._loaded_version: tuple[int, int, int] | None = None
        self._last_version: tuple[int, int, int] | None = None
        self._content: bytes | None = None

    def load(self) -> Table | None:
        """Return the rows, or None if the file has not changed.

        Raises:
            LookupFault: the file cannot be read.
        """
        try:
            version = self._file_version()
            # A file may be incomplete during a write. Wait until two calls see the same size and modification time.
            is_stable = self._content is None or version == self._last_version
            self._last_version = version
            if version == self._loaded_version or not is_stable:
                return None
            content = read_bytes(self._path)
        except OSError as error:
            remedy = "create it, or correct from.configMap and from.file"
            raise LookupFault(f"cannot be read: {error.strerror or error}; {remedy}") from None
        if content == self._content:
            self._loaded_version = version
            return None
        table = self._table(content)
        self._loaded_version, self._content = version, content
        return table

    def _file_version(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _table(self, content: bytes) -> Table:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise LookupFault(f"is not UTF-8 ({error}); save it in UTF-8") from None
        if self._suffix == ".csv":
            return self._csv(text)
        decoder = RowDecoder(self._spec, self._lookup, row_spec(self._spec, self._lookup))
        if self._suffix != ".json":
            # JSON strings may contain characters such as U+2028. `splitlines` would also split at these characters.
            lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            return decoder.table((line.encode() for _, line in lines), "line", [number for number, _ in lines])
        try:
            rows = msgspec.json.decode(text, type=list[msgspec.Raw])
        except msgspec.MsgspecError as error:
            raise LookupFault(f"is not an array of JSON ({error}); write [{{…}}, {{…}}], or use .ndjson") from None
        return decoder.table((bytes(row) for row in rows), "element")

    def _csv(self, text: str) -> Table:
        first = text.partition("\n")[0]
        delimiter = next((each for each in _DELIMITERS if each in first), _DELIMITERS[0])
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            rows = self._csv_lines(header)
            documents = []
            for cells in reader:
                if not cells:
                    continue  # a blank line
                if len(cells) != len(header):
                    raise LookupFault(
                        f"line {reader.line_num}: expected {len(header)} cells ({delimiter.join(header)}), got"
                        f" {len(cells)}; correct the line, and put cells with a '{delimiter}' in quotes"
                    )
                documents.append(rows.document(cells))
        except csv.Error as error:
            raise LookupFault(f"line {reader.line_num}: is not CSV ({error}); close each quote") from None
        except InvalidEvent as verdict:
            raise LookupFault(f"line {reader.line_num}: {verdict.detail}") from None
        spec = without_paths(row_spec(self._spec, self._lookup))
        return RowDecoder(self._spec, self._lookup, spec).table(documents)

    def _csv_lines(self, header: list[str]) -> CsvLines:
        needed = [key_field(self._spec, self._lookup), *(field.row_field for field in self._lookup.fields)]
        for field in needed:
            column = str(field.member_path[0])
            if header.count(column) != 1:
                problem = "has no column" if column not in header else "has several columns"
                columns = ", ".join(header)[:200] or "none"
                member = "from.key" if field is needed[0] else f"path of the field {field.name}"
                raise LookupFault(
                    f"{problem} {show_path((column,))}; its columns are {columns}: correct the header, or the {member}"
                )
        rows = row_spec(self._spec, self._lookup)
        csv_format = FormatSpec(type="csv").model_copy(update={"columns": header})
        source = rows.source.model_copy(update={"format": csv_format})
        return CsvLines(rows.model_copy(update={"source": source}))
