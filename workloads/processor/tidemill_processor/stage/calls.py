"""The current call of the user's function, which the worker writes to shared memory and the stage reads.

So the stage sees a call that hangs, even if the call keeps Python's lock and no other thread of the worker can run.
"""

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
    """A call of the user's function, or the import of the file.

    Attributes:
        number: a number that changes at the beginning and at the end of each call. It is odd during a call.
        partition: the partition of the record, or -1 during the import and before the first call.
        offset: the offset of the record.
    """

    number: int
    partition: int
    offset: int

    @property
    def runs(self) -> bool:
        """Whether the call has not ended."""
        return self.number % 2 == 1

    @property
    def imports(self) -> bool:
        """Whether it is the import of the file."""
        return self.partition == _IMPORT


class CallMemory:
    """Shared memory with the current call. The stage creates it, and the worker opens it by its file descriptor.

    Args:
        descriptor: the descriptor of the file, or None to create a file.
    """

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
        """Note that a call begins. Without a partition, it is the import of the file."""
        self._number += 1
        _LAYOUT.pack_into(self._memory, 0, self._number, partition, offset)

    def end(self) -> None:
        """Note that the call has ended."""
        self._number += 1
        _NUMBER.pack_into(self._memory, 0, self._number)

    @property
    def call(self) -> Call:
        """The current call, or the last one."""
        return Call(*_LAYOUT.unpack_from(self._memory, 0))


class CallClock:
    """Measures how long calls take. Time in which the stage itself did not run, such as a suspension, does not count.

    Args:
        most_seconds: the longest time between two observations that counts.
    """

    def __init__(self, most_seconds: float) -> None:
        self._most = most_seconds
        self._number = 0
        self._seen_at = 0.0
        self._seconds = 0.0

    def seconds(self, call: Call, now: float) -> float:
        """Return for how many seconds the call has been seen to run, or 0 if it has ended.

        Args:
            call: the call.
            now: monotonic seconds.
        """
        if call.number != self._number or not call.runs:
            self._seconds = 0.0
        else:
            self._seconds += min(now - self._seen_at, self._most)
        self._number, self._seen_at = call.number, now
        return self._seconds
