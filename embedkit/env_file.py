"""
Read a .env file strictly, and edit one variable of it in place.

What a value means is left to python-dotenv's parser, without interpolation. This module adds where each assignment
stands, refuses what dotenv would skip with a warning, and replaces nothing but the value that was asked for: comments,
order, the spelling of other lines, line endings, byte order mark, symlink and permissions stay.

A write happens under a lock file beside the real file. On POSIX it is removed while the lock is still held: a waiter
that finds its own lock without a name takes a new one. On Windows filelock removes it. So nothing is left beside the
.env for anybody to commit.

It never reads or changes the environment of the process, and no message of it shows a value: a .env holds secrets.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import attrs
from dotenv.parser import parse_stream
from filelock import FileLock, Timeout

from embedkit.errors import ConfigError, SettingError

LOCK_TIMEOUT_S = 10.0

_NEWLINE = re.compile(r"\r\n|\n|\r")
_INNER_NEWLINE = re.compile(r"(\r\n|\n|\r(?!\n))(?=.)", re.DOTALL)
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UNWRITABLE = re.compile("[\n\r\0\ud800-\udfff]")
_PLAIN = re.compile(r"[\w@%+=:,./-]*")  # means itself to dotenv and to a shell
_ASSIGNMENT = re.compile(
    r"(?:export[^\S\r\n]+)?(?P<key>'[^']+'|(?!')[^=#\s]+)[^\S\r\n]*=(?P<gap>[^\S\r\n]*)"
    r"""(?P<quoted>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")?""",
    re.DOTALL,
)


@attrs.frozen(kw_only=True)
class EnvEntry:
    """
    Hold the value of a variable and where it stands.

    Attributes:
        value: The value, unquoted; nothing in it was expanded.

        line: The line of the assignment, counted from 1.
    """

    value: str = attrs.field(repr=False)
    line: int


@attrs.frozen(kw_only=True)
class EnvChange:
    """
    Say what an edit did, or would do.

    Attributes:
        key: The variable.

        old: Its value before; None where it had none.

        new: Its value after; None where it was commented out. Equal to `old` where there was nothing to do.

        path: The file, as the caller named it.

        line: The line of the assignment, counted from 1.
    """

    key: str
    old: str | None = attrs.field(repr=False)
    new: str | None = attrs.field(repr=False)
    path: Path
    line: int


@attrs.frozen(kw_only=True)
class _Assignment:
    key: str
    value: str
    line: int
    start: int  # these four are offsets into the text: the statement, and the value as it is spelled
    end: int
    value_start: int
    value_end: int


_Change = TypeVar("_Change", bound=EnvChange | None)
# What a text would become: the change, texts to choose from, and the assignments that the chosen one must have.
_Plan = Callable[[str], tuple[_Change, Iterable[str], list[tuple[str, str]]]]


def read_env_file(path: Path) -> dict[str, EnvEntry]:
    """
    Read every variable of a .env file; `${X}` and a quoted `#` are kept as they stand.

    Args:
        path: The file, in UTF-8 with or without a byte order mark. One that does not exist has no variables.

    Returns:
        The entries by key. The last assignment of a repeated key counts; a key without `=` is no assignment.

    Raises:
        ConfigError: The file cannot be read or decoded, or some line cannot be parsed; every such line is named.
    """
    # As when a file is opened as text: a line break inside a quoted value is one "\n" however the file spells it.
    text = _NEWLINE.sub("\n", _load(path))
    return {found.key: EnvEntry(value=found.value, line=found.line) for found in _parse(path, text)}


def set_variable(
    path: Path, key: str, value: str, *, dry_run: bool = False, timeout_s: float = LOCK_TIMEOUT_S
) -> EnvChange:
    """
    Set one variable of a .env file, in place and atomically, and change nothing else.

    Of a repeated key the last assignment is edited: it is the one that counts. A new key is appended, and a new file
    is readable by its owner only. Quotes are written only around what is no plain word to dotenv or to a shell.

    Args:
        path: The file; through a symlink its target is written.

        key: A letter or underscore, then letters, digits and underscores.

        value: Anything without line breaks and NUL; reading it back gives the same.

        dry_run: Only say what would change.

        timeout_s: How many seconds to wait for another process that is writing.

    Returns:
        The change; nothing was written where the value is already the one asked for.

    Raises:
        SettingError: The key or the value cannot be written so that it reads back the same.

        ConfigError: The file does not parse, cannot be written, or stays locked; it was left as it is.
    """
    if refused := _UNWRITABLE.search(value):
        raise SettingError(
            f"The value for {key} contains {refused[0]!r}, which {path} cannot hold.",
            hint="give a value of one line of valid Unicode",
        )

    def plan(text: str) -> tuple[EnvChange, Iterable[str], list[tuple[str, str]]]:
        found = _parse(path, text)
        last = next((one for one in reversed(found) if one.key == key), None)
        pairs = [(one.key, value if one is last else one.value) for one in found]
        if last:
            change = EnvChange(key=key, old=last.value, new=value, path=path, line=last.line)
            if last.value == value:
                return change, [text], pairs
            before, after = text[: last.value_start], text[last.value_end :]
        else:
            newline = match[0] if (match := _NEWLINE.search(text)) else "\n"
            ends_open = text.lstrip("\ufeff") != "" and not text.endswith(("\n", "\r"))
            before, after = (text + newline, "") if ends_open else (text, newline)
            change = EnvChange(key=key, old=None, new=value, path=path, line=1 + len(_NEWLINE.findall(before)))
            before += f"{key}="
            pairs.append((key, value))
        return change, (before + spelling + after for spelling in _spellings(value)), pairs

    return _edit(path, key, plan, dry_run=dry_run, timeout_s=timeout_s)


def comment_out(path: Path, key: str, *, dry_run: bool = False, timeout_s: float = LOCK_TIMEOUT_S) -> EnvChange | None:
    """
    Put `# ` before every assignment of one variable of a .env file, in place and atomically.

    Args:
        path: The file; through a symlink its target is written.

        key: The variable.

        dry_run: Only say what would change.

        timeout_s: How many seconds to wait for another process that is writing.

    Returns:
        The change, with the value that counted and its line; None where the file has no such variable.

    Raises:
        SettingError: The key is no name of a variable.

        ConfigError: The file does not parse, cannot be written, or stays locked; it was left as it is.
    """

    def plan(text: str) -> tuple[EnvChange | None, Iterable[str], list[tuple[str, str]]]:
        found = _parse(path, text)
        change, edited = None, text
        for one in reversed(found):
            if one.key == key:
                change = change or EnvChange(key=key, old=one.value, new=None, path=path, line=one.line)
                commented = "# " + _INNER_NEWLINE.sub(r"\1# ", text[one.start : one.end])
                edited = edited[: one.start] + commented + edited[one.end :]
        return change, [edited], [(one.key, one.value) for one in found if one.key != key]

    return _edit(path, key, plan, dry_run=dry_run, timeout_s=timeout_s)


def _load(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        # Windows calls opening a directory a lack of permission.
        is_directory = os.path.isdir(path)  # noqa: PTH112 - Path.is_dir may raise where this says False
        what = "is a directory, not a file" if is_directory else f"cannot be read: {error.strerror}"
        raise ConfigError(f"{path} {what}.", hint="name a readable file in EMBEDKIT_ENV_FILE") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        hint = "save the file as UTF-8"
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ConfigError(f"{path} is UTF-16, not UTF-8.", hint=hint) from error
        line = 1 + len(_NEWLINE.findall(data[: error.start].decode("utf-8")))
        raise ConfigError(
            f"{path} is not UTF-8: line {line} contains the byte 0x{data[error.start]:02x}.",
            origin=f"{path}:{line}",
            hint=hint,
        ) from error


def _parse(path: Path, text: str) -> list[_Assignment]:
    found, faults = _scan(text)
    if (nul := text.find("\0")) >= 0:
        faults.append((1 + len(_NEWLINE.findall(text, 0, nul)), "it contains a NUL byte", "save the file as UTF-8"))
    if faults:
        raise ConfigError.combine(
            [
                ConfigError(f"Line {line} of {path} cannot be read: {reason}.", origin=f"{path}:{line}", hint=hint)
                for line, reason, hint in sorted(faults)
            ]
        )
    return found


def _scan(text: str) -> tuple[list[_Assignment], list[tuple[int, str, str]]]:
    """Give the assignments of *text* in order, and each fault as line, reason and hint."""
    found: list[_Assignment] = []
    faults: list[tuple[int, str, str]] = []
    offset = counted = len(text) - len(text.lstrip("\ufeff"))
    line = 1
    for binding in parse_stream(io.StringIO(text[offset:])):
        offset += len(binding.original.string)
        start = offset - len(binding.original.string.lstrip())
        # dotenv's own line is that of the blank lines before, and counts a CRLF twice after a line it could not parse.
        line += len(_NEWLINE.findall(text, counted, start))
        counted = start
        shape = _ASSIGNMENT.match(text, start)
        opening = text[shape.end("gap") : shape.end("gap") + 1] if shape else ""
        if opening in {"'", '"'} and shape and shape["quoted"] is None:
            reason = f"the quote that opens the value of {shape['key']} is never closed"
            faults.append((line, reason, f"close it with {opening}"))
        elif binding.error and shape and shape["quoted"]:
            reason = f"something follows the closing quote of {shape['key']}"
            faults.append((line, reason, "begin a comment with ' #', or put the whole value in quotes"))
        elif binding.error:
            faults.append((line, "it is neither NAME=value nor a comment", "begin a comment with '#'"))
        elif binding.key is not None and binding.value is not None and shape:
            if shape["quoted"] is not None:
                value_start, value_end = shape.span("quoted")
            else:
                # An empty value stands right behind the "=": the gap still parts it from a comment once it is set.
                value_start = shape.end("gap") if binding.value else shape.start("gap")
                value_end = value_start + len(binding.value)
            found.append(
                _Assignment(
                    key=binding.key,
                    value=binding.value,
                    line=line,
                    start=start,
                    end=offset,
                    value_start=value_start,
                    value_end=value_end,
                )
            )
    return found, faults


def _spellings(value: str) -> Iterator[str]:
    if _PLAIN.fullmatch(value):
        yield value
    yield f"'{value}'"
    yield '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _edit(path: Path, key: str, plan: _Plan[_Change], *, dry_run: bool, timeout_s: float) -> _Change:
    if not _KEY.fullmatch(key):
        raise SettingError(
            f"{key!r} cannot name a variable in {path}.",
            hint="use letters, digits and underscores, and no digit first, as in EMBEDDING_PROFILE",
        )

    def carry_out(text: str) -> tuple[_Change, str]:
        change, candidates, pairs = plan(text)
        for candidate in candidates:
            found, faults = _scan(candidate)
            if not faults and pairs == [(one.key, one.value) for one in found]:
                return change, candidate
        raise SettingError(
            f"{key} cannot be changed in {path} so that everything reads back as it should.",
            hint=f"edit {path} by hand, or set {key} in the environment",
        )

    try:
        real = Path(os.path.realpath(path))
        if real.exists() and not real.is_file():
            raise ConfigError(f"{path} is a directory, a pipe or a device, and cannot be edited in place.")
        text = _load(path)
        change, edited = carry_out(text)
        if dry_run or edited == text:
            return change
        with _locked(real, timeout_s):
            text = _load(path)
            change, edited = carry_out(text)  # again: another process may have written before the lock was ours
            if edited != text:
                _replace(real, edited.encode("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}. It was left as it is.",
            hint="check the permissions of its directory and the space on the disk",
        ) from error
    return change


@contextmanager
def _locked(real: Path, timeout_s: float) -> Iterator[None]:
    real.parent.stat()  # raises where there is no such directory: filelock would make it
    lock = real.with_name(f"{real.name}.embedkit-lock")
    try:
        with FileLock(lock, timeout=timeout_s):
            try:
                yield
            finally:
                if os.name == "posix":
                    lock.unlink(missing_ok=True)
    except Timeout as error:
        raise ConfigError(
            f"{real} is being written by another process: no lock on {lock} within {timeout_s:g} s.",
            hint="wait for that process, or stop it",
        ) from error


def _replace(real: Path, data: bytes) -> None:
    """Put *data* in the place of *real*, whole or not at all; call it under the lock."""
    existing = real.stat() if real.exists() else None
    if existing and not os.access(real, os.W_OK):
        raise ConfigError(f"{real} is write-protected.", hint="make it writable for this user first")
    # One fixed name: what a killed writer left behind is taken away by the next.
    temporary = real.with_name(f"{real.name}.embedkit-tmp")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            if existing:
                _copy_access(real, existing, temporary)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(real)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):
        # The new file is in place and whole; a file system that cannot sync a directory is no reason to fail.
        with suppress(OSError):
            directory = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)


def _copy_access(real: Path, existing: os.stat_result, temporary: Path) -> None:
    if hasattr(os, "chown"):
        for user, group in ((-1, existing.st_gid), (existing.st_uid, -1)):
            with suppress(OSError):
                os.chown(temporary, user, group)
    shutil.copystat(real, temporary)
    if temporary.stat().st_gid != existing.st_gid:
        # The group could not be kept, and what the old group might read is not for another.
        temporary.chmod(stat.S_IMODE(existing.st_mode) & ~stat.S_IRWXG)
