"""`embedkit embed`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embedkit import read_vectors

TEXTS = [f"text number {number}" for number in range(50)]
LINES = "".join(f"{text}\n" for text in TEXTS)


@pytest.fixture
def lines(write):
    """Give a file of fifty texts: four windows of the profile `small`."""
    return write("texts.txt", LINES)


def read_rows(text):
    """Give header and rows of JSON lines."""
    header, *rows = [json.loads(line) for line in text.splitlines()]
    return header, rows


@pytest.mark.parametrize("name", ["out.npz", "out.jsonl"])
def test_a_vector_file_reads_back_as_embeddings(call, lines, name):
    """With its space, in the order of the input."""
    result = call("embed", "texts.txt", "-o", name)
    assert (0, "") == (result.code, result.stdout)
    found = read_vectors(lines.with_name(name))
    assert (50, 16) == found.vectors.shape
    assert "words" == found.space.model
    again = call("embed", "-", "-o", f"one.{name}", stdin=f"{TEXTS[37]}\n")
    assert 0 == again.code
    np.testing.assert_array_equal(read_vectors(lines.with_name(f"one.{name}")).vectors[0], found.vectors[37])
    assert "50 texts in " in result.stderr
    assert " texts/s on cpu): space " in result.stderr


def test_json_lines_go_down_a_pipe(call, lines):
    """A header with the space, then a line for each text; everything else goes to stderr."""
    result = call("embed", "texts.txt")
    header, rows = read_rows(result.stdout)
    assert (0, 16) == (result.code, header["space"]["dimensions"])
    assert list(range(50)) == [row["position"] for row in rows]
    assert [16] * 50 == [len(row["vector"]) for row in rows]


def test_what_was_piped_is_a_vector_file(call, write, lines, project):
    """As if -o had been given."""
    write("piped.jsonl", call("embed", "texts.txt").stdout)
    call("embed", "texts.txt", "-o", "out.jsonl")
    assert (project / "out.jsonl").read_bytes() == (project / "piped.jsonl").read_bytes()


def test_positions_count_over_all_files(call, write):
    """Blank lines are no texts."""
    write("a.txt", "one\n\ntwo\n")
    write("b.txt", "three\n")
    _, rows = read_rows(call("embed", "a.txt", "b.txt").stdout)
    assert [0, 1, 2] == [row["position"] for row in rows]


def test_standard_input_is_the_default(call):
    """A pipe needs no name."""
    _, rows = read_rows(call("embed", stdin="one\ntwo\n").stdout)
    assert 2 == len(rows)


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("a.jsonl", '{"body": "text number 7"}\n', ("--jsonl", "body")),
        ("a.csv", "id,title\n1,text number 7\n", ("--csv", "title")),
        ("a.txt", "text number 7", ("--whole",)),
        ("a.txt", "text number 7\n", ()),
    ],
)
def test_each_format_gives_the_same_vector(call, write, name, text, arguments):
    """Only the way to the text differs."""
    write(name, text)
    _, rows = read_rows(call("embed", name, *arguments).stdout)
    _, expected = read_rows(call("embed", stdin="text number 7\n").stdout)
    assert expected == rows


def test_whole_files_of_a_directory_are_found(call, write):
    """In sorted order."""
    write("docs/b.md", "second\nfile\n")
    write("docs/a.md", "first\nfile\n")
    _, rows = read_rows(call("embed", "docs", "--whole").stdout)
    _, expected = read_rows(call("embed", "docs/a.md", "docs/b.md", "--whole").stdout)
    assert 2 == len(rows)
    assert expected == rows


def test_queries_get_their_prompt(call):
    """The same text is another vector as a query."""
    _, documents = read_rows(call("embed", "--profile", "large", stdin="cats\n").stdout)
    _, queries = read_rows(call("embed", "--profile", "large", "--query", stdin="cats\n").stdout)
    _, prompted = read_rows(call("embed", "--profile", "large", stdin="query: cats\n").stdout)
    assert documents != queries
    assert prompted == queries


@pytest.mark.parametrize("name", ["out.npz", "out.jsonl"])
def test_no_text_is_an_empty_vector_file(call, write, project, name):
    """Fault 61. It still knows its space."""
    write("empty.txt", "\n")
    result = call("embed", "empty.txt", "-o", name)
    assert 0 == result.code
    assert (0, 16) == read_vectors(project / name).vectors.shape
    assert "There was no text to embed." in result.stderr


def test_a_blank_field_ends_the_work_by_name(call, write, project):
    """Fault 62. The line is named, and what to type; the texts before its window are kept."""
    rows = [{"body": text} for text in TEXTS]
    rows[20] = {"body": "  "}
    write("a.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    result = call("embed", "a.jsonl", "--jsonl", "body", "-o", "out.jsonl")
    assert 2 == result.code
    assert "The text at position 20 is blank." in result.stderr
    assert "from: a.jsonl:21\n" in result.stderr
    assert "--on-error skip" in result.stderr
    assert "out.jsonl holds the first 16 texts" in result.stderr
    assert 16 == len(read_vectors(project / "out.jsonl"))


@pytest.mark.parametrize("name", ["out.npz", "out.jsonl"])
def test_skipped_texts_are_reported(call, write, project, name):
    """Fault 62. Each by its line; the others keep their positions, and the exit code is 0: it was asked for."""
    write("a.jsonl", '{"body": "one"}\n{"body": " "}\n{"body": "three"}\n')
    result = call("embed", "a.jsonl", "--jsonl", "body", "-o", name, "--on-error", "skip")
    assert 0 == result.code
    assert "skipped a.jsonl:2: The text at position 1 is blank." in result.stderr
    assert "warning: 1 text skipped" in result.stderr
    assert (0, 2) == read_vectors(project / name).positions


def test_a_failure_goes_on_after_what_was_kept(call, write, project):
    """The texts before the blank one are not made again, and its position is still counted from the start."""
    rows = [{"body": text} for text in TEXTS]
    rows[20] = {"body": ""}
    write("a.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = ("embed", "a.jsonl", "--jsonl", "body", "-o", "out.jsonl")
    call(*arguments)
    again = call(*arguments, "--resume")
    assert 2 == again.code
    assert "The text at position 20 is blank." in again.stderr
    assert "from: a.jsonl:21\n" in again.stderr
    skipping = call(*arguments, "--resume", "--on-error", "skip")
    assert 0 == skipping.code
    assert "34 texts in " in skipping.stderr
    assert tuple(number for number in range(50) if number != 20) == read_vectors(project / "out.jsonl").positions


@pytest.mark.parametrize("name", ["out.npz", "out.jsonl"])
def test_a_provider_that_gives_up_loses_nothing(launch, write, monkeypatch, project, name):
    """The exit code is that of a failure; going on gives what one run would have given."""
    text = 'default = "tired"\n[profiles.tired]\nprovider = "tired"\nmodel = "words"\nbatch_size = 4\ndimensions = 16\n'
    monkeypatch.setenv("EMBEDKIT_PROFILES", str(write("tired.toml", text)))
    # The toy takes the longest first: of the second window there are vectors, and none for its first text.
    write("texts.txt", "".join(f"{text}{'!' * number}\n" for number, text in enumerate(TEXTS)))
    first = launch("embed", "texts.txt", "-o", name)
    assert 1 == first.code
    assert "The quota is used up." in first.stderr
    assert "hint: wait until tomorrow" in first.stderr
    assert "Traceback" not in first.stderr
    assert tuple(range(16)) == read_vectors(project / name).positions
    assert f"{name} holds the first 16 texts; to go on, give the same command with --resume." in first.stderr
    second = launch("embed", "texts.txt", "-o", name, "--resume")
    assert 1 == second.code
    third = launch("embed", "texts.txt", "-o", name, "--resume")
    assert 0 == third.code, third.stderr
    monkeypatch.delenv("EMBEDKIT_PROFILES")
    launch("embed", "texts.txt", "-o", f"whole.{name}")
    np.testing.assert_array_equal(read_vectors(project / f"whole.{name}").vectors, read_vectors(project / name).vectors)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that is sent to one process as Ctrl-C is")
@pytest.mark.parametrize("name", ["out.npz", "out.jsonl"])
def test_an_interruption_keeps_what_is_done(terminal, launch, lines, project, name):
    """Ctrl-C after the first windows; --resume makes the file whole."""
    shown = terminal("embed", "texts.txt", "-o", name, TOY_DELAY_S="0.4")
    shown.wait_for(" texts/s")
    shown.wait_for("20/50 texts")
    shown.interrupt()
    assert 130 == shown.finish()
    n_kept = len(read_vectors(project / name))
    assert 16 == n_kept
    words = " ".join(shown.plain.split())
    assert f"Interrupted. {name} holds the first 16 texts; to go on, give the same command with --resume." in words
    result = launch("embed", "texts.txt", "-o", name, "--resume")
    assert 0 == result.code
    assert "34 texts in " in result.stderr
    launch("embed", "texts.txt", "-o", f"whole.{name}")
    np.testing.assert_array_equal(read_vectors(project / f"whole.{name}").vectors, read_vectors(project / name).vectors)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that is sent to one process as Ctrl-C is")
def test_an_interruption_of_a_pipe_leaves_whole_lines(project, lines):
    """And says that only a file can be gone on with."""
    with subprocess.Popen(
        [sys.executable, "-m", "embedkit", "embed", "texts.txt"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TOY_DELAY_S": "0.1"},
        text=True,
    ) as process:
        first = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        rest, talk = process.stdout.read(), process.stderr.read()
    assert 130 == process.returncode
    _, rows = read_rows("".join(first) + rest)
    assert 16 == len(rows)
    assert "only a file can be gone on with: -o FILE" in talk
    assert "Traceback" not in talk


def test_a_line_that_was_cut_off_is_made_again(call, lines, project):
    """As after a loss of power; the file is byte for byte what one run would have written."""
    call("embed", "texts.txt", "-o", "out.jsonl")
    whole = (project / "out.jsonl").read_bytes()
    rows = whole.splitlines(keepends=True)
    (project / "out.jsonl").write_bytes(b"".join(rows[:21]) + rows[21][:30])
    result = call("embed", "texts.txt", "-o", "out.jsonl", "--resume")
    assert 0 == result.code
    assert "30 texts in " in result.stderr
    assert whole == (project / "out.jsonl").read_bytes()


def test_a_header_that_was_cut_off_is_made_again(call, lines, project):
    """Nothing is done yet then."""
    (project / "out.jsonl").write_bytes(b'{"embedkit_vec')
    assert 0 == call("embed", "texts.txt", "-o", "out.jsonl", "--resume").code
    assert 50 == len(read_vectors(project / "out.jsonl"))


@pytest.mark.parametrize("name", ["out.npz", "out.jsonl"])
def test_what_is_complete_is_left_alone(call, lines, project, name):
    """Resuming once more does no work."""
    call("embed", "texts.txt", "-o", name)
    before = read_vectors(project / name).vectors
    result = call("embed", "texts.txt", "-o", name, "--resume")
    assert 0 == result.code
    assert "There was nothing left to embed." in result.stderr
    np.testing.assert_array_equal(before, read_vectors(project / name).vectors)


def test_resuming_what_was_never_begun_begins(call, lines, project):
    """One command line serves a job that is started again and again."""
    assert 0 == call("embed", "texts.txt", "-o", "out.jsonl", "--resume").code
    assert 50 == len(read_vectors(project / "out.jsonl"))


@pytest.mark.parametrize("name", ["out.npz", "out.jsonl"])
def test_another_space_is_never_mixed_in(call, lines, project, name):
    """The same dimensions are not the same space; the file stays as it is."""
    call("embed", "texts.txt", "-o", name)
    before = (project / name).read_bytes()
    result = call("embed", "texts.txt", "-o", name, "--resume", "--profile", "other")
    assert 2 == result.code
    assert "different spaces" in result.stderr
    assert before == (project / name).read_bytes()


@pytest.mark.parametrize("name", ["out.npz", "out.jsonl"])
def test_another_input_is_noticed(call, write, project, name):
    """By the last text that is done: vectors never get the positions of other texts."""
    write("texts.txt", LINES[: LINES.index("text number 20\n")])
    call("embed", "texts.txt", "-o", name)
    before = (project / name).read_bytes()
    write("texts.txt", "a new first line\n" + LINES)
    result = call("embed", "texts.txt", "-o", name, "--resume")
    assert 2 == result.code
    assert "The input is not the one that the first 20 vectors of the file were made of." in result.stderr
    assert "from: texts.txt:20\n" in result.stderr
    write("texts.txt", "too short\n")
    assert "from: the end of the input\n" in call("embed", "texts.txt", "-o", name, "--resume").stderr
    assert before == (project / name).read_bytes()


@pytest.mark.parametrize("content", [b"no header\n", b'{"embedkit_vectors": 1}\n', b'{"embedkit_vectors": 9}\n'])
def test_a_file_of_another_kind_is_not_gone_on_with(call, lines, project, content):
    """It stays as it is."""
    (project / "out.jsonl").write_bytes(content)
    result = call("embed", "texts.txt", "-o", "out.jsonl", "--resume")
    assert 2 == result.code
    assert "out.jsonl is not a vector file: " in result.stderr
    assert content == (project / "out.jsonl").read_bytes()


def test_an_existing_file_is_replaced_only_on_demand(call, lines, write, project):
    """And then only once there is something to put in its place."""
    write("out.jsonl", "precious\n")
    refused = call("embed", "texts.txt", "-o", "out.jsonl")
    assert 2 == refused.code
    assert "hint: go on with it: --resume; or replace it: --force" in refused.stderr
    assert 2 == call("embed", "nowhere.txt", "-o", "out.jsonl", "--force").code
    assert b"precious\n" == (project / "out.jsonl").read_bytes()
    assert 0 == call("embed", "texts.txt", "-o", "out.jsonl", "--force").code
    assert 50 == len(read_vectors(project / "out.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("texts.txt", "--jsonl", "a", "--csv", "b"), "Only one of --jsonl, --csv and --whole"),
        (("texts.txt", "--csv", "", "--whole"), "Only one of --jsonl, --csv and --whole"),
        (("texts.txt", "-o", "a.npz", "--resume", "--force"), "only one of them can be given"),
        (("texts.txt", "--resume"), "about the file of -o"),
        (("texts.txt", "-o", "out.txt"), "out.txt names no format of vector files."),
        (("texts.txt", "-o", "nowhere/out.npz"), "There is no directory nowhere."),
        (("nowhere.txt",), "nowhere.txt cannot be read"),
        (("texts.txt", "--jsonl", "body"), "from: texts.txt:1"),
        (("texts.txt", "--on-error", "ignore"), "'ignore' is not one of 'raise', 'skip'"),
        (("texts.txt", "--profile", "smal"), "did you mean small?"),
        (("texts.txt", "--profile", "absent"), "python -m pip install toy-absent"),
    ],
)
def test_wrong_input_is_refused_before_any_work(call, lines, arguments, expected):
    """Exit code 2, and nothing on stdout."""
    result = call("embed", *arguments)
    assert (2, "") == (result.code, result.stdout)
    assert expected in result.stderr


def test_a_fault_at_the_end_of_a_file_is_found_before_any_work(call, write, project):
    """Not after hours."""
    write("a.jsonl", '{"body": "one"}\n' * 40 + '{"bdoy": "two"}\n')
    result = call("embed", "a.jsonl", "--jsonl", "body", "-o", "out.jsonl")
    assert 2 == result.code
    assert "did you mean body?" in result.stderr or "fields: bdoy" in result.stderr
    assert "from: a.jsonl:41\n" in result.stderr
    assert not (project / "out.jsonl").exists()


def test_a_fault_in_a_stream_keeps_its_own_place(call):
    """It is found on the way, and it is not a text that could be skipped."""
    result = call("embed", "--jsonl", "body", "-", stdin='{"body": "one"}\nno json\n')
    assert 2 == result.code
    assert "from: <stdin>:2\n" in result.stderr
    assert "--on-error" not in result.stderr


def test_truncated_texts_are_counted_and_named(call, write, monkeypatch):
    """The first few by their lines."""
    text = 'default = "short"\n[profiles.short]\nprovider = "toy"\nmodel = "words"\noptions = { max_tokens = 2 }\n'
    monkeypatch.setenv("EMBEDKIT_PROFILES", str(write("short.toml", text)))
    write("texts.txt", "one two\n" + "one two three\n" + "".join(f"a b c {number}\n" for number in range(6)))
    result = call("embed", "texts.txt")
    assert 0 == result.code
    expected = ", ".join(f"texts.txt:{line}" for line in range(2, 7))
    assert f"warning: 7 texts longer than the model reads, their ends left out: {expected}, ..." in result.stderr


def test_a_full_disk_is_an_error_and_no_traceback(call, lines, project):
    """The file and the reason are named."""
    if not Path("/dev/full").exists():
        pytest.skip("this machine has no /dev/full")
    (project / "out.jsonl").symlink_to("/dev/full")
    result = call("embed", "texts.txt", "-o", "out.jsonl", "--force")
    assert 1 == result.code
    assert "out.jsonl cannot be written: No space left on device." in result.stderr


def test_a_terminal_gets_the_first_numbers(terminal, lines):
    """Whole vectors would flood it."""
    shown = terminal("embed", "texts.txt")
    assert 0 == shown.finish()
    rows = [line for line in shown.plain.splitlines() if " ...  text number " in line]
    assert 50 == len(rows)
    assert 80 >= max(map(len, rows))
    assert "-o FILE" in shown.plain


def test_a_bar_stays_out_of_what_is_piped(terminal, lines, project):
    """The bar is drawn on stderr, and the lines go past it."""
    with (project / "piped.jsonl").open("wb") as pipe:
        shown = terminal("embed", "texts.txt", stdout=pipe, TOY_DELAY_S="0.3")
        assert 0 == shown.finish()
    assert "/50 texts" in shown.plain
    assert '"position"' not in shown.plain
    assert 50 == len(read_vectors(project / "piped.jsonl"))


def test_a_terminal_without_files_is_asked_for_some(terminal):
    """It does not wait for somebody to type."""
    shown = terminal("embed")
    assert 2 == shown.finish()
    assert "Nothing to embed: name FILES" in shown.plain


def test_a_device_is_passed_on(call, lines, monkeypatch):
    """Above the environment."""
    monkeypatch.setenv("EMBEDDING_DEVICE", "cuda:3")
    assert 0 == call("embed", "texts.txt", "--device", "cpu").code


def test_a_window_is_written_before_the_input_ends(project):
    """Memory holds a window, not the input: a stream may be endless."""
    with subprocess.Popen(
        [sys.executable, "-m", "embedkit", "embed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        process.stdin.write(LINES)
        process.stdin.flush()
        position = json.loads([process.stdout.readline() for _ in range(17)][-1])["position"]
        assert None is process.poll()
        process.stdin.close()
        process.stdout.read()
    assert (15, 0) == (position, process.returncode)


def test_a_text_that_the_provider_refuses_is_named(call, write, monkeypatch, project):
    """What stands before it is kept, the rest of its window is made anew when the work goes on."""
    text = """
    default = "strict"
    [profiles.strict]
    provider = "toy"
    model = "words"
    batch_size = 4
    too_long = "error"
    options = { max_tokens = 3 }
    """
    monkeypatch.setenv("EMBEDKIT_PROFILES", str(write("strict.toml", text)))
    write("texts.txt", LINES.replace("text number 18\n", "one text too long\n"))
    result = call("embed", "texts.txt", "-o", "out.jsonl")
    assert 1 == result.code
    assert "1 of 16 texts have no vector: A text has 4 tokens, and the model reads 3." in result.stderr
    assert "from: texts.txt:19\n" in result.stderr
    assert "--on-error skip" in result.stderr
    assert tuple(range(18)) == read_vectors(project / "out.jsonl").positions
    again = call("embed", "texts.txt", "-o", "out.jsonl", "--resume", "--on-error", "skip")
    assert 0 == again.code
    assert "skipped texts.txt:19: A text has 4 tokens" in again.stderr
    assert (*range(18), *range(19, 50)) == read_vectors(project / "out.jsonl").positions
