"""The texts that `bench` measures with."""

import hashlib

from embedkit.sample_texts import build_queries, build_texts


def test_texts_and_queries_are_the_same_on_every_machine():
    """Figures of two machines are about the same texts."""
    written = "\n".join([*build_texts(200), *build_queries(50)])
    assert "84671121f3dd3020" == hashlib.sha256(written.encode()).hexdigest()[:16]


def test_all_texts_differ_and_fewer_are_the_first_of_more():
    """A duplicate would be embedded once, and make a profile look faster."""
    texts, queries = build_texts(3000), build_queries(500)
    assert (3000, 500) == (len(set(texts)), len(set(queries)))
    assert texts[:10] == build_texts(10)
    assert queries[:10] == build_queries(10)


def test_lengths_are_mixed():
    """Short and long ones, as in a real collection; a query has about ten words."""
    counts = sorted(len(text.split()) for text in build_texts(1000))
    assert counts[0] < 12
    assert 80 < counts[500] < 120
    assert 150 < counts[-1] < 220
    assert {True} == {4 <= len(query.split()) <= 16 for query in build_queries(200)}


def test_no_slot_is_left_open():
    """Every sentence is whole."""
    assert [] == [text for text in [*build_texts(500), *build_queries(200)] if "{" in text or "}" in text]
