"""`embedkit embed`: turn texts from files into vectors, in a file or as JSON lines."""

from __future__ import annotations

import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Protocol

import attrs
import click
import numpy as np

from embedkit.api import get_embedder
from embedkit.cli import output
from embedkit.cli.arguments import device_option, find_registry, profile_option
from embedkit.errors import EmbedkitError, IncompleteError, InputError
from embedkit.space import Space, require_same_space
from embedkit.vectors import (
    Embeddings,
    Vectors,
    compute_cosines,
    format_header,
    format_rows,
    join,
    read_end,
    read_vectors,
    require_vector_file,
    write_vectors,
)

if TYPE_CHECKING:
    from embedkit.documents import Document
    from embedkit.embedder import Embedder

_N_SHOWN = 5
"""So many places are named in a message."""

_SAME = 0.98
"""A text's vector, made again, is nearer than this to the one in the file, on any hardware and in any precision."""


@click.command(
    "embed",
    short_help="Embed texts into a vector file or JSON lines.",
    help="""
    Embed texts from FILES, or from standard input, which is also called "-".

    A text is one line, unless --jsonl, --csv or --whole says otherwise. Vectors go to the file of -o: .npz is compact,
    .jsonl has one vector a line and is written as it goes. Without -o they are JSON lines on stdout; on a terminal,
    just the first numbers of each.

    A vector file carries its space, and each vector the position of its text, counted from 0 over all FILES;
    embedkit.read_vectors() reads it back. After an interruption or a failure what is done is kept: the same command
    with --resume goes on (texts that were skipped stay so). An existing file is replaced only with --force.

    A text that cannot be embedded, such as a blank field, ends the work, unless --on-error skip: then each is reported,
    and the exit code is still 0. Blank lines are no texts.
    """,
    epilog="""
    \b
    Examples:
      embedkit embed notes.txt -o notes.npz
      embedkit embed articles.jsonl --jsonl body -o articles.jsonl
      embedkit embed goods.csv --csv title -o goods.npz --on-error skip
      embedkit embed docs --whole -o docs.npz
      echo "how do I switch models" | embedkit embed --query
    """,
)
@click.argument("files", nargs=-1, metavar="[FILES | -]...", type=click.Path())
@click.option("--jsonl", "field", metavar="FIELD", help="FILES are JSON lines; embed this field of each object.")
@click.option("--csv", "column", metavar="COLUMN", help="FILES are CSV with a header; embed this column.")
@click.option("--whole", is_flag=True, help="Each file is one text; directories are searched for text files.")
@click.option(
    "-o",
    "--output",
    "target",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write a vector file: .npz or .jsonl.",
)
@click.option("--resume", is_flag=True, help="Go on with the file of -o where it ends.")
@click.option("--force", is_flag=True, help="Replace the file of -o.")
@click.option("--query", is_flag=True, help="Embed the texts as queries, not as documents.")
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="What to do with a text that cannot be embedded.",
)
@profile_option
@device_option
def embed(
    *,
    files: tuple[str, ...],
    field: str | None,
    column: str | None,
    whole: bool,
    target: Path | None,
    resume: bool,
    force: bool,
    query: bool,
    on_error: Literal["raise", "skip"],
    profile: str | None,
    device: str | None,
) -> None:
    """Embed texts from files."""
    read = _choose_reader(field, column, whole=whole)
    paths = _choose_files(files, whole=whole)
    sink = _choose_sink(target, resume=resume, force=force)
    with (
        get_embedder(profile, device=device, registry=find_registry()) as embedder,
        output.Progress("reading") as progress,
    ):
        # Counting also finds what is wrong with a file before hours of work, not after.
        n_texts = _count(read, paths)
        progress.begin("loading the model")
        embedder.load()
        documents = (document for path in paths for document in read(path))
        work = _Work(embedder, sink, progress, is_query=query, on_error=on_error)
        n_done = sink.begin(embedder.space)
        _require_same_input(work, documents, n_done, sink.last)
        progress.begin("embedding", None if n_texts is None else n_texts - n_done)
        try:
            work.run(documents, n_done)
        except KeyboardInterrupt:
            sink.close()
            output.say(f"Interrupted. {work.describe_kept()}")
            raise click.exceptions.Exit(130) from None
        except EmbedkitError:
            sink.close()
            if work.n_done and target is not None:
                output.say(work.describe_kept())
            raise
        sink.finish(embedder.space)
        space = embedder.space
    work.report(space)


class _Work:
    """Embeds a stream of documents into a sink, and keeps count."""

    def __init__(
        self,
        embedder: Embedder,
        sink: _Sink,
        progress: output.Progress,
        *,
        is_query: bool,
        on_error: Literal["raise", "skip"],
    ) -> None:
        self.n_done = 0
        self.stream = embedder.stream_queries if is_query else embedder.stream_documents
        self._sink = sink
        self._progress = progress
        self._on_error = on_error
        # The documents that were read and have not come back yet: at most a window.
        self._pending: deque[Document] = deque()
        self._n_skipped = 0
        self._n_resumed = 0
        self._truncated: list[str] = []
        self._n_truncated = 0
        self._device = ""
        self._cost: float | None = 0.0
        self._started = time.perf_counter()

    def run(self, documents: Iterator[Document], n_resumed: int) -> None:
        """Embed what is left; `n_done` counts texts from the start of the input."""
        self.n_done = self._n_resumed = n_resumed
        self._started = time.perf_counter()
        try:
            parts = self.stream(
                self._take(documents), on_error=self._on_error, start=n_resumed, progress=self._progress.advance
            )
            for part in parts:
                self._add(part)
        except IncompleteError as error:
            self._add(_cut_at_gap(error.done, min(error.missing) - self.n_done))
            # Of what a provider gave up as a whole no text is to blame.
            if isinstance(error.__cause__, InputError):
                self._locate(error, error.missing)
            raise
        except InputError as error:
            self._locate(error, error.positions)
            raise

    def report(self, space: Space) -> None:
        """Say what was done."""
        seconds = time.perf_counter() - self._started
        n = self.n_done - self._n_resumed
        if not n:
            output.say("There was nothing left to embed." if self._n_resumed else "There was no text to embed.")
        else:
            where = f" on {self._device}" if self._device else ""
            cost = f", cost {self._cost:.4g}" if self._cost else ""
            rate = f"{n / seconds:,.0f} texts/s{where}{cost}"
            output.say(f"{_format_count(n)} in {seconds:.1f} s ({rate}): space {space}")
        if self._n_truncated:
            more = ", ..." if self._n_truncated > len(self._truncated) else ""
            output.warn(
                f"{_format_count(self._n_truncated)} longer than the model reads, their ends left out: "
                f"{', '.join(self._truncated)}{more}"
            )
        if self._n_skipped:
            output.warn(f"{_format_count(self._n_skipped)} skipped")

    def describe_kept(self) -> str:
        """Say what an interruption left, and how to go on."""
        return self._sink.describe_kept(self.n_done)

    def _take(self, documents: Iterator[Document]) -> Iterator[str]:
        for document in documents:
            self._pending.append(document)
            yield document.text

    def _add(self, part: Embeddings) -> None:
        report = part.report
        documents = [self._pending.popleft() for _ in range(report.n_texts)]
        for position, error in report.failures.items():
            output.say(f"skipped {_name(documents[position])}: {error.problem}")
        n_free = _N_SHOWN - len(self._truncated)
        self._truncated += [_name(documents[position]) for position in report.truncated[:n_free]]
        self._n_truncated += len(report.truncated)
        self._n_skipped += len(report.failures)
        self._device = report.device
        self._cost = None if self._cost is None or report.cost is None else self._cost + report.cost
        self._sink.write(part, self.n_done, documents)
        self.n_done += report.n_texts

    def _locate(self, error: EmbedkitError, positions: Sequence[int]) -> None:
        """Say in which lines the texts stand that could not be embedded."""
        indexes = [position - self.n_done for position in positions]
        names = [_name(self._pending[index]) for index in indexes if 0 <= index < len(self._pending)]
        if names:
            error.origin = ", ".join(names[:_N_SHOWN]) + (", ..." if len(names) > _N_SHOWN else "")
            error.hint = "mend the text, or leave out what cannot be embedded: --on-error skip"


class _Sink(Protocol):
    """Where vectors go; `last` is the last vector of what was done before."""

    last: Vectors | None

    def begin(self, space: Space) -> int:
        """Give the number of texts that are done already."""
        ...

    def write(self, part: Embeddings, offset: int, documents: list[Document]) -> None:
        """Add a part, whose first text has position *offset*."""
        ...

    def finish(self, space: Space) -> None:
        """Complete the output."""
        ...

    def close(self) -> None:
        """Keep what is there, where the work ends early."""
        ...

    def describe_kept(self, n_done: int) -> str:
        """Say what is kept, and how to go on."""
        ...


class _Lines:
    """JSON lines on stdout."""

    last: Vectors | None = None

    def __init__(self) -> None:
        self._has_header = False

    def begin(self, space: Space) -> int:  # noqa: ARG002  # the protocol hands it over
        return 0

    def write(self, part: Embeddings, offset: int, documents: list[Document]) -> None:  # noqa: ARG002  # the protocol hands it over
        self._write_header(part.space)
        # In one piece: an interruption then leaves whole parts, also where stdout is not buffered.
        sys.stdout.write("".join(f"{row}\n" for row in format_rows(part, offset=offset)))
        sys.stdout.flush()

    def finish(self, space: Space) -> None:
        self._write_header(space)

    def close(self) -> None:
        pass

    def describe_kept(self, n_done: int) -> str:
        return f"{_format_count(n_done)} went to stdout; only a file can be gone on with: -o FILE."

    def _write_header(self, space: Space) -> None:
        if not self._has_header:
            sys.stdout.write(f"{format_header(space)}\n")
        self._has_header = True


class _Preview(_Lines):
    """The first numbers of each vector, for a look on a terminal."""

    def begin(self, space: Space) -> int:
        output.say(f"Only the first of {space.dimensions} numbers are shown; for all of them: -o FILE, or a pipe.")
        return 0

    def write(self, part: Embeddings, offset: int, documents: list[Document]) -> None:  # noqa: ARG002  # the protocol hands it over
        for position, vector in zip(part.positions, part.vectors[:, :3].tolist(), strict=True):
            numbers = " ".join(f"{number:7.4f}" for number in vector)
            text = " ".join(documents[position].text[:80].split())
            sys.stdout.write(f"{numbers} ...  {output.make_printable(text)[:45]}\n")

    def finish(self, space: Space) -> None:
        pass


class _LinesFile:
    """A `.jsonl` file, in which every part is on the disk before the next is made."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.last: Vectors | None = None
        self._path = path
        self._resume = resume
        self._end = 0
        self._file: IO[bytes] | None = None

    def begin(self, space: Space) -> int:
        end = read_end(self._path) if self._resume else None
        if end is None:
            return 0
        require_same_space(end.space, space, origin=str(self._path))
        self.last, self._end = end.last, end.n_bytes
        return end.n_texts

    def write(self, part: Embeddings, offset: int, documents: list[Document]) -> None:  # noqa: ARG002  # the protocol hands it over
        rows = "".join(f"{row}\n" for row in format_rows(part, offset=offset))
        with _refuse_unwritable(self._path):
            file = self._open(part.space)
            file.write(rows.encode())
            file.flush()

    def finish(self, space: Space) -> None:
        with _refuse_unwritable(self._path):
            self._open(space).close()

    def close(self) -> None:
        # What could not be written before cannot be written now, and that was said already.
        with suppress(OSError):
            if self._file is not None:
                self._file.close()

    def describe_kept(self, n_done: int) -> str:
        return _describe_file(self._path, n_done)

    def _open(self, space: Space) -> IO[bytes]:
        if self._file is None:
            # Opened only when there is something to write: a failure before that leaves an older file as it is.
            self._file = self._path.open("r+b" if self._end else "wb")
            if self._end:
                self._file.truncate(self._end)
                self._file.seek(self._end)
            else:
                self._file.write(f"{format_header(space)}\n".encode())
        return self._file


class _NpzFile:
    """A `.npz` file, which is written whole when the work ends, however it ends."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.last: Vectors | None = None
        self._path = path
        self._resume = resume
        self._parts: list[Embeddings] = []
        self._n_new = 0

    def begin(self, space: Space) -> int:
        if not self._resume:
            return 0
        done = read_vectors(self._path)
        require_same_space(done.space, space, origin=str(self._path))
        self._parts = [done]
        self.last = done.vectors[-1] if len(done) else None
        return done.report.n_texts

    def write(self, part: Embeddings, offset: int, documents: list[Document]) -> None:  # noqa: ARG002  # the protocol hands it over
        self._parts.append(part)
        self._n_new += 1

    def finish(self, space: Space) -> None:
        if not self._parts:
            self._parts = [Embeddings(np.empty((0, space.dimensions), np.float32), space)]
        with _refuse_unwritable(self._path):
            write_vectors(self._path, join(self._parts))

    def close(self) -> None:
        if self._n_new:
            self.finish(self._parts[0].space)

    def describe_kept(self, n_done: int) -> str:
        return _describe_file(self._path, n_done)


@contextmanager
def _refuse_unwritable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbedkitError(
            f"{path} cannot be written: {error.strerror}.",
            hint="check the permissions of its directory and the space on the disk",
        ) from error


def _describe_file(path: Path, n_done: int) -> str:
    if not n_done:
        return f"Nothing was written to {path} yet."
    return f"{path} holds the first {_format_count(n_done)}; to go on, give the same command with --resume."


def _choose_reader(field: str | None, column: str | None, *, whole: bool) -> Callable[[str], Iterable[Document]]:
    """Give what reads one file."""
    if (field is not None) + (column is not None) + whole > 1:
        raise click.UsageError("Only one of --jsonl, --csv and --whole can be given.")
    from embedkit.documents import read_csv, read_jsonl, read_lines, read_whole

    if field is not None:
        return lambda file: read_jsonl(file, field)
    if column is not None:
        return lambda file: read_csv(file, column)
    return (lambda file: [read_whole(file)]) if whole else read_lines


def _choose_files(files: tuple[str, ...], *, whole: bool) -> list[str]:
    if not files:
        if sys.stdin.isatty():
            raise click.UsageError("Nothing to embed: name FILES, or - to type texts, one a line.")
        return ["-"]
    if not whole:
        return list(files)
    from embedkit.documents import find_text_files

    return [str(path) for path in find_text_files(files)]


def _choose_sink(target: Path | None, *, resume: bool, force: bool) -> _Sink:
    """Give where the vectors go, and refuse what would fail only after the work, or lose a file."""
    if resume and force:
        raise click.UsageError("--resume goes on with a file, and --force replaces it: only one of them can be given.")
    if target is None:
        if resume or force:
            raise click.UsageError("--resume and --force are about the file of -o, and there is none.")
        return _Preview() if sys.stdout.isatty() else _Lines()
    require_vector_file(target)
    if not target.parent.is_dir():
        raise InputError(f"There is no directory {target.parent}.", hint="create it, or choose another place for -o")
    if target.exists() and not (resume or force):
        raise InputError(f"{target} exists.", hint="go on with it: --resume; or replace it: --force")
    kind = _NpzFile if target.suffix == ".npz" else _LinesFile
    return kind(target, resume=resume and target.exists())


def _count(read: Callable[[str], Iterable[Document]], files: list[str]) -> int | None:
    """Count the texts of files that can be read twice; None where one of them is a stream."""
    for file in files:
        if file != "-" and not Path(file).exists():
            next(iter(read(file)))  # raises, and knows best why
        if not Path(file).is_file():
            return None
    return sum(1 for file in files for _ in read(file))


def _require_same_input(work: _Work, documents: Iterator[Document], n_done: int, last: Vectors | None) -> None:
    """Pass over what is done, and check by the last of it that the input is still the same."""
    document = next(itertools.islice(documents, n_done - 1, None), None) if n_done else None
    if last is None:
        return
    if document is not None:
        again = next(iter(work.stream([document.text])))
        if compute_cosines(again.vectors, last[np.newaxis, :])[0, 0] > _SAME:
            return
    raise InputError(
        f"The input is not the one that the first {n_done:,} vectors of the file were made of.",
        origin="the end of the input" if document is None else _name(document),
        hint="give the same files in the same order and with the same options, or begin again: --force",
    )


def _cut_at_gap(done: Embeddings, n_texts: int) -> Embeddings:
    """Keep what stands before the first text that is missing, so that going on makes up for it."""
    truncated = tuple(position for position in done.report.truncated if position < n_texts)
    report = attrs.evolve(done.report, n_texts=n_texts, failures={}, truncated=truncated)
    return Embeddings(done.vectors[:n_texts], done.space, report)


def _format_count(n: int) -> str:
    return f"{n:,} text{'' if n == 1 else 's'}"


def _name(document: Document) -> str:
    """Say where a document stands, as file:line."""
    return f"{'<stdin>' if document.source == '-' else document.source}:{document.line}"
