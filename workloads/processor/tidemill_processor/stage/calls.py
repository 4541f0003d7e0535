"""The current call of the user's function. The worker writes it to shared memory, and the stage reads it."""

from __future__ import annotations

import mmap
import struct
import tempfile
from dataclasses import dataclass
from typing import IO

_LAYOUT = struct.Struct("<qqq")
_NUMBER = struct.Struct("<q")
_IMPORT = -1


@dataclass(frozen=True)
class Call:
    """A call of the user's function, or the import of the user's file.

    Attributes:
        number: a counter that grows by one at the start and at the end of each call, so that it is odd during a call.
        partition: the partition of the record, or -1 during the import and before the first call.
    """

    number: int
    partition: int
    offset: int

    @property
    def is_running(self) -> bool:
        """Whether the call is still running."""
        return self.number % 2 == 1

    @property
    def is_import(self) -> bool:
        """Whether the worker is importing the user's file, and not calling a function."""
        return self.partition == _IMPORT


class CallMemory:
    """Memory that the worker and the stage share, with the current call of the user's function."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._file: IO[bytes] | None = None
        if descriptor is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with the memory
            self._file.truncate(_LAYOUT.size)
            descriptor = self._file.fileno()
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _LAYOUT.size)
        if self._file is not None:
            _LAYOUT.pack_into(self._memory, 0, 0, _IMPORT, 0)
        self._number = 0

    def close(self) -> None:
        """Release the memory of this process."""
        self._memory.close()
        if self._file is not None:
            self._file.close()

    def begin(self, partition: int = _IMPORT, offset: int = 0) -> None:
        """Record the start of a call. By default, record the start of the import of the user's file."""
        self._number += 1
        _LAYOUT.pack_into(self._memory, 0, self._number, partition, offset)

    def end(self) -> None:
        """Record the end of the call."""
        self._number += 1
        _NUMBER.pack_into(self._memory, 0, self._number)

    @property
    def call(self) -> Call:
        """The current call, or the last call."""
        return Call(*_LAYOUT.unpack_from(self._memory, 0))


class CallClock:
    """Measures how long a call runs. Time in which the stage was suspended does not count."""

    def __init__(self, max_step_seconds: float) -> None:
        self._max_step_seconds = max_step_seconds
        self._number = 0
        self._measured_at = 0.0
        self._seconds = 0.0

    def seconds(self, call: Call, now: float) -> float:
        """Return for how many seconds the call has run, or 0 after the call has ended.

        Args:
            call: the call.
            now: monotonic seconds.
        """
        if call.number != self._number or not call.is_running:
            self._seconds = 0.0
        else:
            self._seconds += min(now - self._measured_at, self._max_step_seconds)
        self._number, self._measured_at = call.number, now
        return self._seconds
