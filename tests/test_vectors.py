"""Vectors that know their space: what they refuse, their arithmetic, and the files they are kept in."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embedkit.errors import BackendError, ContractError, InputError, SpaceMismatchError
from embedkit.space import Space
from embedkit.vectors import (
    Embeddings,
    Report,
    check_vectors,
    compute_cosines,
    format_header,
    format_rows,
    join,
    join_reports,
    read_end,
    read_vectors,
    require_vector_file,
    scale_to_unit,
    write_vectors,
)

SPACE = Space(weights="f00d", dimensions=3, normalized=False, model="some/model")
UNIT_SPACE = attrs.evolve(SPACE, normalized=True)


def build(rows, **report):
    """Make Embeddings of three dimensions."""
    vectors = np.array(rows, np.float32).reshape(len(rows), 3)
    return Embeddings(vectors, SPACE, Report(**{"n_texts": len(rows), "n_unique": len(rows), **report}))


# ---------- what Embeddings are


@pytest.mark.parametrize(
    ("vectors", "found"),
    [
        ([[1.0, 2.0, 3.0]], "list"),
        (np.zeros((1, 3)), "float64 of shape"),
        (np.zeros(3, np.float32), r"float32 of shape \(3,\)"),
        (np.zeros((1, 4), np.float32), r"float32 of shape \(1, 4\)"),
        (np.zeros((3, 2), np.float32).T, r"float32 of shape \(2, 3\)"),
    ],
)
def test_embeddings_hold_nothing_but_contiguous_float32_of_their_space(vectors, found):
    """Whoever holds Embeddings can rely on shape, type and layout. Fault 29."""
    with pytest.raises(ContractError, match=rf"contiguous float32, \(n, 3\), not {found}"):
        Embeddings(vectors, SPACE)


def test_embeddings_are_a_sequence_of_rows_and_an_array():
    """Length, indexing, iteration and numpy see the vectors; a person sees how many of what."""
    embeddings = build([[1, 2, 3], [4, 5, 6]])
    assert 2 == len(embeddings)
    assert [4, 5, 6] == embeddings[1].tolist()
    assert [[1, 2, 3]] == embeddings[:1].tolist()
    assert [6.0, 15.0] == [float(row.sum()) for row in embeddings]
    assert np.asarray(embeddings) is embeddings.vectors
    assert np.float64 == np.asarray(embeddings, np.float64).dtype
    assert not np.shares_memory(np.array(embeddings), embeddings.vectors)
    assert f"Embeddings(2 vectors of {SPACE})" == repr(embeddings)


def test_positions_leave_out_what_has_no_vector():
    """Each row knows which input it belongs to."""
    assert (0, 1) == build([[1, 2, 3], [4, 5, 6]]).positions
    skipped = build([[1, 2, 3], [4, 5, 6]], n_texts=4, failures={0: BackendError("x"), 2: BackendError("x")})
    assert (1, 3) == skipped.positions


def test_similarity_is_the_cosine_whatever_the_lengths():
    """Same direction 1, right angle 0, opposite -1; a row of zeros is near nothing."""
    left, right = build([[2, 0, 0], [0, 0, 0]]), build([[9, 0, 0], [0, 1, 0], [-3, 0, 0]])
    assert [[1, 0, -1], [0, 0, 0]] == left.similarity(right).tolist()
    assert np.float32 == left.similarity(right).dtype


def test_similarity_refuses_another_space():
    """Vectors of two spaces are never compared, whatever their width."""
    other = Embeddings(np.ones((1, 3), np.float32), attrs.evolve(SPACE, weights="beef"))
    with pytest.raises(SpaceMismatchError) as caught:
        build([[1, 2, 3]]).similarity(other)
    assert (SPACE, other.space) == (caught.value.expected, caught.value.found)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (4, 3), elements=st.floats(-1e6, 1e6, width=32)))
def test_cosines_never_leave_their_range(vectors):
    """Rounding can step over 1: what is done with a cosine (an arc cosine) must not fail on it."""
    cosines = compute_cosines(vectors, vectors)
    assert (4, 4) == cosines.shape
    assert -1.0 <= cosines.min() <= cosines.max() <= 1.0


def test_scaling_keeps_rows_of_zeros():
    """No row becomes NaN."""
    scaled = scale_to_unit(np.array([[3, 4, 0], [0, 0, 0]], np.float32))
    np.testing.assert_allclose([[0.6, 0.8, 0], [0, 0, 0]], scaled, atol=1e-7)


def test_nearest_rows_come_best_first_and_ties_in_their_order():
    """At most k rows with their cosines."""
    embeddings = build([[0, 1, 0], [1, 0, 0], [2, 0, 0], [1, 1, 0]])
    found = embeddings.find_nearest(np.array([5, 0, 0], np.float32), k=3)
    assert [1, 2, 3] == [row for row, _ in found]
    np.testing.assert_allclose([1, 1, np.sqrt(0.5)], [score for _, score in found], rtol=1e-6)
    assert 4 == len(embeddings.find_nearest(np.array([5, 0, 0], np.float32)))
    ties = build([[row % 3 == 0, row % 3 == 1, row % 3 == 2] for row in range(99)])
    found = ties.find_nearest(np.array([3, 2, 1], np.float32), k=99)
    assert [*range(0, 99, 3), *range(1, 99, 3), *range(2, 99, 3)] == [row for row, _ in found]


def test_one_query_vector_is_due_where_rows_are_ranked():
    """Several queries, a row of another length and a k of nothing are refused in words; a list of numbers is one."""
    embeddings = build([[0, 1, 0], [1, 0, 0]])
    assert [(1, 1.0)] == embeddings.find_nearest([1, 0, 0], k=1)
    for query, shape in ((build([[1, 0, 0]]), r"\(1, 3\)"), (np.ones(4, np.float32), r"\(4,\)"), (1.0, r"\(\)")):
        with pytest.raises(InputError, match=f"of 3 numbers is due, not shape {shape}") as caught:
            embeddings.find_nearest(query)
        assert "queries[0]" in caught.value.hint
    for k in (0, -1):
        with pytest.raises(InputError, match=f"k must be at least 1, not {k}"):
            embeddings.find_nearest([1, 0, 0], k=k)


def test_a_bare_array_is_not_compared():
    """What `embed_query` gives does not know its space: the error says what does."""
    with pytest.raises(InputError, match="not with ndarray: its space is unknown") as caught:
        build([[1, 2, 3]]).similarity(np.ones((1, 3), np.float32))
    assert "embed_queries([query])" in caught.value.hint


# ---------- what a provider may return


@pytest.mark.parametrize(
    ("vectors", "space", "says"),
    [
        ([[1.0, 0.0, 0.0]] * 2, SPACE, "returned list where a float32 array is due"),
        (np.ones((2, 3)), SPACE, "returned float64 where a float32 array is due"),
        (np.ones((1, 3), np.float32), SPACE, r"shape \(1, 3\) for 2 texts of 3 dimensions"),
        (np.ones((2, 6), np.float32), SPACE, r"shape \(2, 6\) for 2 texts of 3 dimensions"),
        (np.ones(6, np.float32), SPACE, r"shape \(6,\) for 2 texts"),
        (np.array([[1, 2, 3], [1, np.nan, 3]], np.float32), SPACE, r"not finite \(row 1\)"),
        (np.array([[1, -np.inf, 3], [1, 2, 3]], np.float32), SPACE, r"not finite \(row 0\)"),
        (np.full((2, 3), 3e38, np.float32), SPACE, r"not finite \(row 0\)"),
        (np.array([[1, 0, 0], [0, 0, 0]], np.float32), SPACE, r"a vector of zeros \(row 1\)"),
        (np.array([[1, 0, 0], [0, 1.01, 0]], np.float32), UNIT_SPACE, r"vector of length 1\.01 \(row 1\)"),
    ],
)
def test_vectors_that_cannot_be_right_are_refused(vectors, space, says):
    """Never padded, never cast, never repaired: the source is named, and the row. Fault 29."""
    with pytest.raises(ContractError, match=f"^The server .*{says}"):
        check_vectors(vectors, n=2, space=space, source="The server")


def test_right_vectors_pass_and_become_contiguous():
    """Values are untouched; a length within rounding of 1 is unit length."""
    vectors = np.array([[1, 0], [0, 1.0009], [0, 0]], np.float32).T
    checked = check_vectors(vectors, n=2, space=UNIT_SPACE, source="The server")
    np.testing.assert_array_equal(vectors, checked)
    assert checked.flags.c_contiguous
    assert (0, 3) == check_vectors(np.empty((0, 3), np.float32), n=0, space=UNIT_SPACE, source="The server").shape


# ---------- joining


def test_joining_counts_positions_on():
    """Rows follow one another; truncated texts and failures keep their places in the whole."""
    lost = BackendError("lost")
    first = build([[1, 2, 3]], n_texts=2, failures={1: lost}, n_tokens=5, seconds=1.0, cost=0.5, device="a")
    second = build([[4, 5, 6], [7, 8, 9]], truncated=(1,), n_tokens=7, seconds=2.0, cost=0.25, n_cached=1, device="b")
    joined = join(iter([first, second]))
    assert [[1, 2, 3], [4, 5, 6], [7, 8, 9]] == joined.vectors.tolist()
    expected = Report(
        n_texts=4,
        n_unique=3,
        n_cached=1,
        n_tokens=12,
        truncated=(3,),
        failures={1: lost},
        device="b",
        seconds=3.0,
        cost=0.75,
    )
    assert expected == joined.report
    assert (0, 2, 3) == joined.positions


def test_joining_unknown_counts_gives_unknown_counts():
    """Tokens that one part does not tell are not counted as none."""
    report = join_reports([Report(n_tokens=5, cost=1.0), Report()])
    assert (None, None) == (report.n_tokens, report.cost)


def test_joining_needs_one_space_and_one_part():
    """Two spaces never mix, and of nothing the space is unknown."""
    other = Embeddings(np.ones((1, 3), np.float32), attrs.evolve(SPACE, weights="beef"))
    with pytest.raises(SpaceMismatchError):
        join([build([[1, 2, 3]]), other])
    with pytest.raises(InputError, match="not even one"):
        join([])


# ---------- files

SUFFIXES = pytest.mark.parametrize("suffix", [".npz", ".jsonl"])


@SUFFIXES
def test_file_gives_back_vectors_space_and_positions(tmp_path, suffix):
    """A file carries all that is needed to compare its vectors, and knows what was skipped."""
    path = tmp_path / f"a.name with spaces é{suffix}"
    written = build([[1, 2, 3], [4, 5, 6]], n_texts=4, failures={0: BackendError("x"), 2: BackendError("x")})
    write_vectors(path, written)
    found = read_vectors(path)
    np.testing.assert_array_equal(written.vectors, found.vectors)
    assert ((1, 3), [0, 2]) == (found.positions, list(found.report.failures))
    assert (SPACE, "some/model") == (found.space, found.space.model)
    assert str(path) == found.report.failures[0].origin
    assert [path.name] == [file.name for file in tmp_path.iterdir()]


@SUFFIXES
def test_a_file_may_be_named_by_a_string(tmp_path, suffix):
    """As everywhere in Python."""
    path = str(tmp_path / f"vectors{suffix}")
    write_vectors(path, build([[1, 2, 3]]))
    assert [[1, 2, 3]] == read_vectors(path).vectors.tolist()


@SUFFIXES
def test_positions_are_kept_whatever_their_size(tmp_path, suffix):
    """A row far down a long file is found where it was."""
    path = tmp_path / f"vectors{suffix}"
    lost = dict.fromkeys(range(70_000), BackendError("x"))
    write_vectors(path, build([[1, 2, 3]], n_texts=70_001, failures=lost))
    assert (70_000,) == read_vectors(path).positions


@SUFFIXES
def test_file_is_put_in_place_whole(tmp_path, suffix):
    """The old file is not written over: whoever has it, has all of it."""
    path, kept = tmp_path / f"vectors{suffix}", tmp_path / "kept"
    write_vectors(path, build([[1, 2, 3]]))
    before = path.read_bytes()
    kept.hardlink_to(path)
    write_vectors(path, build([[4, 5, 6], [7, 8, 9]]))
    assert before == kept.read_bytes()
    assert 2 == len(read_vectors(path))


@SUFFIXES
def test_file_of_no_vectors_is_a_file(tmp_path, suffix):
    """Nothing embedded is written and read as nothing, with its space."""
    path = tmp_path / f"none{suffix}"
    write_vectors(path, build([]))
    found = read_vectors(path)
    assert ((0, 3), SPACE, ()) == (found.vectors.shape, found.space, found.positions)


@SUFFIXES
@settings(deadline=None)
@given(
    vectors=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 5), st.just(3)),
        elements=st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda x: abs(x) > 1e-15),
    )
)
def test_files_keep_every_bit_of_float32(suffix, vectors):
    """What is read equals what was written, in text too."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"vectors{suffix}"
        write_vectors(path, Embeddings(vectors, SPACE, Report(n_texts=len(vectors))))
        found = read_vectors(path).vectors
    assert vectors.tobytes() == found.tobytes()


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_nine_digits_are_float32_exactly(number):
    """Every float32, denormal ones too, comes back out of its line of text."""
    (line,) = format_rows(build([[number, 0, 1]]))
    assert np.float32(number) == np.float32(json.loads(line)["vector"][0])


def test_rows_of_a_stream_are_written_with_counted_positions():
    """A part of a stream is written with the positions of the whole."""
    lines = list(format_rows(build([[1, 2, 3]], n_texts=2, failures={0: BackendError("x")}), offset=10))
    assert ['{"position":11,"vector":[1,2,3]}'] == lines


def write_lines(path, *lines, end="\n"):
    """Write the header of a vector file and some lines."""
    path.write_text("\n".join([format_header(SPACE), *lines]) + end, encoding="utf-8", newline="\n")
    return path.stat().st_size


def test_end_of_a_file_says_where_to_go_on(tmp_path):
    """How many texts are done, the last vector to compare with, and where the next line goes. Fault 85."""
    path = tmp_path / "vectors.jsonl"
    n_bytes = write_lines(path, '{"position":0,"vector":[1,2,3]}', '{"position":6,"vector":[4,5,6]}')
    end = read_end(path)
    assert (SPACE, 7, [4, 5, 6], n_bytes) == (end.space, end.n_texts, end.last.tolist(), end.n_bytes)
    assert np.float32 == end.last.dtype


@pytest.mark.parametrize("cut_off", ["", '{"posi', '{"position":1,"vector":[1,2,3]}'])
def test_line_that_was_cut_off_is_not_counted(tmp_path, cut_off):
    """A line is whole when its end is there: what a kill left behind is written again. Fault 85."""
    path = tmp_path / "vectors.jsonl"
    n_bytes = write_lines(path, '{"position":0,"vector":[1,2,3]}')
    write_lines(path, '{"position":0,"vector":[1,2,3]}', cut_off, end="")
    end = read_end(path)
    assert (1, [1, 2, 3], n_bytes) == (end.n_texts, end.last.tolist(), end.n_bytes)


def test_file_with_no_more_than_its_header_starts_at_the_first_text(tmp_path):
    """Without a vector there is nothing to compare; without a whole header there is nothing to go on with."""
    path = tmp_path / "vectors.jsonl"
    n_bytes = write_lines(path)
    end = read_end(path)
    assert (SPACE, 0, None, n_bytes) == (end.space, end.n_texts, end.last, end.n_bytes)
    write_lines(path, end="")
    assert read_end(path) is None
    path.write_bytes(b"")
    assert read_end(path) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"some notes of mine\n", "JSONDecodeError"),
        (b'{"embedkit_vectors": 1, "space": []}\n', "AttributeError"),
        (b"[" * 100_000 + b"\n", "RecursionError"),
        (f"{format_header(SPACE)}\nnotes\n".encode(), "line 2 is no row of a vector file"),
        (f'{format_header(SPACE)}\n{{"position":0,"vector":[1]}}\n'.encode(), "line 2 is no position with 3 numbers"),
    ],
)
def test_other_file_is_not_gone_on_with(tmp_path, content, says):
    """A file that is something else is named, and is not touched."""
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_end(path)
    assert caught.value.problem.startswith(f"{path} is not a vector file: ")
    assert says in caught.value.problem
    assert content == path.read_bytes()


@pytest.mark.parametrize("name", ["vectors", "vectors.txt", "vectors.npy", "vectors.JSONL.gz"])
def test_name_without_a_format_is_refused(tmp_path, name):
    """The ending says the format; another is refused before anything is written or read."""
    for call in (require_vector_file, read_vectors, lambda path: write_vectors(path, build([]))):
        with pytest.raises(InputError, match="names no format") as caught:
            call(tmp_path / name)
        assert ".npz" in caught.value.hint
    assert [] == list(tmp_path.iterdir())


def test_missing_file_is_not_called_damaged(tmp_path):
    """Nothing there is another thing than something broken there."""
    with pytest.raises(FileNotFoundError):
        read_vectors(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("suffix", "broken"),
    [
        (".jsonl", build([[1, 2, 3], [4, 5, 6]], failures={0: BackendError("two rows, and one position")})),
        (".npz", Embeddings(np.ones((1, 3), np.float32), attrs.evolve(SPACE, model=b"no JSON"))),
    ],
)
def test_failed_write_leaves_the_old_file(tmp_path, suffix, broken):
    """A write that breaks off half-way changes nothing and leaves nothing behind. Fault 17."""
    path = tmp_path / f"vectors{suffix}"
    write_vectors(path, build([[1, 2, 3]]))
    before = path.read_bytes()
    with pytest.raises((ValueError, TypeError)):
        write_vectors(path, broken)
    assert before == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


def edit_lines(change):
    """Give a damage that changes the lines of a `.jsonl` file."""

    def damage(content):
        lines = content.decode().splitlines()
        return "\n".join(change(lines)).encode()

    return damage


def edit_header(**fields):
    """Give a damage that changes the header of a `.jsonl` file."""
    return edit_lines(lambda lines: [json.dumps({**json.loads(lines[0]), **fields}), *lines[1:]])


def edit_row(row):
    """Give a damage that replaces the second row of a `.jsonl` file."""
    return edit_lines(lambda lines: [*lines[:2], row, *lines[3:]])


DAMAGED_LINES = {
    "empty": (lambda content: b"", "JSONDecodeError"),
    "cut off in a row": (lambda content: content[:-5], "line 4 is no row"),
    "cut off in the header": (lambda content: content[:40], "JSONDecodeError"),
    "not UTF-8": (lambda content: content.replace(b"some/model", b"\xe9"), "UnicodeDecodeError"),
    "another file": (lambda content: b'{"text": "a line of data"}\n', "does not begin with the header"),
    "a list": (lambda content: b"[1, 2]\n", "does not begin with the header"),
    "deeply nested": (lambda content: b"[" * 100_000, "RecursionError"),
    "no header": (edit_lines(lambda lines: lines[1:]), "does not begin with the header"),
    "another version": (
        edit_header(embedkit_vectors=2),
        "does not begin with the header of a vector file of this version",
    ),
    "no space": (edit_header(space=[]), "AttributeError"),
    "half a space": (edit_header(space={"weights": "f00d"}), "describes no vector space: appended_tokens, "),
    "another fingerprint": (edit_header(fingerprint="0" * 16), "fingerprint in its header is not that of its space"),
    "no fingerprint": (edit_lines(lambda lines: [lines[0].replace("fingerprint", "finger"), *lines[1:]]), "KeyError"),
    "a blank line": (edit_row(""), "line 3 is no row"),
    "a row that is no object": (edit_row("7"), "line 3 is no row"),
    "a row without vector": (edit_row('{"position": 1}'), "line 3 is no row"),
    "a ragged row": (edit_row('{"position": 1, "vector": [1, [2, 3]]}'), "line 3 is no row"),
    "a short row": (edit_row('{"position": 1, "vector": [1, 2]}'), "line 3 is no position with 3 numbers"),
    "strings": (edit_row('{"position": 1, "vector": ["1", "2", "3"]}'), "line 3 is no position with 3 numbers"),
    "null": (edit_row('{"position": 1, "vector": [1, null, 3]}'), "line 3 is no position with 3 numbers"),
    "booleans": (edit_row('{"position": 1, "vector": [true, true, true]}'), "line 3 is no position with 3 numbers"),
    "NaN": (edit_row('{"position": 1, "vector": [1, NaN, 3]}'), r"not finite (row 1)"),
    "zeros": (edit_row('{"position": 1, "vector": [0, 0, 0]}'), r"a vector of zeros (row 1)"),
    "a position as text": (edit_row('{"position": "1", "vector": [1, 2, 3]}'), "line 3 is no position"),
    "a fraction": (edit_row('{"position": 1.5, "vector": [1, 2, 3]}'), "line 3 is no position"),
    "a position twice": (edit_row('{"position": 0, "vector": [1, 2, 3]}'), "positions are out of order or doubled"),
    "a position too late": (edit_row('{"position": 9, "vector": [1, 2, 3]}'), "positions are out of order"),
    "a negative position": (
        edit_lines(lambda lines: [lines[0], lines[1].replace('"position":0', '"position":-1'), *lines[2:]]),
        "positions are out of order",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED_LINES)
def test_damaged_jsonl_is_refused_by_name(tmp_path, damage):
    """The file is named, what is wrong with it, and the line where there is one."""
    path = tmp_path / "vectors.jsonl"
    write_vectors(path, build([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))
    change, says = DAMAGED_LINES[damage]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        read_vectors(path)
    assert caught.value.problem.startswith(f"{path} is not a whole vector file: ")
    assert says in caught.value.problem
    assert str(path) == caught.value.origin


def save(**arrays):
    """Give the bytes of an `.npz` file with these arrays in place of right ones."""
    right = {"header": format_header(SPACE), "positions": np.arange(2), "vectors": np.ones((2, 3), np.float32)}
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in {**right, **arrays}.items() if array is not None})
    return file.getvalue()


def flip(content, offset):
    """Turn one byte of *content* over."""
    return content[:offset] + bytes([content[offset] ^ 0xFF]) + content[offset + 1 :]


DAMAGED_ARCHIVES = {
    "empty": (b"", "EOFError"),
    "cut off": (save()[:-30], "BadZipFile"),
    "text": (b"this is no archive", "ValueError"),
    "one array alone": (b"\x93NUMPY\x01\x00", "ValueError"),
    "a flipped byte in a vector": (flip(save(), save().index(np.ones(6, np.float32).tobytes())), "BadZipFile"),
    "a compression that nobody knows": (flip(save(), save().rindex(b"PK\x01\x02") + 10), "NotImplementedError"),
    "no header": (save(header=None), "KeyError"),
    "no positions": (save(positions=None), "KeyError"),
    "no vectors": (save(vectors=None), "KeyError"),
    "a header of another kind": (save(header="{}"), "does not begin with the header"),
    "float64": (save(vectors=np.ones((2, 3))), "returned float64 where a float32 array is due"),
    "a row too few": (save(vectors=np.ones((1, 3), np.float32)), "shape (1, 3) for 2 texts"),
    "a column too few": (save(vectors=np.ones((2, 2), np.float32)), "shape (2, 2) for 2 texts"),
    "Infinity": (save(vectors=np.full((2, 3), np.inf, np.float32)), "not finite (row 0)"),
    "positions in reverse": (save(positions=np.array([1, 0])), "positions are out of order"),
    "positions in a table": (save(positions=np.array([[0], [1]])), "TypeError"),
    "positions as fractions": (save(positions=np.array([0.0, 1.0])), "TypeError"),
    "one position": (save(positions=np.array(3)), "TypeError"),
}


@pytest.mark.parametrize("damage", DAMAGED_ARCHIVES)
def test_damaged_npz_is_refused_by_name(tmp_path, damage):
    """Whatever zip or numpy raise about it, the file is named and nothing is read from it."""
    path = tmp_path / "vectors.npz"
    content, says = DAMAGED_ARCHIVES[damage]
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_vectors(path)
    assert caught.value.problem.startswith(f"{path} is not a whole vector file: ")
    assert says in caught.value.problem
    assert "embedkit embed -o" in caught.value.hint


def test_pickled_objects_in_an_archive_are_never_loaded(tmp_path):
    """A vector file from elsewhere runs no code: objects are refused unread."""

    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").mkdir, ()

    path = tmp_path / "vectors.npz"
    path.write_bytes(save(vectors=np.array([Trap()], object)))
    with pytest.raises(InputError, match="Object arrays cannot be loaded"):
        read_vectors(path)
    assert not (tmp_path / "sprung").exists()


@settings(deadline=None)
@given(st.data())
def test_no_damage_is_read_as_other_vectors(data):
    """An archive with a wrong byte is refused, or the byte was of no account: never other numbers or another error."""
    content = save()
    offset = data.draw(st.integers(0, len(content) - 1))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vectors.npz"
        path.write_bytes(flip(content, offset))
        try:
            found = read_vectors(path)
        except InputError:
            return
    assert ([[1, 1, 1], [1, 1, 1]], SPACE) == (found.vectors.tolist(), found.space)
