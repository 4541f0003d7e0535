"""Tests of the Python stage without servers: the user's file and function, and the records that it writes."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tidemill_contract.events.fields import MAX_EVENT_BYTES
from tidemill_contract.events.invalid_events import QUARANTINE_PREFIX, InvalidEvent
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig, WorkloadSettings
from tidemill_contract.stage_records import ORIGIN_HEADER, Origin, read_origin
from tidemill_operator.processes.child import start_time
from tidemill_processor.source.stage_topic import StagedMessage
from tidemill_processor.stage.__main__ import Stage
from tidemill_processor.stage.application import StageApplication
from tidemill_processor.stage.attempts import Attempts, RecordPosition
from tidemill_processor.stage.calls import Call, CallClock, CallMemory
from tidemill_processor.stage.checks import StageChecks
from tidemill_processor.stage.function import LoadError, UserFunction
from tidemill_processor.stage.rewriting import Rewriter
from tidemill_processor.stage.worker_process import WorkerProcess
from waiting import eventually

CONFIG = PipelineConfig(
    namespace="shop",
    name="orders",
    generation=1,
    spec=PipelineSpec.model_validate(
        {
            "source": {"fields": [{"name": "shop", "type": "string"}]},
            "transform": {
                "python": {"configMap": "enrich", "file": "enrich.py", "function": "enrich", "timeout": "1s"}
            },
            "aggregations": [
                {
                    "name": "all",
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
        }
    ),
    aggregations=(AggregationRef(name="all"),),
)
ORIGIN = Origin("tW/f+1/x", 7, 1_700_000_000_000)  # The id is base64 with slashes.


def loaded(folder: Path, text: str, name: str = "enrich") -> UserFunction:
    (folder / "enrich.py").write_text(text)
    function = UserFunction(folder / "enrich.py", name)
    function.load()
    return function


def returning(folder: Path, expression: str) -> UserFunction:
    return loaded(folder, f"def enrich(event):\n    return {expression}\n")


@pytest.mark.parametrize(
    ("text", "message"),
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
def test_an_error_says_why_a_file_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LoadError) as error:
        loaded(tmp_path, text)
    assert str(error.value).startswith(message)


def test_an_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"there is no file enrich\.py in .*; add it, or correct spec\.transform\.py"):
        UserFunction(tmp_path / "enrich.py", "enrich").load()


def test_a_file_may_import_neighbouring_modules_which_never_replace_pythons_modules(tmp_path: Path) -> None:
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
    ("expression", "detail"),
    [
        ("event['shop']", "KeyError: 'shop' (enrich.py, line 2)"),
        ("exit()", "SystemExit: None (enrich.py, line 2)"),
        ("(_ for _ in ()).throw(KeyboardInterrupt)", "KeyboardInterrupt (enrich.py, line 2)"),
        ("(_ for _ in ()).throw(__import__('asyncio').CancelledError())", "asyncio.exceptions.CancelledError"),
        ("1", "enrich of enrich.py returned int; return an event (dict), a list of events, or None"),
        ("(event, event)", "enrich of enrich.py returned tuple"),
        ("[event, 'x']", "enrich of enrich.py returned a list with str; a list may contain only events"),
        ("[event, None]", "enrich of enrich.py returned a list with NoneType; a list may contain only events (dict);"),
        ("{'a': {1}}", "enrich of enrich.py returned an event that is not valid JSON: TypeError: Object of type set"),
        (
            "{'a': float('nan')}",
            "enrich of enrich.py returned an event that is not valid JSON: ValueError: Out of range",
        ),
        ("{'a': '\\ud800'}", "enrich of enrich.py returned an event that is not valid JSON: UnicodeEncodeError"),
        (f"{{'a': 'x' * {MAX_EVENT_BYTES}}}", "enrich of enrich.py returned an event of 1,048,584 bytes; at most"),
    ],
)
def test_a_failed_call_gives_the_last_line_of_its_trace(tmp_path: Path, expression: str, detail: str) -> None:
    function = returning(tmp_path, expression)
    with pytest.raises(InvalidEvent) as verdict:
        function.results(b"{}")
    assert (str(verdict.value.reason), verdict.value.field) == ("transform_failed", None)
    assert verdict.value.detail.startswith(detail)


def test_a_failed_call_names_the_line_of_the_users_file_not_of_a_library(tmp_path: Path) -> None:
    function = loaded(tmp_path, "import json\n\ndef enrich(event):\n    return json.loads(event['body'])\n")
    with pytest.raises(InvalidEvent) as verdict:
        function.results(b'{"body": "{"}')
    assert verdict.value.detail.startswith("json.decoder.JSONDecodeError: Expecting property name")
    assert verdict.value.detail.endswith("(enrich.py, line 4)")


NOT_EVENTS = {
    b"": "not_json",
    b"[]": "not_an_object",
    b"3": "not_an_object",
    b"{": "not_json",
    b"\xff{}": "not_json",
    b'{"a": NaN}': "not_json",
    b"[" * 100_000: "not_json",
    b"\xef\xbb\xbf{}": "not_json",
    # Processors skip members that no field reads, and would count these two events.
    b'{"a": 1, "x": "\xff"}': "not_json",
    b'{"a": 1, "x": %b}' % (b"9" * 5_000): "transform_failed",
}


@pytest.mark.parametrize(("raw", "reason"), NOT_EVENTS.items(), ids=range(len(NOT_EVENTS)))
def test_a_record_that_python_cannot_read_is_refused(tmp_path: Path, raw: bytes, reason: str) -> None:
    (written,) = Rewriter(returning(tmp_path, "1 / 0")).rewrite(raw, b"key", None, ORIGIN).records
    assert written.value == QUARANTINE_PREFIX + raw
    assert dict(written.headers)["reason"] == reason.encode()


@pytest.mark.parametrize("returned", ["Odd(a=1)", "[Odd(a=1)]", "Many([event])"])
def test_a_returned_object_whose_methods_fail_is_refused(tmp_path: Path, returned: str) -> None:
    code = (
        "class Odd(dict):\n    def items(self):\n        raise KeyError('items')\n"
        "class Many(list):\n    def __iter__(self):\n        raise KeyError('iter')\n"
        f"def enrich(event):\n    return {returned}\n"
    )
    with pytest.raises(InvalidEvent, match=r"transform_failed.*KeyError"):
        loaded(tmp_path, code).results(b'{"a": 1}')


def test_written_records_keep_key_and_headers(tmp_path: Path) -> None:
    rewriter = Rewriter(returning(tmp_path, "[event, event]"))
    written = rewriter.rewrite(b'{"a":1}', b"key", [("h", b"1"), ("n", None)], ORIGIN)
    assert written.outcome == "staged"
    kept = [("h", b"1"), ("n", None), (ORIGIN_HEADER, ORIGIN.encode())]
    assert [(r.value, r.key, r.headers) for r in written.records] == [(b'{"a":1}', b"key", kept)] * 2
    assert read_origin(kept) == ORIGIN


def test_failed_records_are_marked_and_records_that_ingest_refused_are_passed_on(tmp_path: Path) -> None:
    rewriter = Rewriter(returning(tmp_path, "1 / 0"))
    (failed,) = rewriter.rewrite(b'{"a":1}', None, None, ORIGIN).records
    assert failed.value == QUARANTINE_PREFIX + b'{"a":1}'
    assert dict(failed.headers)["reason"] == b"transform_failed"
    assert dict(failed.headers)["detail"] == b"ZeroDivisionError: division by zero (enrich.py, line 2)"
    for value in (None, QUARANTINE_PREFIX + b"{}"):
        (passed,) = rewriter.rewrite(value, None, None, ORIGIN).records
        assert (passed.value, [name for name, _ in passed.headers]) == (value, [ORIGIN_HEADER])


@pytest.mark.parametrize(("value", "headers"), [(b"x" * (3 * MAX_EVENT_BYTES), []), (b"{}", [("h", b"x" * 2_300_000)])])
def test_a_record_that_is_too_large_for_kafka_is_cut(
    tmp_path: Path, value: bytes, headers: list[tuple[str, bytes | None]]
) -> None:
    (cut,) = Rewriter(returning(tmp_path, "event")).rewrite(value, None, headers, ORIGIN).records
    assert cut.value is not None
    assert cut.value.startswith(QUARANTINE_PREFIX)
    assert len(cut.value) < 100_000
    assert dict(cut.headers)["reason"] in (b"too_large", b"transform_failed")


def test_a_processor_reads_the_time_and_headers_of_the_source_record(tmp_path: Path) -> None:
    def message(headers: Any) -> StagedMessage:
        parts = {"key": b"k", "value": b"{}", "partition": 2, "offset": 9, "timestamp": (1, 5), "headers": headers}
        return StagedMessage(SimpleNamespace(**{name: lambda part=part: part for name, part in parts.items()}))

    seen = message([("h", b"1"), (ORIGIN_HEADER, ORIGIN.encode())])
    assert (seen.headers(), seen.timestamp(), seen.offset()) == ([("h", b"1")], (1, ORIGIN.time_ms), 9)
    for headers in (None, [("h", b"1")], [(ORIGIN_HEADER, b"x")]):
        assert message(headers).timestamp() == (1, 5)


def test_the_example_function_enriches_each_item_of_an_order() -> None:
    folder = Path(__file__).parents[4] / "crds" / "examples" / "events"
    function = UserFunction(folder / "enrich.py", "enrich")
    function.load()
    order = {"order_id": "o1", "at": "2026-03-01T12:00:00Z", "country": "SE"}
    items = [{"sku": "a", "quantity": 2, "price": 1.5}, {"sku": "b", "quantity": 1, "price": 4}]
    events = [json.loads(raw) for raw in function.results(json.dumps({**order, "items": items}).encode())]
    assert [(e["region"], e["sku"], e["turnover"]) for e in events] == [("north", "a", 3.0), ("north", "b", 4)]
    assert function.results(b'{"test": true}') == []


def test_a_record_that_the_stage_gives_up_is_refused_with_the_reason(tmp_path: Path) -> None:
    rewriter = Rewriter(returning(tmp_path, "1 / 0"))
    (record,) = rewriter.refuse(b'{"a":1}', b"k", [("h", b"1")], ORIGIN, why="enrich of enrich.py ran for 30 s").records
    assert (record.value, record.key) == (QUARANTINE_PREFIX + b'{"a":1}', b"k")
    headers = dict(record.headers)
    assert (headers["reason"], headers["detail"]) == (b"transform_failed", b"enrich of enrich.py ran for 30 s")


def test_a_call_in_shared_memory_is_visible_through_another_descriptor() -> None:
    stage = CallMemory()
    worker = CallMemory(os.dup(stage.descriptor))
    assert (stage.call.is_running, stage.call.is_import) == (False, True)
    worker.begin(3, 1042)
    assert (stage.call.is_running, stage.call.partition, stage.call.offset) == (True, 3, 1042)
    worker.end()
    assert (stage.call.is_running, stage.call.offset) == (False, 1042)
    worker.close()
    stage.close()


def test_the_age_of_a_call_grows_by_at_most_a_second_between_looks() -> None:
    clock = CallClock(1.0)
    first, ended, second = Call(1, 0, 7), Call(2, 0, 7), Call(3, 0, 8)
    seen = [(first, 10.0), (first, 10.5), (first, 900.0), (ended, 900.5), (second, 901.0), (second, 901.5)]
    assert [clock.seconds(call, now) for call, now in seen] == [0.0, 0.5, 1.5, 0.0, 0.0, 0.5]


def test_a_record_is_given_up_after_three_attempts_and_retried_after_an_edit() -> None:
    attempts, place, other = Attempts(), RecordPosition("t", 3, 1042), RecordPosition("t", 3, 1043)
    messages = [attempts.record_failure(at, "it ran for 30 s") for at in (place, other, place, place)]
    assert [text.partition(";")[0] for text in messages] == ["attempt 1 of 3", "attempt 1 of 3"] + [
        f"attempt {number} of 3" for number in (2, 3)
    ]
    assert attempts.given_up == {place: "it ran for 30 s, as in 2 attempts before"}
    attempts.forget()
    assert attempts.given_up == {}
    assert attempts.record_failure(other, "it ran for 30 s").startswith("attempt 1 of 3")


@pytest.mark.parametrize(("partitions", "each"), [(1, 300), (150, 2)])
def test_each_of_many_hanging_records_is_given_up_after_three_attempts(partitions: int, each: int) -> None:
    """All records are in one transaction, which each hang aborts. A record that is given up is committed at once."""
    attempts, committed, ended = Attempts(), dict.fromkeys(range(partitions), 0), 0
    while min(committed.values()) < each:
        stage, at = object.__new__(StageApplication), dict(committed)
        stage._given_up = {(position.partition, position.offset): why for position, why in attempts.given_up.items()}
        stage._context = cast(Any, SimpleNamespace(commit_checkpoint=lambda at=at, **_: committed.update(at)))
        for partition in random.Random(ended).sample(range(partitions), partitions):
            while (partition, offset := at[partition]) in stage._given_up:
                at[partition] += 1
                stage._on_processed("events", partition, offset)
            if offset < each:
                attempts.record_failure(RecordPosition("t", partition, offset), "it ran for 1 s")
                ended += 1
                break
        assert ended <= 3 * partitions * each
    assert len(attempts.given_up) <= partitions


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("while True:\n    pass\n", id="python"),
        # The regular expression holds Python's lock, which stops all other threads of the process.
        pytest.param("import re\nre.match('(a+)+$', 'a' * 64 + 'b')\n", id="holding-the-lock"),
    ],
)
def test_an_import_that_hangs_is_reported_and_killed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "enrich.py").write_text(text)
    (tmp_path / "orders.json").write_text(CONFIG.to_json())
    environment = {"PIPELINE": "orders", "CONFIG_DIR": tmp_path, "STAGE_DIR": tmp_path, "KAFKA_BROKERS": "127.0.0.1:9"}
    for name, value in environment.items():
        monkeypatch.setenv(f"TIDEMILL_{name}", str(value))
    stage = Stage(WorkloadSettings.from_env())
    thread = threading.Thread(target=stage.run)
    thread.start()
    try:
        message = eventually(lambda: stage.wait_reason, what="the import is reported", seconds=60)
        assert re.fullmatch(
            r"the import of enrich\.py ran for 1 s \(enrich\.py, line [12]\); it is imported again", message
        )
        assert (stage.health()[0], stage.ready(), stage.live()) == (503, False, True)
        (tmp_path / "enrich.py").write_text("def enrich(event):\n    return event\n")
        eventually(lambda: stage.health()[1]["dependencies"]["function"]["status"] == "up" or None, what="loaded")
    finally:
        stage.stop()
        thread.join(30)
    assert not thread.is_alive()


FORKS = """
import multiprocessing, os, pathlib, subprocess, time

ended = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
ended.start()
ended.terminate()
ended.join()  # SIGTERM must end the process. A copied handler of the worker would ignore it.
pids = [subprocess.Popen(["sleep", "600"]).pid, os.fork()]
if not pids[-1]:
    time.sleep(600)
pathlib.Path(__file__).with_name("pids").write_text(" ".join(map(str, pids)) + " end")
"""


@pytest.mark.parametrize("last", ["while True: pass", "os._exit(3)"])
def test_processes_that_a_function_starts_are_killed_with_the_worker(
    last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "enrich.py").write_text(FORKS + last)
    (tmp_path / "orders.json").write_text(CONFIG.to_json())
    environment = {"PIPELINE": "orders", "CONFIG_DIR": tmp_path, "STAGE_DIR": tmp_path, "KAFKA_BROKERS": "127.0.0.1:9"}
    for name, value in environment.items():
        monkeypatch.setenv(f"TIDEMILL_{name}", str(value))
    worker, pids = WorkerProcess({}, lambda _: None), tmp_path / "pids"
    try:
        eventually(
            lambda: pids.exists() and pids.read_text().endswith("end"), what="the function has forked", seconds=30
        )
        eventually(lambda: worker.exit_code == 3 or worker.call.is_running, what="the worker hangs or has ended")
        began = time.monotonic()
    finally:
        worker.kill()
    assert time.monotonic() - began < 3  # A process that lives on does not block the reader of the reports.
    assert not worker._reader.is_alive()
    for pid in pids.read_text().split()[:-1]:
        eventually(lambda pid=pid: start_time(int(pid)) is None, what=f"process {pid} has ended", seconds=3)


def file_checks(file: Path, changes: Counter[str]) -> StageChecks:
    none = cast(Any, None)
    return StageChecks(file, none, none, wait_reason=str, on_change=lambda: changes.update(["changed"]))


def test_a_changed_file_is_detected_and_a_missing_file_is_ignored(tmp_path: Path) -> None:
    function, changes = returning(tmp_path, "event"), Counter[str]()
    checks = file_checks(function.path, changes)
    for text, count in ((None, 0), (b"def enrich(event):\n    return event\n", 0), (b"", 1)):
        function.path.unlink() if text is None else function.path.write_bytes(text)
        checks.check_file()
        assert changes.total() == count


def test_a_change_of_an_imported_module_is_detected(tmp_path: Path) -> None:
    helper, changes = tmp_path / "shop_regions.py", Counter[str]()
    helper.write_text("NAMES = {1: 'north'}")
    (tmp_path / "other_shops.py").write_text("")
    function = loaded(tmp_path, "import shop_regions\ndef enrich(event):\n    return event\n")
    assert function.imported == [helper]
    checks = file_checks(function.path, changes)
    checks.imported = (helper,)
    checks.check_file()
    for text, count in ((helper.read_text(), 0), (None, 0), ("NAMES = {1: 'south'}", 1)):
        helper.unlink() if text is None else helper.write_text(text)
        checks.check_file()
        assert changes.total() == count
