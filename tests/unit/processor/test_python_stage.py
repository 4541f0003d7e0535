"""The Python stage without servers: the user's file and function, and the records that a record becomes."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tidemill_contract.events.fields import MAX_EVENT_BYTES
from tidemill_contract.events.verdicts import QUARANTINE_PREFIX, InvalidEvent
from tidemill_contract.staged import ORIGIN_HEADER, Origin, read_origin
from tidemill_processor.source.staged import StagedMessage
from tidemill_processor.stage import __main__ as stage_main
from tidemill_processor.stage.function import LoadError, NotAnEvent, UserFunction
from tidemill_processor.stage.rewriting import Rewriter
from tidemill_processor.stage.watch import Watch
from waiting import eventually

ORIGIN = Origin("tW/f+1/x", 7, 1_700_000_000_000)  # base64 has slashes


def loaded(folder: Path, text: str, name: str = "enrich") -> UserFunction:
    (folder / "enrich.py").write_text(text)
    function = UserFunction(folder / "enrich.py", name)
    function.load()
    return function


def returning(folder: Path, expression: str) -> UserFunction:
    return loaded(folder, f"def enrich(event):\n    return {expression}\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def enrich(event):\nreturn event", "enrich.py is no Python: IndentationError: expected an indented block"),
        ("\nx = (", "enrich.py is no Python: SyntaxError: '(' was never closed (enrich.py, line 2)"),
        ("import shops_of_nobody", "enrich.py cannot be imported: ModuleNotFoundError: No module named 'shops_of_"),
        ("\nraise SystemExit(3)", "enrich.py cannot be imported: SystemExit: 3 (enrich.py, line 2)"),
        ("raise KeyboardInterrupt", "enrich.py cannot be imported: KeyboardInterrupt (enrich.py, line 1)"),
        ("def other(event): ...", "enrich.py has no function enrich; add it, or correct function"),
        ("enrich = 3", "enrich.py has no function enrich"),
        ("async def enrich(event): ...", "enrich of enrich.py is async or a generator; return an event, a list of"),
        ("def enrich(event):\n    yield event", "enrich of enrich.py is async or a generator"),
        ("def enrich(event, shop): ...", "enrich of enrich.py cannot be called with one event: missing a required arg"),
        ("x = '\0'", "enrich.py is no Python"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(LoadError) as error:
        loaded(tmp_path, text)
    assert str(error.value).startswith(told)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"there is no file enrich\.py in .*; add it, or correct spec\.transform\.py"):
        UserFunction(tmp_path / "enrich.py", "enrich").load()


def test_a_file_imports_its_neighbours_and_cannot_hide_a_module_of_python(tmp_path: Path) -> None:
    (tmp_path / "shop_names.py").write_text("NAMES = {1: 'north'}")
    (tmp_path / "json.py").write_text("raise ValueError('not this one')")
    function = loaded(
        tmp_path, "import json, shop_names\ndef enrich(e):\n    return {**e, 'shop': shop_names.NAMES[e['shop']]}"
    )
    assert function.results(b'{"shop":1,"n":1.5}') == [b'{"shop":"north","n":1.5}']


@pytest.mark.parametrize(
    ("expression", "results"),
    [
        ("event", [b'{"k":"\xc3\xa9","n":[1,null]}']),
        ("None", []),
        ("[]", []),
        ("[{'a': 1}, {}]", [b'{"a":1}', b"{}"]),
        ("{'t': (1, 2), 3: True}", [b'{"t":[1,2],"3":true}']),
    ],
)
def test_each_event_that_a_function_returns_becomes_a_record(
    tmp_path: Path, expression: str, results: list[bytes]
) -> None:
    assert returning(tmp_path, expression).results('{"k": "é", "n": [1, null]}'.encode()) == results


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("event['shop']", "KeyError: 'shop' (enrich.py, line 2)"),
        ("exit()", "SystemExit: None (enrich.py, line 2)"),
        ("(_ for _ in ()).throw(KeyboardInterrupt)", "KeyboardInterrupt (enrich.py, line 2)"),
        ("(_ for _ in ()).throw(__import__('asyncio').CancelledError())", "asyncio.exceptions.CancelledError"),
        ("1", "enrich of enrich.py returned int; return an event (dict), a list of events, or None"),
        ("(event, event)", "enrich of enrich.py returned tuple"),
        ("[event, 'x']", "enrich of enrich.py returned str"),
        ("{'a': {1}}", "enrich of enrich.py returned an event that is no JSON: TypeError: Object of type set"),
        ("{'a': float('nan')}", "enrich of enrich.py returned an event that is no JSON: ValueError: Out of range"),
        ("{'a': '\\ud800'}", "enrich of enrich.py returned an event that is no JSON: UnicodeEncodeError"),
        (f"{{'a': 'x' * {MAX_EVENT_BYTES}}}", "enrich of enrich.py returned an event of 1,048,584 bytes; at most"),
    ],
)
def test_a_failure_is_a_verdict_with_the_last_line_of_the_trace(tmp_path: Path, expression: str, told: str) -> None:
    function = returning(tmp_path, expression)
    with pytest.raises(InvalidEvent) as verdict:
        function.results(b"{}")
    assert (str(verdict.value.reason), verdict.value.field) == ("transform_failed", None)
    assert verdict.value.detail.startswith(told)
    assert function.busy_since is None


def test_the_line_of_the_users_file_is_named_not_that_of_a_library(tmp_path: Path) -> None:
    function = loaded(tmp_path, "import json\n\ndef enrich(event):\n    return json.loads(event['body'])\n")
    with pytest.raises(InvalidEvent) as verdict:
        function.results(b'{"body": "{"}')
    assert verdict.value.detail.startswith("json.decoder.JSONDecodeError: Expecting property name")
    assert verdict.value.detail.endswith("(enrich.py, line 4)")


@pytest.mark.parametrize("raw", [b"", b"[]", b"3", b"{", b"\xff{}", b'{"a": NaN}', b"[" * 100_000, b"\xef\xbb\xbf{}"])
def test_what_is_no_event_is_not_given_to_the_function(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(NotAnEvent):
        returning(tmp_path, "1 / 0").results(raw)


def test_records_keep_key_and_headers(tmp_path: Path) -> None:
    rewriter = Rewriter(returning(tmp_path, "[event, event]"))
    found = rewriter.rewrite(b'{"a":1}', b"key", [("h", b"1"), ("n", None)], ORIGIN)
    assert found.outcome == "staged"
    kept = [("h", b"1"), ("n", None), (ORIGIN_HEADER, ORIGIN.encode())]
    assert [(one.value, one.key, one.headers) for one in found.records] == [(b'{"a":1}', b"key", kept)] * 2
    assert read_origin(kept) == ORIGIN


def test_what_fails_is_marked_and_what_has_no_event_is_passed_on(tmp_path: Path) -> None:
    rewriter = Rewriter(returning(tmp_path, "1 / 0"))
    (failed,) = rewriter.rewrite(b'{"a":1}', None, None, ORIGIN).records
    assert failed.value == QUARANTINE_PREFIX + b'{"a":1}'
    assert dict(failed.headers)["reason"] == b"transform_failed"
    assert dict(failed.headers)["detail"] == b"ZeroDivisionError: division by zero (enrich.py, line 2)"
    for value in (None, b"no JSON", QUARANTINE_PREFIX + b"{}"):
        (passed,) = rewriter.rewrite(value, None, None, ORIGIN).records
        assert (passed.value, [name for name, _ in passed.headers]) == (value, [ORIGIN_HEADER])


@pytest.mark.parametrize(("value", "headers"), [(b"x" * (3 * MAX_EVENT_BYTES), []), (b"{}", [("h", b"x" * 2_300_000)])])
def test_a_record_that_kafka_would_refuse_is_cut(
    tmp_path: Path, value: bytes, headers: list[tuple[str, bytes | None]]
) -> None:
    (cut,) = Rewriter(returning(tmp_path, "event")).rewrite(value, None, headers, ORIGIN).records
    assert cut.value is not None
    assert cut.value.startswith(QUARANTINE_PREFIX)
    assert len(cut.value) < 100_000
    assert dict(cut.headers)["reason"] in (b"too_large", b"transform_failed")


def test_a_processor_sees_the_time_and_the_headers_of_the_source(tmp_path: Path) -> None:
    def message(headers: Any) -> StagedMessage:
        parts = {"key": b"k", "value": b"{}", "partition": 2, "offset": 9, "timestamp": (1, 5), "headers": headers}
        return StagedMessage(SimpleNamespace(**{name: lambda part=part: part for name, part in parts.items()}))

    seen = message([("h", b"1"), (ORIGIN_HEADER, ORIGIN.encode())])
    assert (seen.headers(), seen.timestamp(), seen.offset()) == ([("h", b"1")], (1, ORIGIN.time_ms), 9)
    for headers in (None, [("h", b"1")], [(ORIGIN_HEADER, b"x")]):
        assert message(headers).timestamp() == (1, 5)


def test_the_example_enriches_each_item_of_an_order() -> None:
    folder = Path(__file__).parents[3] / "crds" / "examples" / "events"
    function = UserFunction(folder / "enrich.py", "enrich")
    function.load()
    order = {"order_id": "o1", "at": "2026-03-01T12:00:00Z", "country": "SE"}
    items = [{"sku": "a", "quantity": 2, "price": 1.5}, {"sku": "b", "quantity": 1, "price": 4}]
    found = [json.loads(raw) for raw in function.results(json.dumps({**order, "items": items}).encode())]
    assert [(one["region"], one["sku"], one["turnover"]) for one in found] == [("north", "a", 3.0), ("north", "b", 4)]
    assert function.results(b'{"test": true}') == []


def test_a_call_that_does_not_return_is_named_with_its_line(tmp_path: Path) -> None:
    end = tmp_path / "end"
    wait = "def enrich(event):\n    while not END.exists():\n        pass\n"
    text = f"import pathlib\nEND = pathlib.Path({str(end)!r})\n\n{wait}"
    watches: list[Watch] = []

    def call() -> None:
        function = loaded(tmp_path, text)
        watches.append(Watch(function, cast(Any, None), cast(Any, None), str, lambda: None))
        function.results(b"{}")

    thread = threading.Thread(target=call)
    thread.start()
    told = eventually(lambda: watches and watches[0].hangs_for(0.05), what="the call is seen", seconds=20)
    assert re.fullmatch(r"enrich of enrich\.py has not returned for 0 s \(enrich\.py, line [56]\)", str(told))
    assert watches[0].hangs == ""
    end.touch()
    thread.join(10)
    assert watches[0].hangs_for(0.0) == ""


def test_a_changed_file_is_noticed_and_one_that_is_gone_for_a_moment_is_not(tmp_path: Path) -> None:
    function, changes = returning(tmp_path, "event"), Counter[str]()
    watch = Watch(function, cast(Any, None), cast(Any, None), str, lambda: changes.update(["changed"]))
    for text, seen in ((None, 0), (b"def enrich(event):\n    return event\n", 0), (b"", 1)):
        function.path.unlink() if text is None else function.path.write_bytes(text)
        watch.look_at_file()
        assert changes.total() == seen


def test_a_changed_file_that_was_imported_is_noticed(tmp_path: Path) -> None:
    helper, changes = tmp_path / "shop_regions.py", Counter[str]()
    helper.write_text("NAMES = {1: 'north'}")
    (tmp_path / "other_shops.py").write_text("")
    function = loaded(tmp_path, "import shop_regions\ndef enrich(event):\n    return event\n")
    assert function.imported == [helper]
    watch = Watch(function, cast(Any, None), cast(Any, None), str, lambda: changes.update(["changed"]))
    for text, seen in ((helper.read_text(), 0), (None, 0), ("NAMES = {1: 'south'}", 1)):
        helper.unlink() if text is None else helper.write_text(text)
        watch.look_at_file()
        assert changes.total() == seen


def test_an_edit_replaces_a_process_whose_function_does_not_return(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = Counter[str]()
    monkeypatch.setattr(stage_main, "replace_process", lambda: replaced.update(["replaced"]))
    stage = object.__new__(stage_main.Stage)
    stage.function, stage.reloads = cast(Any, SimpleNamespace(path="enrich.py")), False
    monkeypatch.setattr(stage, "stop", lambda: None)
    for hangs, seen in (("", 0), ("enrich of enrich.py has not returned for 31 s", 1)):
        stage.watch = cast(Any, SimpleNamespace(hangs=hangs))
        stage._reload()
        assert (stage.reloads, replaced.total()) == (True, seen)
