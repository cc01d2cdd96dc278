"""The embedder: what it refuses, what it hands to a backend, what it takes back; threads, forks and event loops."""

from __future__ import annotations

import asyncio
import collections
import itertools
import logging
import os
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.embedder import Embedder
from embedkit.errors import (
    BackendError,
    ContractError,
    IncompleteError,
    InputError,
    ModelLoadError,
    SettingError,
    TransportError,
)
from embedkit.options import Origin
from embedkit.profile import Profile
from embedkit.protocols import Batch
from embedkit.testing import ToyOptions, toy_provider
from embedkit.vectors import join


class Watched:
    """A toy backend that notes what it was asked and may have members replaced."""

    def __init__(self, inner, replaced):
        self._inner = inner
        self.calls = []
        self.n_closed_iterators = 0
        self.n_closed = 0
        vars(self).update(replaced)

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def encode(self, texts, *, role):
        """Note the call, and when its iterator ends."""
        self.calls.append((role, list(texts)))
        try:
            yield from self._inner.encode(texts, role=role)
        finally:
            self.n_closed_iterators += 1

    def close(self):
        """Note the close."""
        self.n_closed += 1
        self._inner.close()


class Toy:
    """An embedder over watched toy backends; every load is kept."""

    def __init__(self, *, replaced=None, prompts=None, before_batch=None, before_load=None, **fields):
        self.profile = Profile(**{"provider": "toy", "model": "toy-1", "name": "test", **fields})
        self.recipe = toy_provider(prompts=prompts, before_batch=before_batch)
        self.backends = []
        self._replaced = replaced or {}
        self._before_load = before_load
        self.embedder = Embedder(self.profile, self._load)

    @property
    def backend(self):
        """The backend that was loaded last."""
        return self.backends[-1]

    def _load(self):
        if self._before_load is not None:
            self._before_load()
        self.backends.append(Watched(self.recipe.load(self.profile, ToyOptions()), self._replaced))
        return self.backend


def embed_alone(text, **fields):
    """Embed one text with an embedder of its own."""
    return Toy(**fields).embedder.embed_documents([text]).vectors[0]


# ---------- what goes in


def test_no_texts_give_no_rows_without_a_call():
    """An empty list has the space's width and asks nothing of the backend. Fault 61."""
    toy = Toy(dimensions=8)
    assert (0, 8) == toy.embedder.embed_documents([]).vectors.shape
    assert (0, 8) == toy.embedder.embed_queries([]).vectors.shape
    assert [] == toy.embedder.count_tokens([])
    assert [] == toy.backend.calls


@pytest.mark.parametrize("blank", ["", " ", "\n\t ", "\u00a0\u2003"])
def test_blank_texts_are_refused(blank):
    """Nothing is there to embed: refused with the position, for documents, queries and counting alike. Fault 62."""
    toy = Toy()
    for call in (toy.embedder.embed_documents, toy.embedder.embed_queries, toy.embedder.count_tokens):
        with pytest.raises(InputError, match="position 1 is blank") as caught:
            call(["a", blank])
        assert (1,) == caught.value.positions
    assert [] == toy.backends


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (None, "is None and no string"),
        (7, "is of type int and no string"),
        (1.5, "is of type float and no string"),
        (b"bytes", "is of type bytes and no string"),
        (["nested"], "is of type list and no string"),
        (float("nan"), "is of type float and no string"),
    ],
)
def test_what_is_no_string_is_refused_with_its_position(bad, says):
    """Nothing is coerced, nothing is loaded, and the error is a ValueError too. Fault 63."""
    toy = Toy()
    with pytest.raises(InputError, match=f"position 2 {says}") as caught:
        toy.embedder.embed_documents(["a", "b", bad, "c"])
    assert isinstance(caught.value, ValueError)
    assert (2,) == caught.value.positions
    assert [] == toy.backends


def test_every_bad_position_is_named_at_once():
    """One refusal names them all, shows ten, and nothing was embedded. Fault 63."""
    texts = ["good", *[None] * 12]
    toy = Toy()
    with pytest.raises(InputError, match=r"12 of 13 texts .*positions 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …") as caught:
        toy.embedder.embed_documents(texts)
    assert tuple(range(1, 13)) == caught.value.positions
    assert "on_error" in caught.value.hint


def test_skipping_is_hinted_at_only_where_it_can_be_had():
    """Queries and counting know no on_error. Fault 63."""
    toy = Toy()
    for call in (toy.embedder.embed_queries, toy.embedder.count_tokens):
        with pytest.raises(InputError) as caught:
            call(["a", None])
        assert "leave such texts out" == caught.value.hint


def test_a_misspelt_on_error_is_refused():
    """Taken for "skip", it would leave texts out that nobody meant to."""
    toy = Toy()
    for call in (toy.embedder.embed_documents, toy.embedder.stream_documents, toy.embedder.stream_queries):
        with pytest.raises(InputError, match='on_error must be "raise" or "skip", not \'rasie\''):
            call(["a", None], on_error="rasie")
    assert [] == toy.backends


def test_bytes_come_with_the_mend():
    """Who reads a file in binary is told what to type. Fault 63."""
    with pytest.raises(InputError) as caught:
        Toy().embedder.embed_documents([b"a"])
    assert "decode it first: text.decode()" == caught.value.hint
    assert "The text is of type bytes and no string." == caught.value.problem


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        ("a bare string", "str"),
        (b"bytes", "bytes"),
        (bytearray(b"bytes"), "bytearray"),
        ({"a", "b"}, "set"),
        (frozenset({"a"}), "frozenset"),
        ({"a": 1}, "dict"),
        (collections.OrderedDict(a=1).keys(), "odict_keys"),
        (None, "NoneType"),
        (3, "int"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts, kind):
    """A string would be embedded letter by letter, a set in any order, a mapping by its keys. Fault 64."""
    embedder = Toy().embedder
    for call in (embedder.embed_documents, embedder.embed_queries, embedder.stream_documents, embedder.count_tokens):
        with pytest.raises(InputError, match=f"A list of texts is due, not {kind}"):
            call(texts)


def test_bare_string_comes_with_the_mend():
    """The likeliest slip gets its own hint. Fault 64."""
    with pytest.raises(InputError) as caught:
        Toy().embedder.embed_documents("text")
    assert "put it in a list: [text]" == caught.value.hint


def test_embed_query_takes_one_string():
    """A list is refused with the name of the method that takes one. Fault 64."""
    with pytest.raises(InputError, match="one string, not list") as caught:
        Toy().embedder.embed_query(["a"])
    assert "embed_queries" in caught.value.hint


@pytest.mark.parametrize("make", [list, tuple, iter, np.array])
def test_any_ordered_iterable_of_texts_is_embedded(make):
    """Lists, tuples, generators and arrays of strings are one. Fault 64."""
    found = Toy().embedder.embed_documents(make(["a", "b"])).vectors
    np.testing.assert_array_equal(np.stack([embed_alone("a"), embed_alone("b")]), found)


def test_lone_surrogate_is_refused_with_its_position():
    """The text would fail deep inside a tokenizer or a request: refused first, with the character. Fault 65."""
    with pytest.raises(InputError, match="position 1 holds a lone surrogate at character 3") as caught:
        Toy().embedder.embed_documents(["é", "abc\ud800d"])
    assert (1,) == caught.value.positions


def test_unusual_texts_reach_the_backend_as_they_are():
    """NUL, emoji, marks of right-to-left scripts, white space around: not a character is changed. Fault 66."""
    texts = ["a\0b", "👩\u200d👧", "\u202eabc\u202c", "  a  ", "a\r\nb", "\ufeffa", "\u200b", "e\u0301"]
    toy = Toy()
    toy.embedder.embed_documents(texts)
    assert [("document", texts)] == toy.backend.calls


def test_truncated_texts_are_reported_where_they_stand():
    """Positions are those of the input, duplicates included. Fault 67."""
    long = "word " * 600
    report = Toy().embedder.embed_documents(["a", long, "b", long]).report
    assert (1, 3) == report.truncated
    assert 1 + 512 + 1 == report.n_tokens


def test_too_long_text_is_an_error_where_the_profile_says_so():
    """The others are kept, and the failure is an InputError with the position in the input. Fault 67."""
    toy = Toy(too_long="error")
    with pytest.raises(IncompleteError, match=r"1 of 3 texts have no vector: A text has 600 tokens") as caught:
        toy.embedder.embed_documents(["a", "b", "word " * 600])
    assert (2,) == caught.value.missing
    assert isinstance(caught.value.__cause__, InputError)
    with pytest.raises(InputError) as alone:
        toy.embedder.embed_documents(["word " * 600, "word " * 600])
    assert (0, 1) == alone.value.positions


def test_duplicates_are_embedded_once():
    """A million texts of three kinds are three texts to the backend, and every row is right. Fault 68."""
    toy = Toy()
    texts = ["a", "b", "a", "c"] * 250_000
    found = toy.embedder.embed_documents(texts)
    assert [("document", ["a", "b", "c"])] == toy.backend.calls
    assert (1_000_000, 3) == (found.report.n_texts, found.report.n_unique)
    expected = np.stack([embed_alone(text) for text in "abac"])
    np.testing.assert_array_equal(np.tile(expected, (250_000, 1)), found.vectors)


# ---------- prompts, windows and order


def test_each_role_gets_its_own_prompt():
    """The model's own prompts are put before texts, and tell the roles apart."""
    toy = Toy(prompts={"query": "query: ", "document": "passage: "})
    toy.embedder.embed_documents(["a"])
    toy.embedder.embed_queries(["a"])
    assert [("document", ["passage: a"]), ("query", ["query: a"])] == toy.backend.calls


def test_profile_prompts_stand_above_the_models_own():
    """A declared prompt replaces the model's, and an empty one means none, on purpose."""
    toy = Toy(prompts={"query": "query: ", "document": "passage: "}, query_prompt="", document_prompt="text: ")
    toy.embedder.embed_documents(["a"])
    toy.embedder.embed_queries(["a"])
    assert [("document", ["text: a"]), ("query", ["a"])] == toy.backend.calls
    assert "text: " == toy.embedder.space.document_prompt


def test_count_tokens_can_stop_where_the_model_stops():
    """The space says where; without being asked nothing is cut off."""
    embedder = Toy(prompts={}).embedder
    limit = embedder.space.max_tokens
    assert [limit, 1] == embedder.count_tokens(["word " * (limit + 3), "one"], truncated=True)
    assert [limit + 3, 1] == embedder.count_tokens(["word " * (limit + 3), "one"])


def test_count_tokens_adds_no_prompt():
    """Counting is about the text that the caller has."""
    assert [2, 1] == Toy(prompts={"document": "passage: "}).embedder.count_tokens(["two words", "one"])


def test_backend_sees_unique_texts_window_by_window():
    """No call has more texts than the window, and a text of an earlier window is not sent again."""
    toy = Toy(replaced={"window": 3})
    toy.embedder.embed_documents(["a", "b", "a", "c", "d", "b", "e", "f", "g", "a"])
    assert [["a", "b", "c"], ["d", "e", "f"], ["g"]] == [texts for _, texts in toy.backend.calls]


@settings(deadline=None)
@given(
    texts=st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "eeeee ff", "g"]), max_size=30),
    batch_size=st.integers(1, 5),
    window=st.integers(1, 9),
)
def test_rows_are_in_the_order_of_the_input(texts, batch_size, window):
    """Whatever the duplicates, the batches and the windows, row i is the vector of text i alone."""
    found = Toy(batch_size=batch_size, replaced={"window": window}).embedder.embed_documents(texts)
    assert len(texts) == len(found)
    for text, vector in zip(texts, found, strict=True):
        np.testing.assert_array_equal(embed_alone(text), vector)


def test_embed_query_is_a_row_of_embed_queries():
    """One query is one vector of shape (d,)."""
    embedder = Toy(prompts={"query": "query: "}).embedder
    vector = embedder.embed_query("a")
    assert (64,) == vector.shape
    np.testing.assert_array_equal(embedder.embed_queries(["a"]).vectors[0], vector)


def test_report_says_where_and_what_for_how_much():
    """Device, precision, tokens and their price are in the report; without a price the cost is unknown, not zero."""
    report = Toy(price_per_million_tokens=0.5).embedder.embed_documents(["two words", "one", "one"]).report
    assert ("cpu", "float32", 3, 1.5e-6) == (report.device, report.dtype, report.n_tokens, report.cost)
    assert report.seconds > 0
    assert Toy().embedder.embed_documents(["a"]).report.cost is None


def test_report_says_in_which_way_the_model_ran():
    """A provider that chooses between ways tells which; another need not."""
    assert "packed" == Toy(replaced={"way": "packed"}).embedder.embed_documents(["a"]).report.way
    assert "" == Toy().embedder.embed_documents(["a"]).report.way


def test_unknown_token_counts_make_tokens_and_cost_unknown():
    """One batch that does not tell makes the sum unknown rather than wrong."""

    def encode(texts, *, role):
        for i, n_tokens in enumerate([3, None, 5][: len(texts)]):
            yield Batch(positions=[i], vectors=np.ones((1, 64), np.float32) / 8, n_tokens=n_tokens)

    toy = Toy(replaced={"encode": encode}, price_per_million_tokens=1.0)
    assert 3 == toy.embedder.embed_documents(["a"]).report.n_tokens
    report = toy.embedder.embed_documents(["a", "b", "c"]).report
    assert (None, None) == (report.n_tokens, report.cost)


def test_dropped_query_prompt_is_warned_about_at_load(caplog):
    """A model that brings no query prompt in place of one that an override dropped is worth a line in the log."""
    origins = {"query_prompt": Origin("default", note='profile "quality" declares this model with a prompt')}
    with caplog.at_level(logging.WARNING, logger="embedkit"):
        Toy(origins=origins, prompts={"query": "query: "}).embedder.load()
        Toy(origins=origins, query_prompt="").embedder.load()
        Toy(origins={"query_prompt": Origin("default")}).embedder.load()
        Toy().embedder.load()
        assert [] == caplog.messages
        Toy(origins=origins).embedder.load()
    assert [
        'toy-1 brings no query prompt of its own; profile "quality" declares this model with a prompt'
    ] == caplog.messages


# ---------- skipping and failing


def test_skipping_leaves_the_others_and_says_which():
    """Rows of the good texts, positions of each, and an error for each that was left out."""
    found = Toy().embedder.embed_documents(["a", None, "b", "", "a"], on_error="skip")
    np.testing.assert_array_equal(np.stack([embed_alone(text) for text in "aba"]), found.vectors)
    assert (0, 2, 4) == found.positions
    assert [1, 3] == list(found.report.failures)
    assert "position 3 is blank" in str(found.report.failures[3])


def test_skipping_everything_gives_no_rows():
    """A list of bad texts alone is no error when they are to be skipped."""
    found = Toy(dimensions=8).embedder.embed_documents([None, ""], on_error="skip")
    assert ((0, 8), [0, 1]) == (found.vectors.shape, list(found.report.failures))


def test_skipping_leaves_out_what_the_backend_refuses():
    """A text that only the backend can judge is skipped like one that the embedder judges."""
    long, longer = "word " * 600, "word " * 700
    toy = Toy(too_long="error", replaced={"window": 2})
    found = toy.embedder.embed_documents(["a", long, "b", longer, long], on_error="skip")
    assert (0, 2) == found.positions
    assert {1: 600, 3: 700, 4: 600} == {i: int(str(e).split()[3]) for i, e in found.report.failures.items()}


def fail_after(n_batches, error):
    """Give a `before_batch` that raises *error* once so many batches were made."""
    calls = itertools.count()

    def before_batch():
        if next(calls) >= n_batches:
            raise error

    return before_batch


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_failure_on_the_way_keeps_what_was_embedded(on_error):
    """The error holds the vectors that are there, the positions that are not, and the cause with its hint."""
    cause = TransportError("The server hung up.", origin="http://localhost:1", hint="start it again")
    toy = Toy(batch_size=2, replaced={"window": 2}, before_batch=fail_after(2, cause))
    with pytest.raises(IncompleteError, match=r"2 of 7 texts have no vector: The server hung up\.") as caught:
        toy.embedder.embed_documents(["a", "b", "a", "c", "d", "e", "f"], on_error=on_error)
    error = caught.value
    assert (5, 6) == error.missing
    assert (0, 1, 2, 3, 4) == error.done.positions
    np.testing.assert_array_equal(np.stack([embed_alone(text) for text in "abacd"]), error.done.vectors)
    assert (cause, "http://localhost:1", "start it again") == (error.__cause__, error.origin, error.hint)
    assert "The provider stopped before this text." == error.done.report.failures[6].problem


def test_failure_before_anything_was_embedded_is_raised_as_it_is():
    """With nothing to keep there is nothing to wrap."""
    cause = TransportError("The server hung up.")
    with pytest.raises(TransportError) as caught:
        Toy(before_batch=fail_after(0, cause)).embedder.embed_documents(["a", "b"])
    assert cause is caught.value


def test_foreign_error_keeps_its_traceback():
    """What is no EmbedkitError is a bug somewhere, and is not dressed up."""
    with pytest.raises(ZeroDivisionError):
        Toy(before_batch=lambda: 1 / 0).embedder.embed_documents(["a"])


def test_iterator_of_any_kind_is_closed():
    """A backend need not be written as a generator to be told that nobody wants the rest."""

    class Batches:
        closed = 0

        def __iter__(self):
            return self

        def __next__(self):
            return make_batch(positions=[0, 9])

        def close(self):
            self.closed += 1

    batches = Batches()
    with pytest.raises(ContractError):
        Toy(replaced={"encode": lambda texts, *, role: batches}).embedder.embed_documents(["a", "b"])
    assert 1 == batches.closed


def test_failure_closes_the_backends_iterator():
    """Whatever ends a call, the backend is told, and the next call works."""
    toy = Toy(batch_size=1, before_batch=fail_after(1, TransportError("Gone.")))
    with pytest.raises(IncompleteError):
        toy.embedder.embed_documents(["a", "b", "c"])
    assert 1 == toy.backend.n_closed_iterators


# ---------- what a backend may return


def unit_rows(n, dimensions=64):
    """Make rows of unit length."""
    return np.full((n, dimensions), 1 / np.sqrt(dimensions), np.float32)


def make_batch(**changes):
    """Make a right answer to two texts, with some fields changed."""
    return Batch(**{"positions": [0, 1], "vectors": unit_rows(2), **changes})


BAD_ANSWERS = {
    "nothing at all": (lambda: None, "returned NoneType where batches are due"),
    "an array": (lambda: unit_rows(2), "returned ndarray where a Batch is due"),
    "no batches": (list, "returned no vector for 2 of 2 texts"),
    "a batch short": (lambda: [make_batch(positions=[1], vectors=unit_rows(1))], "no vector for 1 of 2 texts"),
    "a position twice": (lambda: [make_batch(positions=[0, 0])], r"named positions twice: \[0, 0\]"),
    "a position again": (lambda: [make_batch(), make_batch()], "named positions twice"),
    "a failure of a done text": (
        lambda: [make_batch(failures={1: BackendError("x")})],
        r"named positions twice: \[0, 1, 1\]",
    ),
    "a done text of a failure": (
        lambda: [
            make_batch(positions=[0], vectors=unit_rows(1), failures={1: BackendError("x")}),
            make_batch(positions=[1], vectors=unit_rows(1)),
        ],
        "named positions twice",
    ),
    "a position beyond": (lambda: [make_batch(positions=[0, 2])], r"positions that its 2 texts do not have: \[0, 2\]"),
    "a negative position": (lambda: [make_batch(positions=[0, -1])], "positions that its 2 texts do not have"),
    "a fraction of a position": (lambda: [make_batch(positions=[0, 1.5])], "positions that its 2 texts do not have"),
    "a truncated text beyond": (lambda: [make_batch(truncated=[5])], "positions that its 2 texts do not have"),
    "a failed text beyond": (
        lambda: [make_batch(failures={7: BackendError("x")})],
        "positions that its 2 texts do not have",
    ),
    "a failure without error": (
        lambda: [make_batch(positions=[0], vectors=unit_rows(1), failures={1: "no"})],
        "named failures without an EmbedkitError",
    ),
    "a list of lists": (lambda: [make_batch(vectors=[[1.0] * 64] * 2)], "returned list where a float32 array is due"),
    "float64": (lambda: [make_batch(vectors=unit_rows(2).astype(np.float64))], "returned float64 where"),
    "a row too few": (lambda: [make_batch(vectors=unit_rows(1))], r"shape \(1, 64\) for 2 texts of 64 dimensions"),
    "doubled dimensions": (lambda: [make_batch(vectors=unit_rows(2, 128))], r"shape \(2, 128\) for 2 texts"),
    "NaN": (lambda: [make_batch(vectors=unit_rows(2) * np.float32("nan"))], r"not finite \(row 0\)"),
    "zeros": (lambda: [make_batch(vectors=unit_rows(2) * np.float32([[1], [0]]))], r"a vector of zeros \(row 1\)"),
    "half length": (
        lambda: [make_batch(vectors=unit_rows(2) * np.float32(0.5))],
        r"claims unit length and returned a vector of length 0\.5 \(row 0\)",
    ),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS)
def test_answer_that_cannot_be_right_is_refused(answer):
    """The provider and the model are named, and no vector of the answer is used. Fault 29."""
    make_answer, says = BAD_ANSWERS[answer]
    toy = Toy(replaced={"encode": lambda texts, *, role: make_answer()})
    with pytest.raises((ContractError, IncompleteError), match=says) as caught:
        toy.embedder.embed_documents(["a", "b"])
    error = caught.value.__cause__ if isinstance(caught.value, IncompleteError) else caught.value
    assert isinstance(error, ContractError)
    assert error.problem.startswith("Provider 'toy' with model 'toy-1' ")


def test_batches_may_be_any_iterable_with_numpy_positions():
    """A list of batches in reverse, and positions as numpy numbers, are as good as a generator."""
    rows = unit_rows(2) * np.float32([[1], [-1]])
    batches = [
        Batch(positions=np.array([1]), vectors=rows[1:], truncated=np.array([1])),
        Batch(positions=(0,), vectors=rows[:1]),
    ]
    found = Toy(replaced={"encode": lambda texts, *, role: batches}).embedder.embed_documents(["a", "b"])
    np.testing.assert_array_equal(rows, found.vectors)
    assert (1,) == found.report.truncated


def test_rows_need_no_unit_length_where_none_is_claimed():
    """A profile with `normalize = false` gets what the model makes."""
    found = Toy(normalize=False, dimensions=8).embedder.embed_documents(["a few words"])
    assert abs(np.linalg.norm(found.vectors[0]) - 1) > 0.1


@pytest.mark.parametrize(
    ("fields", "replaced", "says"),
    [
        ({}, {"space": None}, "made Watched with space None and window 1024: no backend"),
        ({}, {"window": 0}, "window 0: no backend"),
        ({}, {"window": "all"}, "window 'all': no backend"),
        ({"document_prompt": "text: "}, {"space": toy_provider().identify(Profile(model="m"), ToyOptions())}, "''"),
    ],
)
def test_backend_that_breaks_its_protocol_is_refused_at_load(fields, replaced, says):
    """The load fails with the provider's name, and what was loaded is closed again. Fault 29."""
    toy = Toy(replaced=replaced, **fields)
    with pytest.raises(ContractError, match=says):
        toy.embedder.load()
    assert 1 == toy.backend.n_closed


def test_load_that_returns_nothing_is_refused():
    """A forgotten `return` in a provider is told as what it is. Fault 29."""
    with pytest.raises(ContractError, match="made NoneType with space None and window None: no backend"):
        Embedder(Profile(provider="toy", model="m"), lambda: None).load()


def test_other_dimensions_than_the_profiles_are_refused_at_load():
    """The error names both numbers, where the profile's came from, and what to type. Fault 29."""
    toy = Toy(dimensions=32, origins={"dimensions": Origin("EMBEDDING_DIMENSIONS")})
    toy.recipe = attrs.evolve(toy_provider(), load=lambda p, o: toy_provider().load(attrs.evolve(p, dimensions=64), o))
    with pytest.raises(ContractError, match="64 dimensions, and the profile says 32") as caught:
        toy.embedder.embed_documents(["a"])
    assert "EMBEDDING_DIMENSIONS" == caught.value.origin
    assert "dimensions = 64" in caught.value.hint


def test_token_counts_are_checked():
    """A provider that cannot count says so; one that gives too few counts is refused. Fault 29."""
    with pytest.raises(BackendError, match="cannot count tokens"):
        Toy(replaced={"count_tokens": lambda texts: None}).embedder.count_tokens(["a"])
    with pytest.raises(ContractError, match="gave 1 token counts for 2 texts"):
        Toy(replaced={"count_tokens": lambda texts: [1]}).embedder.count_tokens(["a", "b"])


@pytest.mark.parametrize("kind", [ModelLoadError, SettingError])
def test_refused_model_is_named_with_the_line_that_names_it(kind):
    """A provider knows what is wrong, the profile knows where it is written; what the provider says stays."""

    def refuse(origin):
        def load():
            raise kind("There is no such model.", origin=origin)

        return Toy(before_load=load, origins={"model": Origin("profiles.toml [profiles.test]")}).embedder

    for stated, expected in (("", "profiles.toml [profiles.test]"), ("the line of an option", "the line of an option")):
        with pytest.raises(kind) as caught:
            refuse(stated).load()
        assert expected == caught.value.origin


def test_failed_load_is_tried_again():
    """A server that was down may be up for the next call: a failed load leaves nothing behind."""
    errors = [ModelLoadError("Not yet.")]

    def fail_once():
        if errors:
            raise errors.pop()

    toy = Toy(before_load=fail_once)
    with pytest.raises(ModelLoadError):
        toy.embedder.embed_documents(["a"])
    assert 1 == len(toy.embedder.embed_documents(["a"]))


# ---------- streaming


def count_up(drawn):
    """Yield texts for ever, noting each that was drawn."""
    for number in itertools.count():
        drawn.append(number)
        yield f"text {number}"


def test_stream_of_an_endless_iterable_reads_only_the_next_window():
    """Nothing is drawn before the first part is asked for, and never more than the windows that were given out."""
    drawn = []
    toy = Toy(replaced={"window": 3})
    stream = toy.embedder.stream_documents(count_up(drawn))
    assert [] == drawn
    for n_parts in range(1, 5):
        part = next(stream)
        assert (3, 3 * n_parts) == (len(part), len(drawn))
    np.testing.assert_array_equal(embed_alone("text 11"), part[2])


def test_stream_holds_bounded_memory():
    """A thousand windows later, no more than a few parts and texts are alive."""

    class Text(str):
        __slots__ = ("__weakref__",)

    alive = weakref.WeakSet()

    def make_texts():
        for number in itertools.count():
            text = Text(f"text {number}")
            alive.add(text)
            yield text

    stream = Toy(replaced={"window": 4, "calls": collections.deque(maxlen=1)}).embedder.stream_documents(make_texts())
    for _ in itertools.islice(stream, 1000):
        assert len(alive) <= 3 * 4


def test_parts_of_a_stream_join_to_one_call():
    """Rows, positions and counts of the parts add up to what one call gives."""
    texts = ["a", None, "b", "a", "word " * 600, "c", ""]
    embedder = Toy(replaced={"window": 2}).embedder
    whole = embedder.embed_documents(texts, on_error="skip")
    joined = join(embedder.stream_documents(texts, on_error="skip"))
    np.testing.assert_array_equal(whole.vectors, joined.vectors)
    assert whole.positions == joined.positions
    assert (whole.report.n_texts, whole.report.truncated) == (joined.report.n_texts, joined.report.truncated)
    assert list(whole.report.failures) == list(joined.report.failures)


def test_bad_text_in_a_stream_is_named_by_its_place_in_the_whole_input():
    """Positions count from the start of the input, also for the last text alone in its window. Fault 63."""
    stream = Toy(replaced={"window": 2}).embedder.stream_documents(["a", "b", "c", "d", None])
    assert [2, 2] == [len(next(stream)), len(next(stream))]
    with pytest.raises(InputError, match="position 4 is None") as caught:
        next(stream)
    assert (4,) == caught.value.positions


def test_failure_in_a_stream_names_places_in_the_whole_input():
    """Parts that were given out stay good; the window that failed says what is missing in the input."""
    toy = Toy(batch_size=1, replaced={"window": 2}, before_batch=fail_after(3, TransportError("Gone.")))
    stream = toy.embedder.stream_documents(["a", "b", "longer", "d"])
    assert 2 == len(next(stream))
    with pytest.raises(IncompleteError) as caught:
        next(stream)
    assert (3,) == caught.value.missing
    refused = Toy(too_long="error", replaced={"window": 2}).embedder.stream_documents(["a", "b", "word " * 600])
    next(refused)
    with pytest.raises(InputError) as caught:
        next(refused)
    assert (2,) == caught.value.positions


def test_stream_of_queries_has_the_query_prompt():
    """Queries by the million go the same way, as queries."""
    toy = Toy(prompts={"query": "query: "}, replaced={"window": 2})
    parts = list(toy.embedder.stream_queries(["a", "b", "c"]))
    assert [2, 1] == [len(part) for part in parts]
    assert [("query", ["query: a", "query: b"]), ("query", ["query: c"])] == toy.backend.calls
    with pytest.raises(InputError, match="A list of texts is due, not str"):
        toy.embedder.stream_queries("a")


def test_stream_that_goes_on_names_places_from_where_it_started():
    """Who embeds the rest of a file gets the positions of the whole file in errors. Fault 63."""
    stream = Toy(replaced={"window": 2}).embedder.stream_documents(["a", "b", None], start=10)
    next(stream)
    with pytest.raises(InputError, match="position 12 is None") as caught:
        next(stream)
    assert (12,) == caught.value.positions


def test_progress_of_a_stream_adds_up_to_its_texts():
    """Each batch is told as it is done; duplicates and skipped texts are told with their window."""
    told = []
    stream = Toy(batch_size=2, replaced={"window": 4}).embedder.stream_documents(
        ["a", "bb", "a", "", "ccc", "d"], on_error="skip", progress=told.append
    )
    next(stream)
    assert [2, 2] == told
    next(stream)
    assert 6 == sum(told)
    failed = []
    refusing = Toy(too_long="error").embedder.stream_documents(["word " * 600, "a"], progress=failed.append)
    with pytest.raises(IncompleteError):
        next(refusing)
    assert 2 == sum(failed)


def test_empty_stream_ends_at_once():
    """No documents, no parts."""
    assert [] == list(Toy().embedder.stream_documents([]))


# ---------- async


def test_async_calls_give_what_the_others_give():
    """The door is thin: the same rows, reports and refusals, over several event loops. Fault 82."""
    embedder = Toy(prompts={"query": "query: "}).embedder

    async def embed():
        return await asyncio.gather(
            embedder.aembed_documents(["a", None], on_error="skip"),
            embedder.aembed_queries(["a", "b"]),
            embedder.aembed_query("a"),
        )

    for _ in range(3):
        documents, queries, query = asyncio.run(embed())
        np.testing.assert_array_equal(embed_alone("a"), documents[0])
        assert [1] == list(documents.report.failures)
        np.testing.assert_array_equal(embedder.embed_queries(["a", "b"]).vectors, queries.vectors)
        np.testing.assert_array_equal(queries[0], query)
    with pytest.raises(InputError, match="A list of texts"):
        asyncio.run(embedder.aembed_documents("a"))
    with pytest.raises(InputError, match="is blank"):
        asyncio.run(embedder.aembed_queries([""]))


def test_async_call_does_not_block_the_event_loop():
    """While the backend works, the loop goes on: here only the loop can let the backend finish."""
    gate = threading.Event()
    embedder = Toy(before_batch=lambda: gate.wait(timeout=60)).embedder

    async def embed():
        task = asyncio.create_task(embedder.aembed_documents(["a"]))
        await asyncio.sleep(0)
        gate.set()
        return await task

    assert 1 == len(asyncio.run(embed()))


def test_cancelled_call_stops_the_backend_after_the_batch_under_way():
    """The backend's iterator is closed, what was queued is never made, and the next call works. Fault 83."""
    batches, started, gate = [], threading.Event(), threading.Event()

    def before_batch():
        batches.append(1)
        started.set()
        gate.wait(timeout=60)

    toy = Toy(batch_size=1, replaced={"window": 4}, before_batch=before_batch)

    async def cancel():
        task = asyncio.create_task(toy.embedder.aembed_documents([f"text {i}" for i in range(100)]))
        await asyncio.to_thread(started.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()

    # Leaving the loop waits for its threads, so that what was to stop has stopped.
    asyncio.run(cancel())
    assert (1, 1, 1) == (len(batches), toy.backend.n_closed_iterators, len(toy.backend.calls))
    assert 1 == len(toy.embedder.embed_documents(["a"]))


# ---------- threads, holders, close and fork


def run_in_threads(n_threads, work):
    """Run *work(number)* in so many threads that start together, and give the results in order."""
    together = threading.Barrier(n_threads)

    def run(number):
        together.wait(timeout=60)
        return work(number)

    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(run, range(n_threads)))


def test_first_use_from_many_threads_loads_once():
    """Thirty-two threads want the model at the same time: one loads it, and all use it. Fault 81."""
    arrived = threading.Semaphore(0)

    def before_load():
        # Give the others time to come to the same door.
        for _ in range(5):
            arrived.acquire(timeout=1)

    toy = Toy(before_load=before_load)

    def embed(_):
        arrived.release()
        return toy.embedder.embed_query("a")

    found = run_in_threads(32, embed)
    assert 1 == len(toy.backends)
    np.testing.assert_array_equal(np.stack([embed_alone("a")] * 32), np.stack(found))


def test_many_threads_on_mixed_profiles_get_what_one_gets():
    """Two embedders of different models, both roles, thirty-two threads: every row as from one thread. Fault 78."""
    embedders = [Toy(batch_size=2).embedder, Toy(model="toy-2", dimensions=16, prompts={"query": "q: "}).embedder]
    texts = [f"text number {i}" for i in range(20)]
    expected = [(embedder.embed_documents(texts), embedder.embed_queries(texts)) for embedder in embedders]

    def embed(number):
        embedder, rows = embedders[number % 2], range(number % 7, 20, 1 + number % 3)
        call = embedder.embed_queries if number % 4 > 1 else embedder.embed_documents
        return [(rows, call([texts[row] for row in rows]).vectors) for _ in range(5)]

    for number, found in enumerate(run_in_threads(32, embed)):
        for rows, vectors in found:
            np.testing.assert_array_equal(expected[number % 2][number % 4 > 1].vectors[list(rows)], vectors)


def test_counting_tokens_beside_embedding_disturbs_neither():
    """Half of the threads count, half embed. Fault 79."""
    embedder = Toy(batch_size=2).embedder
    texts = [f"text {'word ' * i}" for i in range(12)]
    counts, vectors = embedder.count_tokens(texts), embedder.embed_documents(texts).vectors

    def work(number):
        return embedder.count_tokens(texts) if number % 2 else embedder.embed_documents(texts).vectors

    for number, found in enumerate(run_in_threads(32, work)):
        np.testing.assert_array_equal(counts if number % 2 else vectors, found)


def test_use_after_close_is_a_clear_error():
    """Every method says that the embedder was closed, and where to get another. Fault 88."""
    toy = Toy()
    with toy.embedder as embedder:
        stream = embedder.stream_documents(["a"] * 5000)
        embedder.embed_documents(["a"])
    assert 1 == toy.backend.n_closed
    calls = [
        lambda: embedder.embed_documents(["a"]),
        lambda: embedder.embed_queries(["a"]),
        lambda: embedder.embed_query("a"),
        lambda: embedder.count_tokens(["a"]),
        lambda: asyncio.run(embedder.aembed_query("a")),
        lambda: next(stream),
        lambda: embedder.space,
        embedder.load,
    ]
    for call in calls:
        with pytest.raises(BackendError, match="This embedder of profile 'test' was closed") as caught:
            call()
        assert "embedkit.get_embedder()" in caught.value.hint
    assert 1 == len(toy.backends)


def test_closing_twice_is_harmless():
    """The backend is closed once; closing what was never loaded loads nothing. Fault 88."""
    toy = Toy()
    toy.embedder.load()
    toy.embedder.close()
    toy.embedder.close()
    assert 1 == toy.backend.n_closed
    unused = Toy()
    unused.embedder.close()
    assert [] == unused.backends


def test_close_during_use_waits_for_the_call_under_way():
    """The call under way gets right vectors, new ones are refused, and then the backend is closed. Fault 88."""
    started, gate = threading.Event(), threading.Event()

    def before_batch():
        started.set()
        gate.wait(timeout=60)

    toy = Toy(before_batch=before_batch)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(toy.embedder.embed_documents, ["a"])
        assert started.wait(timeout=60)
        toy.embedder.close()
        with pytest.raises(BackendError, match="was closed"):
            toy.embedder.embed_query("b")
        assert 0 == toy.backend.n_closed
        gate.set()
        np.testing.assert_array_equal(embed_alone("a"), call.result(timeout=60)[0])
    assert 1 == toy.backend.n_closed


def test_every_holder_closes_for_itself():
    """The last one of three gives the model back; a closed embedder takes no new holder."""
    toy = Toy()
    embedder = toy.embedder.load()
    assert embedder.hold()
    assert embedder.hold()
    embedder.close()
    embedder.close()
    assert 1 == len(embedder.embed_documents(["a"]))
    assert 0 == toy.backend.n_closed
    assert not embedder.closed
    embedder.close()
    assert 1 == toy.backend.n_closed
    assert embedder.closed
    assert not embedder.hold()


def test_repr_says_what_it_is_and_whether_it_is_loaded():
    """A person who prints one sees profile, provider, model and state."""
    embedder = Toy().embedder
    assert "Embedder(test: toy toy-1, not loaded yet)" == repr(embedder)
    assert "Embedder(test: toy toy-1, loaded)" == repr(embedder.load())
    embedder.close()
    assert "Embedder(test: toy toy-1, closed)" == repr(embedder)


FORKING_PROGRAM = """
import os, sys, threading
from embedkit.embedder import Embedder
from embedkit.profile import Profile
from embedkit.testing import ToyBackend, ToyOptions, toy_provider

parent = os.getpid()
loading, encoding, loads, closed = threading.Event(), threading.Event(), [], []
profile = Profile(provider="toy", model="toy-1")
space = toy_provider().identify(profile, ToyOptions())

class Backend(ToyBackend):
    def encode(self, texts, *, role):
        if texts == ["for ever"]:
            encoding.set()
            threading.Event().wait()
        return super().encode(texts, role=role)

    def close(self):
        closed.append(os.getpid())

    def __del__(self):
        if os.getpid() != self.owner:
            print("the child destroyed what is the parent's", file=sys.stderr)

def load():
    loads.append(os.getpid())
    backend = Backend(profile, space, {}, None)
    backend.owner = os.getpid()
    return backend

def load_for_ever_in_the_parent():
    if os.getpid() == parent:
        loading.set()
        threading.Event().wait()
    return load()

idle, used = Embedder(profile, load), Embedder(profile, load)
being_loaded = Embedder(profile, load_for_ever_in_the_parent)
expected = idle.embed_query("a").tobytes()
used.load()

# At the fork one thread is in the middle of a load, one in a call, and one holds the lock of the embedder in use.
threading.Thread(target=being_loaded.load, daemon=True).start()
threading.Thread(target=used.embed_query, args=["for ever"], daemon=True).start()
loading.wait()
encoding.wait()
holding = threading.Event()

def hold_for_ever():
    with used._state_lock:
        holding.set()
        threading.Event().wait()

threading.Thread(target=hold_for_ever, daemon=True).start()
holding.wait()
child = os.fork()
if child == 0:
    right = [embedder.embed_query("a").tobytes() == expected for embedder in (idle, used, being_loaded)]
    used.close()
    me = os.getpid()
    os._exit(0 if (right, loads[2:], closed) == ([True] * 3, [me] * 3, [me]) else 3)
_, status = os.waitpid(child, 0)
os._exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_gets_right_vectors_and_never_hangs():
    """The child loads its own, though the parent had embedded and its threads held both locks. Fault 80."""
    result = subprocess.run(
        # A fork beside threads is what newer Pythons warn of, and what this is about.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING_PROGRAM],
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (result.returncode, result.stderr)


def test_incomplete_result_survives_pickling():
    """What was embedded before a failure comes out of a worker process whole. Fault 86."""
    toy = Toy(batch_size=1, before_batch=fail_after(1, TransportError("Gone.", hint="wait")))
    with pytest.raises(IncompleteError) as caught:
        toy.embedder.embed_documents(["a", "b"])
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  # made here
    np.testing.assert_array_equal(caught.value.done.vectors, copy.done.vectors)
    assert ((1,), "wait", str(caught.value)) == (copy.missing, copy.hint, str(copy))
    assert caught.value.done.space == copy.done.space
