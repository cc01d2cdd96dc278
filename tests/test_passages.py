"""Splitting texts into passages with their lines, and ranking passages for a query."""

from __future__ import annotations

import itertools
import string
import weakref
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkit.errors import InputError
from embedkit.passages import MAX_CHARACTERS, Passage, rank_passages, split_passages
from embedkit.space import Space
from embedkit.vectors import Embeddings

SPACE = Space(weights="words", dimensions=512, normalized=False)
MARKS = string.punctuation + string.whitespace


class WordEmbedder:
    """Count words into a vector, so that texts are near that share words; hand documents out in windows."""

    def __init__(self, window=3):
        self.window = window
        self.queries = []
        self.handed_out = []
        self.most_alive = 0

    def embed(self, text):
        """Give (d,) counts."""
        vector = np.zeros(SPACE.dimensions, np.float32)
        for word in text.lower().split():
            vector[zlib.crc32(word.strip(string.punctuation).encode()) % SPACE.dimensions] += 1
        return vector

    def embed_query(self, query):
        """Embed and remember a query."""
        self.queries.append(query)
        return self.embed(query)

    def stream_documents(self, documents, *, progress=None):
        """Embed window by window, and watch how many windows are still held."""
        documents = iter(documents)
        while texts := list(itertools.islice(documents, self.window)):
            window = Embeddings(np.stack([self.embed(text) for text in texts]), SPACE)
            self.handed_out.append(weakref.ref(window))
            self.most_alive = max(self.most_alive, sum(given() is not None for given in self.handed_out))
            if progress is not None:
                progress(len(window))
            yield window
            del window


def build_passages(*texts):
    """Give each text as a passage of its own file."""
    return [Passage(text, f"{number}.txt", 1, 1) for number, text in enumerate(texts)]


def words(text):
    """Give *text* without what a passage may lose: white space and punctuation."""
    return "".join(character for character in text if character not in MARKS and not character.isspace())


def prose(n_words, name="word"):
    """Give a line of numbered words, so that each occurs once."""
    return " ".join(f"{name}{number}" for number in range(n_words))


class TestSplit:
    """`split_passages`."""

    @pytest.mark.parametrize("source", ["a.md", "a.txt"])
    @given(
        pieces=st.lists(
            st.one_of(
                st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
                st.sampled_from(
                    ["\n", "\r\n", "\n\n", "# ", "## head\n", "```\n", "```python\n", "    ", "- item\n", "|a|\n"]
                ),
                st.text("ab. ", max_size=60),
            ),
            max_size=30,
        ),
        max_characters=st.integers(10, 120),
    )
    def test_every_passage_stands_where_it_says_and_no_word_is_lost(self, source, pieces, max_characters):
        """Text is kept as in the file, in order, within the length; only white space and lone punctuation go."""
        text = "".join(pieces)
        passages = split_passages(text, source=source, max_characters=max_characters)
        assert words(text) == words("".join(passage.text for passage in passages))
        lines = text.split("\n")
        at = 0
        for passage in passages:
            assert max_characters >= len(passage.text)
            assert passage.text.strip(MARKS)
            at = text.index(passage.text, at)
            assert passage.line == text.count("\n", 0, at) + 1 or passage.text in text[at + 1 :]
            assert passage.text in "\n".join(lines[passage.line - 1 : passage.end_line])
            assert passage.text.count("\n") == passage.end_line - passage.line

    @pytest.mark.parametrize("ending", ["\n", "\r\n"])
    @pytest.mark.parametrize("source", ["a.md", "a.txt"])
    def test_lines_are_those_of_the_file(self, source, ending):
        """Fault 66: after blank lines, characters of several bytes, and with either line ending."""
        paragraphs = [[f"🙂 é first{number} {prose(30)}", f"second{number} {prose(30)}"] for number in range(5)]
        text = ending * 2 + (ending * 3).join(ending.join(paragraph) for paragraph in paragraphs) + ending
        passages = split_passages(text, source=source)
        assert [(3, 4), (7, 8), (11, 12), (15, 16), (19, 20)] == [(found.line, found.end_line) for found in passages]
        assert [ending.join(paragraph) for paragraph in paragraphs] == [found.text for found in passages]

    @pytest.mark.parametrize("text", ["", " \n\r\n\t", "---\n\n***\n", "```\n```\n"])
    def test_a_text_without_a_word_has_no_passage(self, text):
        """Fault 62: there is nothing to embed, and a lone fence or rule would match anything."""
        assert [] == split_passages(text, source="a.md")

    def test_text_that_is_no_punctuation_is_a_passage(self):
        """Emoji and other scripts have no ASCII letter and mean something."""
        assert ["🙂"] == [found.text for found in split_passages("🙂\n", source="a.txt")]
        assert ["日本語。"] == [found.text for found in split_passages("日本語。", source="a.txt")]

    @pytest.mark.parametrize("source", ["a.md", "A.MARKDOWN", "dir.md/a.Md"])
    def test_markdown_is_split_at_headings(self, source):
        """A section that is cut does not begin in the one before; without the suffix, a heading is a paragraph."""
        text = f"# One\n\n{prose(25)}\n\n# Two\n\n{prose(75)}\n\n{prose(60)}\n"
        assert [1, 5, 9] == [found.line for found in split_passages(text, source=source)]
        assert [1, 9] == [found.line for found in split_passages(text, source="a.md.txt")]

    def test_a_heading_goes_with_what_follows_it(self):
        """Alone it would be the best hit for its own words and answer nothing."""
        code = "\n".join(f"value_{number} = compute({number}, {number + 1})" for number in range(100))
        text = f"# Title\n\n{prose(60)}\n\n## Settings\n\n```python\n{code}\n```\n\nDone.\n"
        passages = split_passages(text, source="a.md")
        [found] = [passage for passage in passages if "## Settings" in passage.text]
        assert "## Settings\n\n```python\nvalue_0 = compute(0, 1)\n" in found.text
        assert (5, 8) <= (found.line, found.end_line)

    def test_a_heading_goes_with_a_block_that_would_fill_a_passage(self):
        """Room is kept for the heading: the block gives up its last lines instead."""
        code = "\n".join(f"value_{number:02d} = compute({number:02d}, again=True)" for number in range(23))
        [first, *rest] = split_passages(f"# Settings\n\n```\n{code}\n```\n", source="a.md")
        assert first.text.startswith("# Settings\n\n```\nvalue_00")
        assert rest

    def test_a_heading_that_does_not_fit_stays_alone(self):
        """No passage is longer than allowed, whatever stands before it."""
        heading = f"# {prose(10)}"
        passages = split_passages(f"{heading}\n\n{'x' * 89}\n", source="a.md", max_characters=100)
        assert [heading, "x" * 89] == [found.text for found in passages]

    def test_a_passage_is_filled_to_a_third(self):
        """Short paragraphs share one passage, long ones have their own."""
        short = "\n\n".join(prose(8, f"p{number}w") for number in range(20))
        lengths = [len(found.text) for found in split_passages(short, source="a.txt")]
        assert all(MAX_CHARACTERS // 3 <= length < MAX_CHARACTERS // 2 for length in lengths[:-1])

    @pytest.mark.parametrize("source", ["a.md", "a.txt"])
    @pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n", "\n", " ", ""])
    def test_a_long_text_is_split_without_loss(self, source, separator):
        """Also one line of a megabyte, or one word, which the splitter alone would take minutes for."""
        text = separator.join(f"{number:07d}abcdefghijk" for number in range(12_000))
        passages = split_passages(text, source=source)
        assert words(text) == words("".join(found.text for found in passages))
        for found in passages:
            assert text.count("\n", 0, text.index(found.text)) + 1 == found.line
        # Where there is a place to cut, no piece is cut through.
        whole = [found.text.split()[0][:1].isdigit() and found.text.endswith("k") for found in passages]
        assert all(whole) is bool(separator)


class TestRank:
    """`rank_passages`."""

    TEXTS = (
        "the cat sat on the mat",
        "a dog barks",
        "the dog and the cat",
        "rain falls in spain",
        "cat",
        "cats are not dogs",
    )

    def test_the_nearest_passage_comes_first(self):
        """Scores are cosines, also of vectors that have not unit length, and belong to their passage."""
        passages = build_passages(*self.TEXTS)
        embedder = WordEmbedder()
        hits = rank_passages(embedder, "cat", passages, k=3)
        assert ["cat", "the dog and the cat", "the cat sat on the mat"] == [hit.passage.text for hit in hits]
        expected = [1, 1 / np.sqrt(4 + 1 + 1 + 1), 1 / np.sqrt(4 + 1 + 1 + 1 + 1)]
        assert expected == pytest.approx([hit.score for hit in hits], abs=1e-6)
        assert ["cat"] == embedder.queries

    def test_the_window_changes_nothing(self):
        """Rows are counted on from window to window."""
        passages = build_passages(*self.TEXTS * 5)
        expected = [hit.passage for hit in rank_passages(WordEmbedder(1000), "the dog", passages, k=30)]
        for window in (1, 2, 7, 30):
            found = rank_passages(WordEmbedder(window), "the dog", passages, k=30)
            assert expected == [hit.passage for hit in found]

    def test_equal_scores_keep_their_order(self):
        """The same text in several files is several hits, in the order of the files."""
        passages = build_passages(*[f"one two three {'four ' * (number % 2)}" for number in range(200)])
        hits = rank_passages(WordEmbedder(7), "three two one zero", passages, k=200)
        expected = [*passages[::2], *passages[1::2]]
        assert expected == [hit.passage for hit in hits]

    def test_scores_that_differ_only_by_rounding_are_equal(self):
        """The same vector has other last bits in another place of a matrix; a real difference counts."""

        class NearlyEqual(WordEmbedder):
            def embed(self, text):
                vector = super().embed("query")
                vector[0] = float(text)
                return vector

        passages = build_passages("9e-4", "5e-4", "0", "1e-1", "7e-4")
        hits = rank_passages(NearlyEqual(), "0", passages)
        assert ["9e-4", "5e-4", "0", "7e-4", "1e-1"] == [hit.passage.text for hit in hits]

    @pytest.mark.parametrize(("k", "n_hits"), [(1, 1), (6, 6), (100, 6)])
    def test_there_are_at_most_k_hits(self, k, n_hits):
        """And no more than there are passages."""
        assert n_hits == len(rank_passages(WordEmbedder(), "cat", build_passages(*self.TEXTS), k=k))

    @pytest.mark.parametrize("k", [0, -1])
    def test_no_hits_cannot_be_asked_for(self, k):
        """A negative number would leave out the worst hits and return all others."""
        with pytest.raises(InputError, match=f"k must be at least 1, not {k}"):
            rank_passages(WordEmbedder(), "cat", build_passages(*self.TEXTS), k=k)

    def test_no_passages_are_no_hits(self):
        """Fault 61: an empty directory is no error here."""
        assert [] == rank_passages(WordEmbedder(), "cat", [])

    def test_progress_counts_every_passage(self):
        """Whoever embeds says how far it has come, so that a bar can advance by it."""
        advanced = []
        rank_passages(WordEmbedder(window=4), "cat", build_passages(*self.TEXTS), progress=advanced.append)
        assert [4, 2] == advanced

    def test_one_window_of_vectors_is_held(self):
        """Memory does not grow with the vectors: of the windows before, only scores are left."""
        embedder = WordEmbedder(window=1)
        rank_passages(embedder, "cat", build_passages(*self.TEXTS * 10))
        assert 60 == len(embedder.handed_out)
        assert 2 >= embedder.most_alive
