"""Tests of `tidemill send`: its requests, output and exit codes. Ingest is a small HTTP server of the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tidemill_operator.cli.main import main

SPEC = """\
apiVersion: tidemill.dev/v1alpha1
kind: AnalyticsPipeline
metadata: {name: orders, namespace: shop}
spec:
  source: {fields: [{name: amount, type: number, path: Betrag}, {name: missing, type: string}]}
  aggregations: [{name: all, window: {type: tumbling, size: 1m}, metrics: [{name: events, function: count}]}]
"""


class Ingest(BaseHTTPRequestHandler):
    """A server that accepts events, and refuses events with a text as amount."""

    received: list[str]

    def do_POST(self) -> None:
        lines = self.rfile.read(int(self.headers["content-length"])).decode().split("\n")
        self.received += lines
        bad = [{"index": n, "status": "quarantined", "code": "mistyped", "field": "amount"}
               for n, line in enumerate(lines) if isinstance(json.loads(line).get("Betrag"), str)]  # fmt: skip
        is_known = self.path == "/v1/pipelines/orders/events"
        answer = {"accepted": len(lines) - len(bad), "quarantined": len(bad), "retry": 0, "results": bad}
        body = json.dumps(answer if is_known else {"code": "pipeline_not_found", "detail": "there is none"}).encode()
        self.send_response(200 if is_known else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Ingest, "received", [], raising=False)
    Path("orders.yaml").write_text(SPEC)
    Path("orders.csv").write_text("Betrag;other\n12,5;x\n1.000,5;y\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ingest)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_csv_is_sent_by_the_fields_of_the_pipeline(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The output names columns without a field, and fields without a column."""
    options = ["--pipeline", "orders", "--url", url, "--spec", "orders.yaml"]
    assert main(["send", "-f", "orders.csv", *options]) == 0
    assert Ingest.received == ['{"Betrag":12.5}', '{"Betrag":1000.5}']
    printed = capsys.readouterr()
    assert "orders.csv: sent 2 events to orders in " in printed.out
    assert "2 accepted, 0 refused" in printed.out
    assert "columns that no field reads are left out: other\nfields that no column fills: missing\n" in printed.err


def test_dead_letters_are_exit_code_3(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("orders.csv").write_text("Betrag\n12,5\nviel\n")
    assert main(["send", "-f", "orders.csv", "--pipeline", "orders", "--url", url, "--spec", "orders.yaml"]) == 3
    assert '  line 3: mistyped, field amount: "viel"\n' in capsys.readouterr().out


def test_an_unknown_pipeline_is_exit_code_1(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.ndjson").write_text("{}\n")
    assert main(["send", "-f", "a.ndjson", "--pipeline", "others", "--url", url]) == 1
    printed = capsys.readouterr()
    assert "404 pipeline_not_found: there is none; check --pipeline and --url" in printed.err
    assert "0 accepted, 0 refused" in printed.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-f", "orders.csv"], 1, "start it with `tidemill up -f FILE`, or give the URL of ingest with --url"),
        (["-f", "orders.csv", "--url", "http://x"], 2, "--url needs --pipeline NAME too"),
        (["-f", "orders.csv", "--url", "http://x", "--pipeline", "orders"], 2, "name its YAML: --spec FILE"),
        (["-f", "orders.csv", "--rate", "0"], 2, "--rate 0: write a number of events above 0"),
        (["-f", "orders.csv", "--workers", "0"], 2, "--workers 0: write 1 to 32"),
        (["-f", "-", "--resume", "p"], 2, "--resume: a pipe cannot be read again"),
        (["-f", "none.csv", "--url", "http://x", "--pipeline", "o"], 1, "none.csv: cannot be read"),
        (["-f", "orders.csv", "--url", "http://x", "--pipeline", "o", "--spec", "orders.yaml"], 1, "no pipeline 'o'"),
    ],
)
@pytest.mark.usefixtures("url")
def test_refusals_name_the_remedy(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["send", *arguments]) == code
    assert words in capsys.readouterr().err
