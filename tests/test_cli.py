from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from minicarlo import __version__
from minicarlo.cli import _VERBS, _common, main
from minicarlo.cli._common import json_option, print_json, progress_bar
from minicarlo.errors import InvalidEventSet


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Put a function in the place of the verb `info`."""

    def install(function: Callable[[], None]) -> None:
        @click.command()
        @json_option
        def command(as_json: bool) -> None:
            function()

        module = types.ModuleType("minicarlo.cli.info")
        module.command = command
        monkeypatch.setitem(sys.modules, "minicarlo.cli.info", module)

    return install


def raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


def test_help_lists_every_verb_without_importing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _VERBS:
        monkeypatch.setitem(sys.modules, f"minicarlo.cli.{name}", None)
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert all(
        name in result.output for name in ("simulate", "train", "tune", "generate", "validate", "bench", "report", "info", "demo")
    )


def test_the_version_is_the_package_s() -> None:
    assert CliRunner().invoke(main, ["--version"]).output.strip() == f"minicarlo, version {__version__}"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_mistake_is_one_paragraph_on_standard_error_with_code_2(verb: Callable[..., None], options: list[str]) -> None:
    verb(raising(InvalidEventSet("Event set a.h5\x1b[31m\nis damaged. " + "Copy it again. " * 20)))
    result = CliRunner().invoke(main, ["info", *options])
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("Error: Event set a.h5 [31m is damaged. Copy it")
    assert "\x1b" not in result.stderr and "Traceback" not in result.stderr and "\n\n" not in result.stderr
    assert max(map(len, result.stderr.splitlines())) <= 100


def test_an_interrupt_ends_with_130(verb: Callable[..., None]) -> None:
    verb(raising(KeyboardInterrupt()))
    result = CliRunner().invoke(main, ["info"])
    assert result.exit_code == 130 and result.stdout == "" and result.stderr == "Stopped.\n"


def test_a_fault_of_ours_is_not_hidden(verb: Callable[..., None]) -> None:
    verb(raising(RuntimeError("ours")))
    assert isinstance(CliRunner().invoke(main, ["info"]).exception, RuntimeError)


def test_a_missing_optional_module_names_the_extra(verb: Callable[..., None]) -> None:
    verb(raising(ModuleNotFoundError("No module named 'torch'", name="torch")))
    result = CliRunner().invoke(main, ["info"])
    assert result.exit_code == 2 and "pip install 'minicarlo[train]'" in result.stderr


def test_a_missing_verb_and_an_unknown_verb_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_VERBS, "nothing", "A verb without a module.")
    result = CliRunner().invoke(main, ["nothing"])
    assert result.exit_code == 2 and "The verb nothing is not part of this installation" in result.stderr
    result = CliRunner().invoke(main, ["dance"])
    assert result.exit_code == 2 and "No such command 'dance'" in result.stderr


@dataclass
class Result:
    path: Path
    values: np.ndarray
    rate: float


def test_json_is_one_object_and_progress_is_silent(verb: Callable[..., None]) -> None:
    def function() -> None:
        with progress_bar("Working") as progress:
            progress(10, 10)
        _common.say("a remark")
        print_json({"result": Result(Path("a.h5"), np.float32([1, np.nan]), np.inf), "count": np.int64(3), "none": None})

    verb(function)
    result = CliRunner().invoke(main, ["info", "--json"])
    assert result.exit_code == 0 and result.stderr == ""
    expected = {"result": {"path": "a.h5", "values": [1.0, None], "rate": None}, "count": 3, "none": None}
    assert json.loads(result.stdout) == expected


def test_progress_away_from_a_terminal_is_a_line_now_and_then(verb: Callable[..., None]) -> None:
    def function() -> None:
        with progress_bar("Generating", unit="events") as progress:
            for done in range(1, 1001):
                progress(done, 1000)

    verb(function)
    result = CliRunner().invoke(main, ["info"])
    assert result.stdout == "" and result.stderr == "Generating: 1,000 of 1,000 events\n"


def test_progress_on_a_terminal_is_a_bar_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar("Generating") as progress:
        progress(3, 7)
    output = capfd.readouterr()
    assert output.out == "" and "Generating" in output.err and "3/7" in output.err


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (_common.format_seconds, 0.0123, "12.3 ms"),
        (_common.format_seconds, 59.9, "59.9 s"),
        (_common.format_seconds, 75, "1 min 15 s"),
        (_common.format_seconds, 7260, "2 h 1 min"),
        (_common.format_count, 1234567, "1,234,567"),
        (_common.format_number, 1234.5, "1,234"),
        (_common.format_number, 0.053123, "0.0531"),
        (_common.format_number, None, "-"),
        (_common.format_rate, 5230.4, "5,230 events/s"),
        (_common.format_bytes, 1536, "1.5 KiB"),
        (_common.format_bytes, 3 * 2**40, "3.0 TiB"),
    ],
)
def test_numbers_are_written_for_people(function: Callable[[float], str], value: float, text: str) -> None:
    assert function(value) == text


def test_values_are_given_to_two_digits_of_their_error() -> None:
    assert _common.format_with_error(0.05312, 0.00123) == "0.0531 +- 0.0012"
    assert _common.format_with_error(1234.4, 56) == "1234 +- 56"
    assert _common.format_with_error(1.5, None) == "1.5"


def test_tables_align_names_left_and_numbers_right() -> None:
    lines = _common.table([("a", "1"), ("long name", "100")], ("name", "n")).splitlines()
    assert lines == ["name         n", "---------  ---", "a            1", "long name  100"]
    assert _common.table([]) == ""
    assert _common.key_values({"a": 1, "long": "x"}) == "a     1\nlong  x"
