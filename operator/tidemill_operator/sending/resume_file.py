"""The resume file, which stores how far a file has been sent."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tidemill_contract.files import read_text
from tidemill_operator.event_files.content import EventFileError
from tidemill_operator.processes.files import write_atomic

_HASHED_BYTES = 4096


@dataclass(frozen=True)
class ResumePoint:
    """The position up to which a file has been sent."""

    file: str
    pipeline: str
    sent: int
    batch: int
    hashed: int
    beginning: str

    @classmethod
    def start(cls, path: Path, pipeline: str, batch: int) -> ResumePoint:
        """Return the position at the beginning of a file."""
        hashed, beginning = _hash_beginning(path, _HASHED_BYTES)
        return cls(str(path.absolute()), pipeline, 0, batch, hashed, beginning)

    @classmethod
    def load(cls, resume: Path, path: Path, pipeline: str, batch: int) -> ResumePoint:
        """Read the position from a resume file, or return the beginning if no resume file exists.

        Raises:
            EventFileError: the resume file is for another file or pipeline, or cannot be read.
        """
        start = cls.start(path, pipeline, batch)
        try:
            saved = cls(**json.loads(read_text(resume)))
        except FileNotFoundError:
            return start
        except (OSError, ValueError, TypeError) as error:
            remedy = "name another file for --resume, or remove it to send from the beginning"
            raise EventFileError(f"{resume} is not a resume file ({error}); {remedy}") from None
        if (saved.file, saved.pipeline) != (start.file, start.pipeline):
            raise EventFileError(f"{resume} belongs to {saved.file} and pipeline {saved.pipeline}; name another file")
        if _hash_beginning(path, saved.hashed) != (saved.hashed, saved.beginning):
            remedy = f"remove {resume} to send the file from the beginning"
            raise EventFileError(f"{path}: the beginning of the file has changed since it was sent; {remedy}")
        return saved

    def advanced_by(self, events: int) -> ResumePoint:
        """Return the position after sending more events."""
        return replace(self, sent=self.sent + events)

    def save(self, resume: Path) -> None:
        """Write the resume file."""
        write_atomic(resume, json.dumps(asdict(self), indent=1))


def _hash_beginning(path: Path, length: int) -> tuple[int, str]:
    with path.open("rb") as file:
        data = file.read(length)
    return len(data), hashlib.blake2b(data, digest_size=16).hexdigest()
