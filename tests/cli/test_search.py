"""`embedkit search`."""

import pytest

SENTENCES = {
    "Cats": "Cats sleep on the warm roof in the sun.",
    "Dogs": "Dogs bark at the postman in the morning.",
    "Ships": "Ships sail over the wide sea to far harbours.",
}
PAGE = "".join(f"# {heading}\n\n{' '.join([sentence] * 10)}\n\n" for heading, sentence in SENTENCES.items())


@pytest.fixture
def page(write):
    """Give a directory with one page of three sections."""
    return write("docs/page.md", PAGE)


def test_the_nearest_passage_comes_first(call, page):
    """With file, line, score and passage."""
    result = call("search", SENTENCES["Dogs"], "docs", "-k", "2", "--json")
    assert 0 == result.code
    first, second = result.json
    assert ("docs/page.md", 5, 7) == (first["file"].replace("\\", "/"), first["line"], first["end_line"])
    assert f"# Dogs\n\n{' '.join([SENTENCES['Dogs']] * 10)}" == first["passage"]
    assert 1 >= first["score"] > second["score"] >= -1
    assert "cosine" == first["scored_by"]


def test_plain_text_goes_down_a_pipe(call, page):
    """The whole passage, and no colour; the rest is talk."""
    result = call("search", SENTENCES["Dogs"], "docs/page.md", "-k", "1")
    assert 0 == result.code
    lines = result.stdout.splitlines()
    assert lines[0].startswith("1. docs/page.md:5  0.")
    assert ["   # Dogs", "   ", f"   {' '.join([SENTENCES['Dogs']] * 10)}", ""] == lines[1:]
    assert "3 passages of 1 file; profile small, space " in result.stderr


def test_five_hits_are_the_default(call, write):
    """As `--help` says."""
    for number in range(7):
        write(f"{number}.txt", f"page number {number}\n")
    assert 5 == len(call("search", "page", ".", "--json").json)


def test_the_profile_stands_before_or_after_the_command(call, page):
    """It is the same one."""
    before = call("--profile", "other", "search", "dogs", "docs", "--json")
    after = call("search", "dogs", "docs", "--json", "--profile", "other")
    assert (0, before.stdout) == (after.code, after.stdout)
    assert before.stdout != call("search", "dogs", "docs", "--json").stdout


def test_the_query_gets_its_prompt(call, page):
    """A profile with a query prompt scores otherwise than one without."""
    prompted = call("search", "dogs", "docs", "--json", "--profile", "large").json
    asked = call("search", "query: dogs", "docs", "--json", "--profile", "large").json
    assert prompted[0]["score"] != asked[0]["score"]


def test_a_reranker_orders_the_nearest_anew(call, write, monkeypatch):
    """It is said so, and the cosine is kept beside its score."""
    monkeypatch.setenv("ENABLE_RERANKER", "true")
    write("short.txt", "dogs")
    write("long.txt", "a much longer text about quite another matter")
    result = call("search", "dogs", "short.txt", "long.txt", "--profile", "large", "--json", "-k", "1")
    assert 0 == result.code
    (hit,) = result.json
    assert ("long.txt", "reranker longest", 45.0) == (hit["file"], hit["scored_by"], hit["score"])
    assert 1 > hit["cosine"]
    assert "by reranker longest" in result.stderr


def test_a_reranker_that_no_profile_names_is_refused(call, page, monkeypatch):
    """The variable and the table to write are named."""
    monkeypatch.setenv("ENABLE_RERANKER", "true")
    result = call("search", "dogs", "docs")
    assert 2 == result.code
    assert "ENABLE_RERANKER is on, and profile 'small' names no reranker." in result.stderr


def test_a_file_that_is_no_text_is_refused_when_it_was_named(call, write, project):
    """By the line and the byte."""
    (project / "latin.txt").write_bytes(b"caf\xe9\n")
    result = call("search", "dogs", "latin.txt")
    assert 2 == result.code
    assert "latin.txt:1" in result.stderr


def test_a_file_that_turns_out_to_be_no_text_is_left_out_of_a_directory(call, page, project):
    """Nobody asked for just this one, and it is said."""
    (project / "docs" / "late.txt").write_bytes(b"text\n" * 4000 + b"caf\xe9\n")
    result = call("search", "dogs", "docs", "--json")
    assert 0 == result.code
    assert "warning: left out: " in result.stderr
    assert "late.txt" in result.stderr
    assert "docs/page.md" == result.json[0]["file"].replace("\\", "/")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("dogs",), "Missing argument 'FILES...'"),
        (("dogs", "nowhere"), "There is no file or directory nowhere."),
        (("  ", "docs"), "is blank"),
        (("dogs", "docs", "-k", "0"), "0 is not in the range x>=1"),
        (("dogs", "empty.txt"), "There is no text in empty.txt."),
        (("dogs", "docs", "--profile", "absent"), "python -m pip install toy-absent"),
    ],
)
def test_wrong_input_is_refused(call, page, write, arguments, expected):
    """Exit code 2, and nothing on stdout."""
    write("empty.txt", "\n")
    result = call("search", *arguments)
    assert (2, "") == (result.code, result.stdout)
    assert expected in result.stderr


def test_a_blank_query_costs_nothing(call, page):
    """Fault 62. It is refused before a file is read or a model is loaded."""
    assert "The query is blank." in call("search", " ", "nowhere").stderr


def test_standard_input_is_searched(call):
    """By its usual name."""
    result = call("search", "dogs", "-", stdin="dogs bark\n")
    assert 0 == result.code
    assert result.stdout.startswith("1. <stdin>:1  0.")


def test_a_terminal_gets_folded_passages(terminal, write):
    """In eighty columns, long ones cut with a note of how much is missing; control characters do not steer it."""
    write("page.txt", "\x1b[31mred\n" + "word\n" * 20 + "long line " * 20)
    shown = terminal("search", "word3", "page.txt")
    assert 0 == shown.finish()
    assert 80 >= max(map(len, shown.plain.splitlines()))
    assert "more lines]" in shown.plain
    assert "\x1b[31m" not in shown.text
    assert "\x1b[1;36m" in shown.text


def test_no_colour_is_honoured(terminal, page):
    """NO_COLOR takes the colours off a terminal."""
    shown = terminal("search", "dogs", "docs", NO_COLOR="1")
    assert 0 == shown.finish()
    assert "36m" not in shown.text


def test_a_console_that_cannot_show_a_character_shows_a_question_mark(launch, write):
    """As Windows consoles of one code page do; JSON loses nothing."""
    write("page.txt", "検索 search\n")
    shown = launch("search", "search", "page.txt", PYTHONIOENCODING="cp1252")
    assert 0 == shown.code
    assert "?? search" in shown.stdout
    assert (
        "検索 search" == launch("search", "search", "page.txt", "--json", PYTHONIOENCODING="cp1252").json[0]["passage"]
    )
