"""Ranking with a toy model: order, refusals, what a provider may not return, threads, closing and forks."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedkit.errors import BackendError, ContractError, InputError
from embedkit.profile import RerankerProfile
from embedkit.reranker import Ranked, Reranker

PROFILE = RerankerProfile(name="judge", provider="toy", model="m")


class Toy:
    """Score a document by how many of the query's words it has."""

    device = "cpu"
    scores = "logits"

    def __init__(self):
        self.n_closed = 0

    def score(self, query, documents):
        """Count shared words."""
        words = set(query.split())
        return np.array([len(words & set(document.split())) for document in documents], np.float32)

    def close(self):
        """Count the calls."""
        self.n_closed += 1


def answer(scores):
    """Make a reranker whose model answers *scores* to everything."""
    toy = Toy()
    toy.score = lambda query, documents: scores
    return Reranker(PROFILE, lambda: toy)


WRONG = "they are blank, no strings, or hold lone surrogates"
DOCUMENTS = ["none", "a b", "a", "a b c", "b"]


def test_the_best_documents_come_first_and_equals_keep_their_order():
    """Positions are those of the list that was given."""
    expected = [Ranked(3, 3.0), Ranked(1, 2.0), Ranked(2, 1.0), Ranked(4, 1.0), Ranked(0, 0.0)]
    assert expected == Reranker(PROFILE, Toy).rerank("a b c", DOCUMENTS)
    assert expected[:2] == Reranker(PROFILE, Toy).rerank("a b c", DOCUMENTS, k=2)
    assert expected == Reranker(PROFILE, Toy).rerank("a b c", tuple(DOCUMENTS), k=9)
    many = answer(np.arange(100, dtype=np.float32) % 2).rerank("a", ["b"] * 100)
    assert [*range(1, 100, 2), *range(0, 100, 2)] == [ranked.position for ranked in many]


def test_nothing_to_rank_loads_nothing():
    """Fault 61."""
    reranker = Reranker(PROFILE, lambda: pytest.fail("nothing was to be loaded"))
    assert [] == reranker.rerank("a", [])


@pytest.mark.parametrize(
    ("query", "documents", "problem", "positions"),
    [
        ("", ["a"], "The query is blank, no string, or holds a lone surrogate.", ()),
        (" \n", ["a"], "The query is blank, no string, or holds a lone surrogate.", ()),
        (None, ["a"], "The query is blank, no string, or holds a lone surrogate.", ()),
        ("\ud800", ["a"], "The query is blank, no string, or holds a lone surrogate.", ()),
        ("a", "abc", "A list of documents is due, not str.", ()),
        ("a", {"b"}, "A list of documents is due, not set.", ()),
        ("a", iter(["b"]), "A list of documents is due, not list_iterator.", ()),
        (
            "a",
            ["b", "", None, b"c", "\udfff", "é"],
            f"4 of 6 documents cannot be ranked (positions [1, 2, 3, 4]): {WRONG}.",
            (1, 2, 3, 4),
        ),
    ],
)
def test_what_cannot_be_ranked_is_refused_before_anything_is_loaded(query, documents, problem, positions):
    """Faults 62 to 65."""
    reranker = Reranker(PROFILE, lambda: pytest.fail("nothing was to be loaded"))
    with pytest.raises(InputError) as caught:
        reranker.rerank(query, documents)
    assert (problem, positions) == (caught.value.problem, caught.value.positions)


@pytest.mark.parametrize("k", [0, -1])
def test_a_number_of_results_below_one_is_refused(k):
    """A slice would leave out the last ones for it."""
    with pytest.raises(InputError, match=f"k must be at least 1, not {k}"):
        Reranker(PROFILE, Toy).rerank("a", DOCUMENTS, k=k)


@pytest.mark.parametrize(
    "scores",
    [
        None,
        np.zeros(4, np.float32),
        np.zeros((5, 1), np.float32),
        np.array([0, 1, np.nan, 1, 1], np.float32),
        np.array([0, 1, np.inf, 1, 1], np.float32),
        np.zeros(5, np.uint8),
        np.array(["1"] * 5),
    ],
    ids=["None", "too few", "a column", "nan", "inf", "unsigned", "strings"],
)
def test_scores_that_cannot_be_right_are_not_used(scores):
    """Faults 50 and 54, of rerankers. Unsigned numbers would turn the order round when they are negated."""
    with pytest.raises(ContractError, match="Provider 'toy' gave no finite score for each of 5 documents"):
        answer(scores).rerank("a", DOCUMENTS)


def test_first_use_from_32_threads_loads_once():
    """Fault 81."""
    loads = []
    together = threading.Barrier(32)

    def load():
        loads.append(1)
        threading.Event().wait(0.05)  # the others come meanwhile
        return Toy()

    reranker = Reranker(PROFILE, load)

    def rank(_):
        together.wait()
        return reranker.rerank("a b c", DOCUMENTS)[0]

    with ThreadPoolExecutor(32) as pool:
        assert {Ranked(3, 3.0)} == set(pool.map(rank, range(32)))
    assert 1 == len(loads)


def test_a_load_that_failed_is_tried_again():
    """A network may come back."""
    answers = [OSError("down"), None]

    def load():
        if (error := answers.pop(0)) is not None:
            raise error
        return Toy()

    reranker = Reranker(PROFILE, load)
    with pytest.raises(OSError, match="down"):
        reranker.rerank("a", DOCUMENTS)
    assert 5 == len(reranker.rerank("a", DOCUMENTS))


def test_a_closed_reranker_refuses_and_closes_its_model_once():
    """Fault 88. Never loaded, nothing is there to close."""
    toy = Toy()
    with Reranker(PROFILE, lambda: toy) as reranker:
        assert "Reranker(judge: toy m, not loaded yet)" == repr(reranker)
        reranker.rerank("a", DOCUMENTS)
        assert "Reranker(judge: toy m, loaded)" == repr(reranker)
    reranker.close()
    assert (1, "Reranker(judge: toy m, closed)") == (toy.n_closed, repr(reranker))
    with pytest.raises(BackendError, match="This reranker 'judge' was closed"):
        reranker.rerank("a", DOCUMENTS)
    Reranker(PROFILE, lambda: pytest.fail("nothing was to be loaded")).close()


def test_closing_during_a_call_waits_for_its_end():
    """Fault 88. The model is closed when nobody uses it any more, and the call gets its answer."""
    toy, under_way, go_on = Toy(), threading.Event(), threading.Event()
    score = toy.score

    def score_slowly(query, documents):
        under_way.set()
        assert go_on.wait(60)
        assert 0 == toy.n_closed
        return score(query, documents)

    toy.score = score_slowly
    reranker = Reranker(PROFILE, lambda: toy)
    with ThreadPoolExecutor(1) as pool:
        ranked = pool.submit(reranker.rerank, "a b c", DOCUMENTS)
        assert under_way.wait(60)
        reranker.close()
        assert 0 == toy.n_closed
        go_on.set()
        assert Ranked(3, 3.0) == ranked.result(60)[0]
    assert 1 == toy.n_closed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_loads_its_own_although_a_lock_was_held():
    """Fault 80. Here the parent is in the middle of loading when it forks."""
    loads, under_way, go_on = [], threading.Event(), threading.Event()

    def load():
        loads.append(os.getpid())
        under_way.set()
        assert go_on.wait(60)
        return Toy()

    reranker = Reranker(PROFILE, load)
    thread = threading.Thread(target=reranker.rerank, args=("a", DOCUMENTS))
    thread.start()
    assert under_way.wait(60)
    child = os.fork()
    if child == 0:
        code = 1
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)  # a child that hangs ends by itself
        try:
            go_on.set()
            code = 0 if reranker.rerank("a b c", DOCUMENTS)[0] == Ranked(3, 3.0) and loads[-1] == os.getpid() else 2
        finally:
            os._exit(code)
    go_on.set()
    thread.join(60)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert [os.getpid()] == loads
