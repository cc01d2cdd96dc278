"""
What the commands print: tables, JSON, progress bars, and what they say on stderr.

Owns the two streams: data goes to stdout, talk to stderr. Knows no profile and no plugin. rich is imported only by what
draws on a terminal.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import click

from embedkit.options import Secret, show_value

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn
    from rich.text import Text

DELAY_S = 2.0
"""What takes less time than this draws no bar."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SECRET_KEY = re.compile(
    r"(^|[_-])(api_?key|key|token|secret|passw(or)?d|credentials?|auth(orization)?|bearer|cookie)(_env)?$",
    re.IGNORECASE,
)


def prepare_streams() -> None:
    """Make stdout and stderr show "?" for what they cannot encode, as on a Windows console of one code page."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def can_ask() -> bool:
    """Whether somebody sits at a terminal, to answer a question."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def say(message: str) -> None:
    """Print talk, which is for people and goes to stderr."""
    # Not click.echo: it would write past the stream that a bar puts in the place of stderr.
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def warn(message: str) -> None:
    """Say what somebody should know before going on."""
    say(f"warning: {message}")


class WarningHandler(logging.Handler):
    """Says what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say one record on today's stderr, for a bar may have put itself before it."""
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def print_json(value: object) -> None:
    """Print JSON; in ASCII, which every console and pipe can take."""
    click.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """
    Print a table: folded to its width on a terminal, else one line a row.

    Args:
        columns: Their headings.

        rows: Cells, as many as there are columns; a line break is one on a terminal, and a colon else.
    """
    cleaned = [[make_printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        lines = [list(columns), *([cell.replace("\n", ": ") for cell in row] for row in cleaned)]
        widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
        for line in lines:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in cleaned:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def make_printable(text: str) -> str:
    """Put a visible sign for control characters: a file may hold escape sequences that would steer the terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def describe_setting(value: object) -> str:
    """Write a setting's value for people; a secret by its variable's name."""
    if isinstance(value, Secret):
        return f"{value.variable} ({'set' if value.is_set else 'not set'})"
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    # Quotes show what the eye would miss: nothing, a line break, a space at an end.
    plain = isinstance(value, str) and value.isprintable() and value.strip() == value != ""
    return mask_user(str(value) if plain else show_value(value))


def mask_user(text: str) -> str:
    """Hide user and password in the URLs of a text."""
    return _USER_INFO.sub("***", text)


def mask_raw_option(key: str, value: object) -> object:
    """
    Hide the value of an option that nothing is known of but its name, unless it can only be a variable's name.

    In a table, such as one of HTTP headers, each key is looked at in turn; users and passwords in URLs are hidden too.
    """
    if _SECRET_KEY.search(key) and not (key.endswith("_env") and isinstance(value, str) and value.isidentifier()):
        return "***"
    if isinstance(value, Mapping):
        return {inner: mask_raw_option(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_raw_option("", item) for item in value]
    return mask_user(value) if isinstance(value, str) else value


def format_bytes(n_bytes: int) -> str:
    """Write a size as model hubs do, in powers of ten."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:  # noqa: PLR2004  # a thousand
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


class Progress:
    """
    Draw a bar on stderr, with rate and time left, once the work has taken two seconds; nothing where nobody looks.

    Args:
        doing: What is being done.

        total: How many there are; None while that is unknown.

        unit: What is counted.

        delay_s: How many seconds to wait before drawing.
    """

    def __init__(
        self,
        doing: str,
        *,
        total: int | None = None,
        unit: Literal["texts", "bytes"] = "texts",
        delay_s: float = DELAY_S,
    ) -> None:
        self._doing = doing
        self._total = total
        self._unit = unit
        self._n_done = 0
        self._bar: Bar | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(delay_s, self._draw)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            # A timer, for the first two seconds may all be spent inside one call.
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.stop()

    def begin(self, doing: str, total: int | None = None) -> None:
        """Go over to the next piece of work."""
        with self._lock:
            self._doing, self._total, self._n_done = doing, total, 0
            if self._bar is not None:
                # A reset would keep the old total where the new one is unknown.
                self._bar.remove_task(self._bar.task_ids[0])
                self._bar.add_task(doing, total=total)

    def advance(self, n: int) -> None:
        """Count *n* more as done."""
        with self._lock:
            self._n_done += n
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=self._n_done)

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bar

        bar = Bar(
            *_list_columns(self._unit),
            console=Console(stderr=True),
            transient=True,
            # What is piped must not be led through the bar's own stream.
            redirect_stdout=sys.stdout.isatty(),
        )
        with self._lock:
            if self._closed:
                return
            bar.add_task(self._doing, total=self._total, completed=self._n_done)
            bar.start()
            self._bar = bar


def _list_columns(unit: Literal["texts", "bytes"]) -> list[ProgressColumn]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class CountColumn(ProgressColumn):
        """Shows how many are done, and how many in a second."""

        def render(self, task: Any) -> Text:  # noqa: ANN401  # rich's own
            if not task.completed and task.total is None:
                return Text()
            of_total = "" if task.total is None else f"/{task.total:,.0f}"
            rate = f"  {task.speed:,.0f} {unit}/s" if task.speed else ""
            return Text(f"{task.completed:,.0f}{of_total} {unit}{rate}")

    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(bar_width=20)]
    columns += [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [CountColumn()]
    return [*columns, TimeRemainingColumn(compact=True)]
