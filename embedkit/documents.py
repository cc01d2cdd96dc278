"""
Read texts out of files (one a line, a field of JSON lines, a column of CSV, a whole file), and find text files.

Owns file formats and encodings: everything is UTF-8, and what is not is refused by file and line. Embeds nothing and
prints nothing.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import attrs

from embedkit.errors import InputError
from embedkit.options import find_nearest, show_value

STDIN = "-"
"""The path that stands for standard input."""

_SNIFFED_BYTES = 8192
_LONGEST_CELL = 16 * 2**20
_SKIPPED_DIRECTORIES = frozenset({"__pycache__", "node_modules"})
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_logger = logging.getLogger("embedkit")


@attrs.frozen
class Document:
    """
    Keep a text together with the place where it stands.

    Attributes:
        text: As in the file; only the line ending is taken off where a text is one line.

        source: The path as it was given; "-" for standard input.

        line: Where it starts; the first line is 1.
    """

    text: str
    source: str
    line: int


def read_lines(path: str | os.PathLike[str], *, stdin: BinaryIO | None = None) -> Iterator[Document]:
    """
    Read one text a line; blank lines are nothing to embed and are left out.

    Args:
        path: A file of UTF-8 text, with or without a byte order mark; "-" for standard input.

        stdin: What "-" reads; None: the process's own standard input.

    Yields:
        The line without its ending and otherwise as it is, so with leading and trailing white space.

    Raises:
        InputError: The file cannot be opened, or a line is not UTF-8 text; what was yielded before stays good.
    """
    with _open(path, stdin) as (source, stream):
        for number, line in _decode_lines(stream, source):
            if line.strip():
                yield Document(line.removesuffix("\n").removesuffix("\r"), source, number)


def read_jsonl(path: str | os.PathLike[str], field: str, *, stdin: BinaryIO | None = None) -> Iterator[Document]:
    """
    Read one field of JSON lines: one object on each line; blank lines are left out.

    Args:
        path: As for `read_lines`.

        field: The name of a field that is a string in every object.

        stdin: As for `read_lines`.

    Yields:
        The field of each object, blank ones too: whether a record without a text is a fault is for the embedder's
            `on_error` to say.

    Raises:
        InputError: As for `read_lines`; or a line is no JSON object, lacks the field, or has no string there.
    """
    with _open(path, stdin) as (source, stream):
        for number, line in _decode_lines(stream, source):
            if line.strip():
                yield Document(_take_field(line, field, _locate(source, number)), source, number)


def read_csv(path: str | os.PathLike[str], column: str, *, stdin: BinaryIO | None = None) -> Iterator[Document]:
    """
    Read one column of CSV with a header; a cell may span lines, and an empty row is left out.

    Args:
        path: As for `read_lines`. Commas separate cells, or the semicolons or tabs that some spreadsheets write.

        column: A name that stands in the header.

        stdin: As for `read_lines`.

    Yields:
        The cell of each row, blank ones too: see `read_jsonl`.

    Raises:
        InputError: As for `read_lines`; or there is no such column, a row is too short to have it, or a quote is wrong.
    """
    with _open(path, stdin) as (source, stream):
        rows = _split_rows((line for _, line in _decode_lines(stream, source)), column, source)
        first_line, header = next(rows, (1, []))
        index = _find_column(header, column, _locate(source, first_line))
        for number, row in rows:
            if len(row) <= index:
                raise InputError(
                    f"This row has {len(row)} of {len(header)} columns and none for {show_value(column)}.",
                    origin=_locate(source, number),
                    hint="complete the row, or delete it",
                )
            yield Document(row[index], source, number)


def read_whole(path: str | os.PathLike[str], *, stdin: BinaryIO | None = None) -> Document:
    """
    Read a whole file as one text.

    Args:
        path: As for `read_lines`.

        stdin: As for `read_lines`.

    Returns:
        The text as it is in the file, line endings included; only a byte order mark is taken off.

    Raises:
        InputError: The file cannot be opened, or is not UTF-8 text.
    """
    with _open(path, stdin) as (source, stream):
        return Document(_decode(stream.read().removeprefix(codecs.BOM_UTF8), source, 1), source, 1)


def find_text_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """
    Find the text files that are named, or lie below the directories that are named.

    Args:
        paths: A file is taken as it is; so is "-". A directory is walked in sorted order, without what is hidden,
            `__pycache__`, `node_modules`, virtual environments, links to directories, and files that do not begin like
            UTF-8 text.

    Returns:
        Each file once, in the order of *paths*.

    Raises:
        InputError: A path does not exist or cannot be looked at.
    """
    tops = [Path(path) for path in paths]
    try:
        missing = [str(top) for top in tops if str(top) != STDIN and not top.exists()]
    except OSError as error:
        raise _refuse(error.filename, error) from error
    if missing:
        raise InputError(
            f"There is no file or directory {', '.join(missing)}.",
            hint=f"check the spelling; a relative path starts at {Path.cwd()}",
        )
    found: dict[str, Path] = {}
    for top in tops:
        for file in _walk(top) if top.is_dir() else [top]:
            found.setdefault(STDIN if str(file) == STDIN else os.path.realpath(file), file)
    return list(found.values())


@contextmanager
def _open(path: str | os.PathLike[str], stdin: BinaryIO | None) -> Iterator[tuple[str, BinaryIO]]:
    source = os.fspath(path)
    if source == STDIN:
        yield source, stdin or sys.stdin.buffer
        return
    try:
        # Windows would call a directory a lack of permission.
        stream = None if Path(source).is_dir() else Path(source).open("rb")  # noqa: SIM115  # closed below
    except (OSError, ValueError) as error:
        raise _refuse(source, error) from error
    if stream is None:
        raise InputError(
            f"{source} is a directory, where a file is due.", hint=f"name files, such as {Path(source, '*.txt')}"
        )
    with stream:
        yield source, stream


def _refuse(source: str, error: OSError | ValueError) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return InputError(f"{source} cannot be read: {reason}.", hint="name a readable file, or - for standard input")


def _decode_lines(stream: BinaryIO, source: str) -> Iterator[tuple[int, str]]:
    # Lines are cut as bytes: a fault has an exact line, and U+2028 or a form feed inside a text does not end it.
    for number, line in enumerate(stream, start=1):
        yield number, _decode(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, source, number)


def _decode(content: bytes, source: str, first_line: int) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        at = error.start
    else:
        if "\0" not in text:
            return text
        at = content.index(b"\0")
    line = content.count(b"\n", 0, at) + first_line
    column = at - content.rfind(b"\n", 0, at)
    if content[at] == 0 or content.startswith(_UTF_16_MARKS):
        problem, encoding = "binary or UTF-16", "UTF-16"
    else:
        problem, encoding = "not UTF-8", "LATIN1"
    raise InputError(
        f"{_describe(source)} is {problem}; only UTF-8 is read: byte {column} of line {line} is 0x{content[at]:02x}.",
        origin=_locate(source, line),
        hint=f"leave it out, or convert it first: iconv -f {encoding} -t UTF-8 {shlex.quote(source)} > converted.txt",
    )


def _take_field(line: str, field: str, origin: str) -> str:
    try:
        record = json.loads(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"This is not JSON: {error.msg} at character {error.colno}.",
            origin=origin,
            hint="write one JSON object on each line",
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"This JSON cannot be read: {error}.", origin=origin, hint="write a plain object") from error
    if not isinstance(record, dict):
        hint = 'write {"text": "…"} on each line'
        raise InputError(f"This is no JSON object: {show_value(record)}.", origin=origin, hint=hint)
    if field not in record:
        hint = _suggest(field, record, "fields")
        raise InputError(f"There is no field {show_value(field)}.", origin=origin, hint=hint)
    text = record[field]
    if not isinstance(text, str):
        raise InputError(
            f"The field {show_value(field)} must be a string, not {show_value(text)}.",
            origin=origin,
            hint="write a string, or delete the line",
        )
    return text


def _split_rows(lines: Iterator[str], column: str, source: str) -> Iterator[tuple[int, list[str]]]:
    # The standard library's limit is one for the process and 128 kB, which articles exceed. Some limit must be: an
    # unclosed quote would read the rest of the file into one cell.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    first = next(lines, "")
    number = 1
    try:
        separator = next((mark for mark in ",;\t" if column in next(csv.reader([first], delimiter=mark), [])), ",")
        reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
        for row in reader:
            if row:
                yield number, row
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"The row that starts here is not CSV: {error}.",
            origin=_locate(source, number),
            hint='close each quote, write a quote inside a cell twice (""), and end lines as Windows or Unix does',
        ) from error


def _find_column(header: list[str], column: str, origin: str) -> int:
    if column not in header:
        hint = _suggest(column, header, "columns")
        raise InputError(f"There is no column {show_value(column)}.", origin=origin, hint=hint)
    if header.count(column) > 1:
        raise InputError(
            f"The column {show_value(column)} stands {header.count(column)} times in the header.",
            origin=origin,
            hint="give each column its own name",
        )
    return header.index(column)


def _suggest(name: str, known: Iterable[str], kind: str) -> str:
    known = list(known)
    listed = f"{kind}: {', '.join(known) or 'none'}"
    nearest = find_nearest(name, known)
    return f"did you mean {nearest}? {listed}" if nearest else listed


def _locate(source: str, line: int) -> str:
    return f"{_describe(source)}:{line}"


def _describe(source: str) -> str:
    return "<stdin>" if source == STDIN else source


def _walk(top: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for directory, directories, files in os.walk(top, onerror=_warn_unreadable):
        # os.walk goes round in circles through a Windows junction.
        real = os.path.realpath(directory)
        is_environment = "pyvenv.cfg" in files and Path(directory) != top
        if real in seen or is_environment:
            directories.clear()
            continue
        seen.add(real)
        kept = (name for name in directories if name not in _SKIPPED_DIRECTORIES and not name.startswith("."))
        directories[:] = sorted(kept)
        for name in sorted(files):
            path = Path(directory, name)
            if not name.startswith(".") and _begins_like_text(path):
                yield path


def _begins_like_text(path: Path) -> bool:
    # A named pipe would block whoever opens it.
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            start = stream.read(_SNIFFED_BYTES)
    except OSError as error:
        _warn_unreadable(error)
        return False
    try:
        # A character may be cut in two by the end of what was read.
        codecs.getincrementaldecoder("utf-8")().decode(start, final=len(start) < _SNIFFED_BYTES)
    except UnicodeDecodeError:
        return False
    return b"\0" not in start


def _warn_unreadable(error: OSError) -> None:
    _logger.warning("%s was left out: %s", error.filename, error.strerror)
