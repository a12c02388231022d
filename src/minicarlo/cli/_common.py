"""What the verbs share: the --json option, progress on standard error, numbers for people."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np

Progress = Callable[[int, int], None]
"""Called with (done, total); library functions take one and never print."""


class NotedProgress(Protocol):
    """A Progress that may be called with a note as well: what is being done."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


_JSON = "minicarlo.json"
_SECONDS_BETWEEN_LINES = 10.0


def _remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    ctx.meta[_JSON] = value
    return value


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_remember,
    is_eager=True,
    help="Print the result as one JSON object and nothing else.",
)
"""Decorator: adds --json, passed to the command as `as_json`; progress is then silent."""


def json_wanted() -> bool:
    """Whether the running command was called with --json."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx is not None and ctx.meta.get(_JSON))


def print_json(value: Any) -> None:  # noqa: ANN401
    """Print one JSON object to standard output; NumPy, paths, dataclasses become plain values, NaN becomes null."""
    click.echo(json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def to_plain(value: Any) -> Any:  # noqa: ANN401
    """`value` in terms of what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: to_plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"{type(value).__name__} has no place in JSON")


@contextmanager
def progress_bar(title: str, *, unit: str = "", rate: bool = False) -> Iterator[NotedProgress]:
    """A callable (done, total) that shows progress on standard error, with `rate` also how many per second.

    A bar on a terminal, a line now and then elsewhere, nothing with --json.
    """
    if json_wanted():
        yield lambda done, total, note="": None
    elif sys.stderr.isatty():
        with _bar(title, unit, rate) as update:
            yield update
    else:
        yield _lines(title, unit, rate)


@contextmanager
def _bar(title: str, unit: str, rate: bool) -> Iterator[NotedProgress]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[unit]}", markup=False),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=None, unit=unit)
        per_second = _Rate(unit if rate else None)

        def update(done: int, total: int, note: str = "") -> None:
            shown = f"{title}: {note}" if note else title
            bars.update(task, completed=done, total=total, unit=f"{unit}{per_second(done)}", description=shown)

        yield update


def _lines(title: str, unit: str, rate: bool) -> NotedProgress:
    last = time.monotonic()
    per_second = _Rate(unit if rate else None)

    def update(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now, speed = time.monotonic(), per_second(done)
        if now - last >= _SECONDS_BETWEEN_LINES or (total and done >= total):
            last = now
            left = per_second.left(done, total) if speed else ""
            click.echo(f"{title}: {done:,} of {total:,}{' ' * bool(unit)}{unit}{speed}{left}{'; ' * bool(note)}{note}", err=True)

    return update


class _Rate:
    """Called with the number done, the text ", 12.3 showers/s": the mean since the first call."""

    def __init__(self, unit: str | None) -> None:
        self._unit = unit
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int) -> str:
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        started, before = self._first
        if self._unit is None or done <= before or now <= started:
            return ""
        return f", {format_number((done - before) / (now - started))} {self._unit}/s"

    def left(self, done: int, total: int) -> str:
        """The text ", 5 min 2 s left" at the mean rate, nothing at the end or before the first is done."""
        if self._first is None or not self._first[1] < done < total:
            return ""
        started, before = self._first
        return f", {format_seconds((time.monotonic() - started) / (done - before) * (total - done))} left"


def say(message: str) -> None:
    """A remark on standard error; silent with --json."""
    if not json_wanted():
        click.echo(message, err=True)


def table(rows: list[tuple[str, ...]], header: tuple[str, ...] | None = None) -> str:
    """Columns aligned for a terminal: the first to the left, the others to the right."""
    every = ([header] if header else []) + rows
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    lines = []
    for row in every:
        first, *others = (f"{cell:{'>' if column else '<'}{widths[column]}}" for column, cell in enumerate(row))
        lines.append("  ".join([first, *others]).rstrip())
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def key_values(pairs: Mapping[str, object]) -> str:
    """One "key  value" per line, aligned."""
    width = max(map(len, pairs), default=0)
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in pairs.items())


def format_count(number: int) -> str:
    """1234567 -> 1,234,567."""
    return f"{number:,}"


def format_number(value: float | None, digits: int = 3) -> str:
    """A number to `digits` significant digits, "-" for none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def format_with_error(value: float | None, error: float | None) -> str:
    """A value and its error to two digits of the error: 0.0531 +- 0.0012."""
    if value is None or not math.isfinite(value):
        return "-"
    if error is None or not math.isfinite(error) or error <= 0:
        return format_number(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} +- {error:.{decimals}f}"


def format_seconds(seconds: float) -> str:
    """0.0123 -> 12.3 ms, 75 -> 1 min 15 s, 7260 -> 2 h 1 min."""
    if seconds < 1:
        return f"{format_number(seconds * 1e3)} ms"
    if seconds < 60:
        return f"{format_number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_rate(events_per_second: float) -> str:
    """Events per second."""
    return f"{format_number(events_per_second)} events/s"


def format_bytes(size: float) -> str:
    """1536 -> 1.5 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
