"""
Vectors that know their space: `Embeddings`, pure numpy on them, and the files they are kept in.

Owns every piece of array arithmetic of the core. Loads no model and knows no provider.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, final

import attrs
import numpy as np
from numpy.typing import DTypeLike, NDArray

from embedkit.errors import ContractError, EmbedkitError, InputError
from embedkit.space import Space, require_same_space

Vectors = NDArray[np.float32]

UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of a vector may be that claims unit length; float32 arithmetic stays within 1e-6."""

_FORMAT = 1


@attrs.frozen(kw_only=True)
class Report:
    """
    Say what was done to get the vectors.

    Attributes:
        n_texts: Texts that were asked for.

        n_unique: Different texts among them; only these were worked on.

        n_cached: Different texts whose vector came from a cache.

        n_tokens: Tokens that the model read; None when the provider does not tell.

        truncated: Positions in the input of texts that the model did not read to their end.

        failures: Position in the input of each text that has no vector, with its error.

        device: Where the model ran; empty when unknown.

        dtype: The precision that it computed in; empty when unknown.

        way: How the provider ran it, in one line for people; empty when it does not tell.

        seconds: Wall time.

        cost: In the currency of the profile's price; None without a price.
    """

    n_texts: int = 0
    n_unique: int = 0
    n_cached: int = 0
    n_tokens: int | None = None
    truncated: tuple[int, ...] = ()
    failures: Mapping[int, EmbedkitError] = attrs.field(factory=dict)
    device: str = ""
    dtype: str = ""
    way: str = ""
    seconds: float = 0.0
    cost: float | None = None


@final
@attrs.frozen(eq=False)
class Embeddings:
    """
    Keep vectors together with the space that they belong to.

    Attributes:
        vectors: Shape (n, d), float32, C-contiguous.

        space: What they can be compared with.

        report: What was done to get them.
    """

    vectors: Vectors = attrs.field()
    space: Space
    report: Report = attrs.field(factory=Report)

    @vectors.validator
    def _check_vectors(self, _: object, vectors: Vectors) -> None:
        right = isinstance(vectors, np.ndarray) and vectors.ndim == 2 and vectors.dtype == np.float32  # noqa: PLR2004  # a matrix
        if not right or vectors.shape[1] != self.space.dimensions or not vectors.flags.c_contiguous:
            found = (
                f"{vectors.dtype} of shape {vectors.shape}"
                if isinstance(vectors, np.ndarray)
                else type(vectors).__name__
            )
            raise ContractError(
                f"Vectors of space {self.space} must be contiguous float32, (n, {self.space.dimensions}), not {found}."
            )

    @property
    def positions(self) -> tuple[int, ...]:
        """The position in the caller's input of each row: all of them, unless texts were skipped."""
        if not self.report.failures:
            return tuple(range(len(self)))
        return tuple(position for position in range(self.report.n_texts) if position not in self.report.failures)

    def similarity(self, other: Embeddings) -> Vectors:
        """
        Score every row against every row of *other* by cosine.

        Args:
            other: Shape (m, d), from the same space.

        Returns:
            Cosines within [-1, 1], shape (n, m), float32.

        Raises:
            SpaceMismatchError: The fingerprints differ.
            InputError: *other* is a bare array, which does not know its space.
        """
        if not isinstance(other, Embeddings):
            raise InputError(
                f"Embeddings can be compared with Embeddings, not with {type(other).__name__}: its space is unknown.",
                hint="use embed_queries([query]); or, for one bare row, find_nearest(row)",
            )
        require_same_space(self.space, other.space)
        return compute_cosines(self.vectors, other.vectors)

    def find_nearest(self, query: Vectors, k: int = 10) -> list[tuple[int, float]]:
        """
        Find the rows nearest to one query vector of the same embedder.

        Args:
            query: Shape (d,). A bare vector does not know its space: pass `Embeddings` to `similarity` where that must
                be checked.

            k: At most so many; at least 1.

        Returns:
            (row, cosine), best first; rows of equal score in their order.

        Raises:
            InputError: *query* is no vector of this length, or *k* is less than 1.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}.", hint="leave it out for 10 rows")
        if np.shape(query) != (self.space.dimensions,):
            raise InputError(
                f"One query vector of {self.space.dimensions} numbers is due, not shape {np.shape(query)}.",
                hint="pass embed_query(text), or one row: queries[0]",
            )
        scores = compute_cosines(self.vectors, np.asarray(query, np.float32)[np.newaxis, :])[:, 0]
        return [(int(row), float(scores[row])) for row in np.argsort(-scores, kind="stable")[:k]]

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: int | slice) -> Vectors:
        return self.vectors[index]

    def __iter__(self) -> Iterator[Vectors]:
        return iter(self.vectors)

    def __array__(self, dtype: DTypeLike | None = None, *, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.vectors, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"Embeddings({len(self)} vectors of {self.space})"


def compute_cosines(left: Vectors, right: Vectors) -> Vectors:
    """
    Score every row of *left* against every row of *right*.

    Args:
        left: Shape (n, d).

        right: Shape (m, d).

    Returns:
        Cosines, shape (n, m), float32, clipped to [-1, 1]: rounding can step over it.
    """
    cosines: Vectors = np.clip(scale_to_unit(left) @ scale_to_unit(right).T, -1.0, 1.0)
    return cosines


def compute_direction_cosine(vector: Vectors, components: Sequence[float]) -> float:
    """
    Compare the leading components of a vector with published ones by direction, so that scale does not matter.

    Args:
        vector: Shape (d,).

        components: At least two, not all zero; only as many are compared as both have.

    Returns:
        The cosine of the two leading parts within [-1, 1]; 0 when either is all zeros.
    """
    n = min(len(vector), len(components))
    pair = np.stack([vector[:n].astype(np.float64), np.array(components[:n], np.float64)])
    lengths = np.linalg.norm(pair, axis=1)
    return float(np.clip(pair[0] @ pair[1] / (lengths[0] * lengths[1]), -1.0, 1.0)) if lengths.all() else 0.0


def scale_to_unit(vectors: Vectors) -> Vectors:
    """
    Give every row unit length.

    Args:
        vectors: Shape (n, d); rows of zeros stay as they are.

    Returns:
        Shape (n, d), float32.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return scaled


def check_vectors(vectors: object, *, n: int, space: Space, source: str) -> Vectors:
    """
    Let vectors through only when they can be right.

    Args:
        vectors: What a provider returned for *n* texts.

        n: How many rows there must be.

        space: Says their dimensions, and whether they claim unit length.

        source: Who returned them, for the error.

    Returns:
        The same vectors, C-contiguous, shape (n, d), float32.

    Raises:
        ContractError: Rows, dimensions or type are wrong, a value is not finite, a vector is zero or not of the claimed
            length.
    """
    hint = "a fault of the provider: no vector of this batch was used; report it with `embedkit plugins --json`"
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
        kind = f"{vectors.dtype}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
        raise ContractError(f"{source} returned {kind} where a float32 array is due.", hint=hint)
    if vectors.shape != (n, space.dimensions):
        raise ContractError(
            f"{source} returned vectors of shape {vectors.shape} for {n} texts of {space.dimensions} dimensions.",
            hint=hint,
        )
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(lengths).all():
        raise ContractError(
            f"{source} returned values that are not finite (row {_first(~np.isfinite(lengths))}).", hint=hint
        )
    if (lengths == 0).any():
        raise ContractError(f"{source} returned a vector of zeros (row {_first(lengths == 0)}).", hint=hint)
    off = np.abs(lengths - 1) > UNIT_TOLERANCE
    if space.normalized and off.any():
        row = _first(off)
        raise ContractError(
            f"{source} claims unit length and returned a vector of length {lengths[row]:.4g} (row {row}).", hint=hint
        )
    return np.ascontiguousarray(vectors)


def _first(mask: NDArray[np.bool_]) -> int:
    return int(np.argmax(mask))


def join(parts: Iterable[Embeddings]) -> Embeddings:
    """
    Put Embeddings one after the other.

    Args:
        parts: At least one, all of one space; positions in their reports are counted on.

    Returns:
        Shape (n1 + n2 + …, d), with the sums of the reports.

    Raises:
        SpaceMismatchError: The fingerprints differ.
        InputError: There is no part.
    """
    parts = list(parts)
    if not parts:
        raise InputError("Nothing to join: there is not even one Embeddings, so the space is unknown.")
    first = parts[0]
    for part in parts[1:]:
        require_same_space(first.space, part.space)
    return Embeddings(
        np.concatenate([part.vectors for part in parts]), first.space, join_reports([part.report for part in parts])
    )


def join_reports(reports: Sequence[Report]) -> Report:
    """Sum reports (at least one); positions are counted on from one to the next."""
    truncated: list[int] = []
    failures: dict[int, EmbedkitError] = {}
    offset = 0
    for report in reports:
        truncated += [offset + position for position in report.truncated]
        failures.update({offset + position: error for position, error in report.failures.items()})
        offset += report.n_texts
    n_tokens = [report.n_tokens for report in reports]
    costs = [report.cost for report in reports]
    return Report(
        n_texts=offset,
        n_unique=sum(report.n_unique for report in reports),
        n_cached=sum(report.n_cached for report in reports),
        n_tokens=None if None in n_tokens else sum(n for n in n_tokens if n is not None),
        truncated=tuple(truncated),
        failures=failures,
        device=reports[-1].device,
        dtype=reports[-1].dtype,
        way=reports[-1].way,
        seconds=sum(report.seconds for report in reports),
        cost=None if None in costs else sum(cost for cost in costs if cost is not None),
    )


def write_vectors(path: str | os.PathLike[str], embeddings: Embeddings) -> None:
    """
    Write a vector file that carries its space: `.npz` or `.jsonl`, by the name's ending.

    The file appears whole or not at all: it is written beside its place and then moved there.

    Raises:
        InputError: The name has another ending.
    """
    path = Path(path)
    require_vector_file(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                header = json.dumps(_build_header(embeddings.space))
                np.savez(
                    file, header=header, positions=np.array(embeddings.positions, np.int64), vectors=embeddings.vectors
                )
        else:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.write(format_header(embeddings.space) + "\n")
                file.writelines(f"{row}\n" for row in format_rows(embeddings))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_vectors(path: str | os.PathLike[str]) -> Embeddings:
    """
    Read a vector file back.

    Returns:
        Shape (n, d). Its report knows the positions: those that were skipped stand among the failures.

    Raises:
        InputError: The file is no vector file, or is damaged; names the line where there is one.
    """
    path = Path(path)
    require_vector_file(path)
    with path.open("rb") as file:
        try:
            space, positions, vectors = _read_npz(file) if path.suffix == ".npz" else _read_jsonl(file)
            return _build_read_embeddings(space, positions, vectors, origin=str(path))
        except Exception as error:  # damage makes zipfile, json and numpy raise nearly anything
            detail = error.problem if isinstance(error, EmbedkitError) else f"{type(error).__name__}: {error}"
            raise InputError(
                f"{path} is not a whole vector file: {detail}",
                origin=str(path),
                hint="write it again with `embedkit embed -o`",
            ) from error


def _build_read_embeddings(space: Space, positions: list[int], vectors: Vectors, *, origin: str) -> Embeddings:
    n_texts = positions[-1] + 1 if positions else 0
    if positions != sorted(set(positions)) or (positions and positions[0] < 0):
        raise InputError("its positions are out of order or doubled")
    vectors = check_vectors(vectors, n=len(positions), space=space, source="the file")
    missing = set(range(n_texts)) - set(positions)
    skipped = EmbedkitError("This text has no vector in the file.", origin=origin)
    report = Report(n_texts=n_texts, n_unique=len(positions), failures=dict.fromkeys(sorted(missing), skipped))
    return Embeddings(vectors, space, report)


@attrs.frozen(kw_only=True)
class FileEnd:
    """
    Say how far a `.jsonl` vector file got.

    Attributes:
        space: What its header says.

        n_texts: One more than the position of its last vector.

        last: That vector, shape (d,); None when there is only the header.

        n_bytes: Where its last whole line ends; what stands behind was cut off while it was written.
    """

    space: Space
    n_texts: int
    last: Vectors | None
    n_bytes: int


def read_end(path: Path) -> FileEnd | None:
    """
    Read the end of a `.jsonl` vector file that is to be gone on with; None when not even its header is whole.

    Raises:
        InputError: Its header or its last whole line is none of a vector file.
    """
    header, last, n_lines, n_bytes = b"", b"", 0, 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                header, last, n_lines, n_bytes = header or line, line, n_lines + 1, n_bytes + len(line)
    if not header:
        return None
    try:
        space = _read_header(header)
        position, vector = (-1, None) if n_lines == 1 else _read_row(last, n_lines, space.dimensions)
    except Exception as error:  # as in read_vectors
        detail = error.problem if isinstance(error, EmbedkitError) else f"{type(error).__name__}: {error}"
        hint = "write it again: `embedkit embed -o` with --force"
        raise InputError(f"{path} is not a vector file: {detail}", origin=str(path), hint=hint) from error
    return FileEnd(space=space, n_texts=position + 1, last=vector, n_bytes=n_bytes)


def require_vector_file(path: Path) -> None:
    """
    Let only names through that say a vector file's format.

    Raises:
        InputError: The name ends in neither `.npz` nor `.jsonl`.
    """
    if path.suffix not in (".npz", ".jsonl"):
        raise InputError(
            f"{path} names no format of vector files.",
            hint="end the name in .npz (compact) or .jsonl (one vector a line)",
        )


def format_header(space: Space) -> str:
    """Write the first line of a `.jsonl` vector file, in ASCII: it may go to a console."""
    return json.dumps(_build_header(space))


def format_rows(embeddings: Embeddings, *, offset: int = 0) -> Iterator[str]:
    """
    Write the lines of a `.jsonl` vector file, one a row.

    Args:
        embeddings: Shape (n, d).

        offset: Added to each position, for parts of a stream.

    Yields:
        One JSON object: position and vector, the latter in nine digits, which is float32 exactly.
    """
    for position, vector in zip(embeddings.positions, embeddings.vectors.tolist(), strict=True):
        numbers = ",".join([f"{number:.9g}" for number in vector])
        yield f'{{"position":{offset + position},"vector":[{numbers}]}}'


def _build_header(space: Space) -> dict[str, object]:
    return {"embedkit_vectors": _FORMAT, "fingerprint": space.fingerprint, "space": space.to_dict()}


def _read_header(text: str | bytes) -> Space:
    header = json.loads(text)
    if not isinstance(header, dict) or header.get("embedkit_vectors") != _FORMAT:
        raise InputError("it does not begin with the header of a vector file of this version")
    space = Space.from_dict(header["space"])
    if header["fingerprint"] != space.fingerprint:
        raise InputError("the fingerprint in its header is not that of its space")
    return space


def _read_npz(file: IO[bytes]) -> tuple[Space, list[int], Vectors]:
    with np.load(file, allow_pickle=False) as archive:
        return _read_header(str(archive["header"])), archive["positions"].tolist(), archive["vectors"]


def _read_jsonl(file: IO[bytes]) -> tuple[Space, list[int], Vectors]:
    positions: list[int] = []
    rows: list[Vectors] = []
    space = _read_header(file.readline())
    for number, line in enumerate(file, start=2):
        position, row = _read_row(line, number, space.dimensions)
        positions.append(position)
        rows.append(row)
    return space, positions, np.stack(rows) if rows else np.empty((0, space.dimensions), np.float32)


def _read_row(line: bytes, number: int, dimensions: int) -> tuple[int, Vectors]:
    try:
        row = json.loads(line)
        position, numbers = row["position"], np.array(row["vector"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"line {number} is no row of a vector file") from error
    # numpy would read strings as numbers, and null as NaN.
    if type(position) is not int or numbers.dtype.kind not in "fi" or numbers.shape != (dimensions,):
        raise InputError(f"line {number} is no position with {dimensions} numbers")
    return position, numbers.astype(np.float32)
