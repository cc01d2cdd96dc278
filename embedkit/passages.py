"""
Split a text into passages, and rank passages for a query.

Owns where passages begin and end, their line numbers, and the order of hits. Reads no file and prints nothing.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

import attrs
import numpy as np
from semantic_text_splitter import MarkdownSplitter, TextSplitter

from embedkit.errors import InputError
from embedkit.vectors import compute_cosines

if TYPE_CHECKING:
    from embedkit.embedder import Embedder

MAX_CHARACTERS = 900
"""
The longest passage. The smallest models read 256 tokens: of English prose and code, under MiniLM's tokenizer, at most
three passages in a hundred are longer than that at this length, and about ten at 1200.
"""

_MARKDOWN_SUFFIXES = frozenset({".md", ".markdown"})
_MARKS = string.punctuation + string.whitespace

# The splitter's time grows with the square of the length of an unbroken line: 14 s for 1 MB whole, 1 s in such blocks.
_BLOCK_CHARACTERS = 65_536

# Scores closer than this are equal: the same text gets the last bits of its score from its place in the matrix.
_SCORE_DECIMALS = 6


@attrs.frozen
class Passage:
    """
    Keep a piece of a text together with the place where it stands.

    Attributes:
        text: As it is in the file, without white space around it.

        source: The path as it was given.

        line: Where it starts; the first line is 1.

        end_line: The last line that it reaches into.
    """

    text: str
    source: str
    line: int
    end_line: int


@attrs.frozen
class Hit:
    """
    Say how near a passage is to the query.

    Attributes:
        passage: What was found.

        score: Cosine, within [-1, 1].
    """

    passage: Passage
    score: float


def split_passages(text: str, *, source: str, max_characters: int = MAX_CHARACTERS) -> list[Passage]:
    r"""
    Split a text at its headings, paragraphs, sentences or words, whichever is the largest unit that fits.

    A passage is filled until it has a third of *max_characters*, so that it says one thing. A heading, or a fence that
    opens a block of code, goes with what follows it. A block of code longer than a passage is split at its lines.

    Args:
        text: Any text; lines end in "\n" or "\r\n".

        source: Its path; a suffix `.md` or `.markdown` makes it Markdown.

        max_characters: No passage is longer; at least 10.

    Returns:
        Passages in the order of the text, none overlapping, and none that has only white space and punctuation.
    """
    # What a heading needs is kept free, so that it fits before a full passage.
    capacity = (max_characters // 3, max_characters - max_characters // 9)
    kind = MarkdownSplitter if PurePath(source).suffix.lower() in _MARKDOWN_SUFFIXES else TextSplitter
    splitter = kind(capacity)
    spans: list[tuple[int, int]] = []
    for offset, block in _cut_blocks(text):
        for position, chunk in splitter.chunk_indices(block):
            start = offset + position
            end = start + len(chunk)
            if spans and end - spans[-1][0] <= max_characters and _only_leads(text[slice(*spans[-1])]):
                start, _ = spans.pop()
            spans.append((start, end))
    passages = []
    line, counted = 1, 0
    for start, end in spans:
        line += text.count("\n", counted, start)
        counted = start
        piece = text[start:end]
        if piece.strip(_MARKS):
            passages.append(Passage(piece, source, line, line + piece.count("\n")))
    return passages


def rank_passages(
    embedder: Embedder,
    query: str,
    passages: Sequence[Passage],
    k: int = 10,
    *,
    progress: Callable[[int], object] | None = None,
) -> list[Hit]:
    """
    Find the passages nearest to a query; of their vectors, one window at a time is held.

    Args:
        embedder: Embeds the query as a query and the passages as documents.

        query: One text.

        passages: Where to look; the same text in two files is two passages.

        k: At most so many hits; at least 1.

        progress: Called now and then with the number of passages that are done since.

    Returns:
        Best first; passages of equal score in their order.

    Raises:
        InputError: *k* is less than 1, or the query is blank or no string.
        BackendError: The embedder failed.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}.", hint="leave it out for 10 hits")
    direction = embedder.embed_query(query)[np.newaxis, :]
    windows = embedder.stream_documents((passage.text for passage in passages), progress=progress)
    scores = np.concatenate([np.zeros(0, np.float32), *(compute_cosines(w.vectors, direction)[:, 0] for w in windows)])
    best = np.argsort(-scores.round(_SCORE_DECIMALS), kind="stable")[:k]
    return [Hit(passages[row], float(scores[row])) for row in best]


def _cut_blocks(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    while len(text) - start > _BLOCK_CHARACTERS:
        half, limit = start + _BLOCK_CHARACTERS // 2, start + _BLOCK_CHARACTERS
        cuts = (text.rfind(mark, half, limit) + len(mark) for mark in ("\n\n", "\n\r\n", "\n", " "))
        end = next((cut for cut in cuts if cut > half), limit)
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _only_leads(text: str) -> bool:
    return all(line.lstrip().startswith(("#", "```", "~~~")) or not line.strip(_MARKS) for line in text.splitlines())
