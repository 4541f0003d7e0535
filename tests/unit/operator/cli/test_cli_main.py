"""Tests of the command line: help, exit codes, and errors as messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill_operator.cli.main import SUBCOMMANDS, build_parser, main


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: tidemill {command}" in capsys.readouterr().out


def test_the_help_lists_all_commands() -> None:
    help_text = build_parser().format_help()
    assert [command for command in SUBCOMMANDS if f"tidemill {command}" not in help_text] == []


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["up"]], ids=["no command", "an unknown one", "a file is missing"]
)
def test_wrong_use_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: tidemill" in capsys.readouterr().err


def test_a_failing_command_prints_a_message_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tidemill status` without a running `up` ends with exit code 1. The remedy is on stderr."""
    assert main(["status", "--data-dir", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "start it with `tidemill up -f FILE`" in printed.err


def test_a_wrong_setting_stops_up_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the variable, and no data folder is created."""
    monkeypatch.setenv("TIDEMILL_DEFAULT_PARTITIONS", "many")
    assert main(["up", "-f", str(tmp_path / "a.yaml"), "--data-dir", str(tmp_path / "data")]) == 1
    assert "TIDEMILL_DEFAULT_PARTITIONS" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
