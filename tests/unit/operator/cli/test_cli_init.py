"""Tests of `tidemill init`: its output, its file and its refusals."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tidemill_operator.cli.main import main

CSV = "Nr;Datum;Land;Betrag\n1;31.12.2025 14:05;DE;12,50\n2;31.12.2025 14:06;AT;1.012,50\n3;31.12.2025 14:07;DE;\n"


@pytest.fixture(autouse=True)
def working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIDEMILL_KAFKA_BROKERS", raising=False)
    Path("orders.csv").write_bytes(b"\xef\xbb\xbf" + CSV.encode())


def test_the_draft_is_printed_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--from", "orders.csv", "--zone", "Europe/Berlin"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "# Drafted by `tidemill init` from all 3 events of orders.csv: "
        'CSV, delimiter ";", UTF-8 with a byte order mark, decimal comma.\n'
    )
    datum = 'name: datum, type: timestamp, path: Datum, format: "%d.%m.%Y %H:%M", zone: Europe/Berlin, required: true'
    assert f"- {{{datum}}}" in text
    assert "{name: betrag, type: number, path: Betrag}  # 12,50 · 1.012,50; 1 without a value" in text
    assert "#   tidemill send -f orders.csv --pipeline orders" in text


def test_the_output_is_valid_and_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    """Writing the same draft again is no error."""
    for _ in range(2):
        assert main(["init", "--from", "orders.csv", "--output", "o.yaml", "--name", "shop"]) == 0
    assert main(["validate", "o.yaml"]) == 0
    assert "metadata: {name: shop}" in Path("o.yaml").read_text()
    Path("o.yaml").write_text("mine")
    assert main(["init", "--from", "orders.csv", "--output", "o.yaml"]) == 1
    assert "o.yaml exists, and differs from the new draft; name another --output" in capsys.readouterr().err
    assert Path("o.yaml").read_text() == "mine"


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(CSV.encode()))

    monkeypatch.setattr("sys.stdin", Stdin)
    assert main(["init", "--from", "-"]) == 0
    assert "of standard input: CSV" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--from", "none.csv"], 1, "none.csv: there is no such file; check the path"),
        (["--from", "."], 1, ". is a folder; name a file in it"),
        (["--from", "shop.orders"], 1, "set TIDEMILL_KAFKA_BROKERS to host:port"),
        (["--from", "head.csv"], 1, "head.csv has no event; name a file or topic with at least one"),
        (["--from", "empty.csv"], 1, "empty.csv is empty"),
        (["--from", "orders.csv", "--zone", "Mars"], 2, "--zone Mars: is not a time zone"),
        (["--from", "orders.csv", "--delimiter", "::"], 2, "--delimiter '::': write one character, or tab"),
        (["--from", "orders.csv", "--encoding", "x"], 1, "--encoding x: there is no such encoding"),
        (["--from", "orders.csv", "--name", "Not A Name"], 2, "--name Not A Name"),
        (["--from", "-", "--run"], 2, "--run cannot read a pipe twice"),
    ],
)
def test_refusals_name_the_remedy(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("head.csv").write_text("a,b\n")
    Path("empty.csv").write_text("")
    assert main(["init", *arguments]) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (None, 2, "TIDEMILL_KAFKA_CONFIG: client.json does not contain a JSON object"),
        ('{"security.protocol": "tls"}', 1, "correct the setting in the file that TIDEMILL_KAFKA_CONFIG names"),
    ],
    ids=["no such file", "no such protocol"],
)
def test_wrong_settings_of_kafkas_client_are_named(
    settings: str | None, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEMILL_KAFKA_BROKERS", "127.0.0.1:1")
    monkeypatch.setenv("TIDEMILL_KAFKA_CONFIG", "client.json")
    if settings is not None:
        Path("client.json").write_text(settings)
    assert main(["init", "--from", "shop.orders"]) == code
    assert words in capsys.readouterr().err
