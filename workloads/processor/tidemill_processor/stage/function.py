"""Loads a user's Python file, and calls its function with events in JSON."""

from __future__ import annotations

import inspect
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tidemill_contract.events.event_errors import not_an_object, not_json
from tidemill_contract.events.fields import MAX_EVENT_BYTES
from tidemill_contract.events.invalid_events import InvalidEvent, Reason
from tidemill_contract.files import read_bytes

_MAX_ERROR_CHARS = 300
_MODULE = "tidemill_user_function"


class LoadError(Exception):
    """Raised if the user's file cannot be imported or has no usable function."""


class UserFunction:
    """A function of a user's file."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._call: Callable[[Any], Any] | None = None

    @property
    def label(self) -> str:
        """The function and its file, for messages."""
        return f"{self.name} of {self.path.name}"

    @property
    def imported(self) -> list[Path]:
        """The files that the user's file has imported from the same folder."""
        start, files = f"{self.path.parent}/", []
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__dict__", {}).get("__file__")
            if isinstance(file, str) and file.startswith(start):
                first = file[len(start) :].partition("/")[0]
                if first.removesuffix(".py") == name.partition(".")[0]:
                    files.append(Path(file))
        return files

    def load(self) -> None:
        """Import the file.

        Raises:
            LoadError: the file cannot be imported, or has no usable function.
        """
        code = self._compile()
        sys.dont_write_bytecode = True
        # Add the folder last, so that a user's file cannot hide a module of Python or Tidemill.
        sys.path.append(str(self.path.parent))
        module = ModuleType(_MODULE)
        module.__file__ = str(self.path)
        sys.modules[_MODULE] = module
        try:
            exec(code, module.__dict__)  # noqa: S102 - running the user's code is the purpose of the stage
        except BaseException as error:  # Some errors, such as a panic in Polars, do not inherit from Exception.
            raise LoadError(f"{self.path.name} cannot be imported: {self._describe(error)}") from error
        self._call = self._check_function(getattr(module, self.name, None))

    def _compile(self) -> CodeType:
        try:
            return compile(read_bytes(self.path), str(self.path), "exec", dont_inherit=True)
        except FileNotFoundError:
            text = f"there is no file {self.path.name} in {self.path.parent}"
            raise LoadError(f"{text}; add it, or correct spec.transform.python") from None
        except OSError as error:
            raise LoadError(f"{self.path} cannot be read: {error.strerror or error}") from error
        except (SyntaxError, ValueError) as error:
            at = f" ({self.path.name}, line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
            raise LoadError(f"{self.path.name} is no Python: {_last_line(error)}{at}") from error

    def _check_function(self, function: Any) -> Callable[[Any], Any]:
        if not callable(function):
            raise LoadError(f"{self.path.name} has no function {self.name}; add it, or correct function")
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise LoadError(f"{self.label} is async or a generator; return an event, a list of events, or None")
        try:
            inspect.signature(function).bind({})
        except TypeError as error:
            raise LoadError(f"{self.label} cannot be called with one event: {error}") from None
        except ValueError:
            pass  # builtins have no signature
        return function  # type: ignore[no-any-return]

    def results(self, raw: bytes) -> list[bytes]:
        """Call the function with an event (JSON in UTF-8), and return the resulting events as JSON.

        Raises:
            InvalidEvent: the bytes are not a JSON object, the function failed, or a result is not an event.
        """
        assert self._call is not None  # noqa: S101 - the file is loaded first
        event = _decode_event(raw)
        try:
            returned = self._call(event)
            # `list()` runs user code if the function returned a subclass of list.
            results = [] if returned is None else list(returned) if isinstance(returned, list) else None
        except BaseException as error:
            raise _transform_error(self._describe(error)) from error
        if results is None:
            return [self._encode(returned, listed=False)]
        return [self._encode(each, listed=True) for each in results]

    def _encode(self, event: Any, *, listed: bool) -> bytes:
        if not isinstance(event, dict):
            kind = type(event).__name__
            if listed:
                remedy = "a list may contain only events (dict); return None to drop the event"
                raise _transform_error(f"{self.label} returned a list with {kind}; {remedy}")
            raise _transform_error(f"{self.label} returned {kind}; return an event (dict), a list of events, or None")
        try:
            text = _ENCODER.encode(event).encode()
        except BaseException as error:  # encoding runs user code if the event is a subclass of dict
            raise _transform_error(
                f"{self.label} returned an event that is not valid JSON: {_last_line(error)}"
            ) from error
        if len(text) > MAX_EVENT_BYTES:
            raise _transform_error(
                f"{self.label} returned an event of {len(text):,} bytes; at most {MAX_EVENT_BYTES:,} fit"
            )
        return text

    def _describe(self, error: BaseException) -> str:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(self.path)]
        place = f" ({self.path.name}, line {lines[-1]})" if lines else ""
        return f"{_last_line(error)}{place}"


def _decode_event(raw: bytes) -> dict[str, Any]:
    try:
        event = _DECODER.decode(raw.decode())
    except (ValueError, RecursionError) as error:
        if "int_max_str_digits" in str(error):
            raise _transform_error(
                "a number has more than 4,300 digits, which Python does not read; send it as text"
            ) from None
        raise not_json(raw, error) from error
    if not isinstance(event, dict):
        raise not_an_object(raw)
    return event


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


# Reuse a decoder and an encoder, because `json.loads` and `json.dumps` would create new ones for each event.
_DECODER = json.JSONDecoder(parse_constant=_no_number)
_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _last_line(error: BaseException) -> str:
    try:
        text = " ".join(traceback.format_exception_only(error)[-1].split())
    except Exception:  # the exception's `__str__` may fail
        text = type(error).__name__
    return text if len(text) <= _MAX_ERROR_CHARS else f"{text[: _MAX_ERROR_CHARS - 1]}…"


def _transform_error(detail: str) -> InvalidEvent:
    return InvalidEvent(Reason.TRANSFORM_FAILED, None, detail)
