"""Reading texts out of files, by line, field, column or whole; and finding the text files below directories."""

from __future__ import annotations

import codecs
import io
import itertools
import json
import logging
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkit.documents import Document, find_text_files, read_csv, read_jsonl, read_lines, read_whole
from embedkit.errors import InputError

READERS = {
    "lines": read_lines,
    "jsonl": lambda path, **keywords: read_jsonl(path, "text", **keywords),
    "csv": lambda path, **keywords: read_csv(path, "text", **keywords),
    "whole": lambda path, **keywords: iter([read_whole(path, **keywords)]),
}
every_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


@pytest.fixture
def write(tmp_path):
    """Give what writes a file of the test and says its path."""

    def write_file(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_file


def place(documents):
    """Give (text, line) of each document."""
    return [(document.text, document.line) for document in documents]


class Endless:
    """A stream of one line over and over, that counts how often it was read."""

    def __init__(self, line):
        self.line = line
        self.n_read = 0

    def __iter__(self):
        while True:
            self.n_read += 1
            yield self.line


@contextmanager
def as_nobody():
    """Become a user without rights, where the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


class TestLines:
    """`read_lines`."""

    def test_blank_lines_are_left_out_and_still_counted(self, write):
        """Fault 62: nothing to embed on a blank line, and the numbers of the others are those of the file."""
        path = write("a.txt", "one\n\n \t\ntwo\n\n")
        assert [Document("one", path, 1), Document("two", path, 4)] == list(read_lines(path))

    def test_only_the_line_ending_is_taken_off(self, write):
        """White space is part of a text; a carriage return before the end of a line is not."""
        assert [("  a\t ", 1), ("b\r", 2), ("c", 3)] == place(read_lines(write("a.txt", "  a\t \r\nb\r\r\nc")))

    def test_only_a_newline_ends_a_line(self, write):
        """A form feed, U+2028 or U+0085 within a text does not end it."""
        text = "a\x0cb\u2028c\x85d\x1ce\rf"
        assert [(text, 1), ("next", 2)] == place(read_lines(write("a.txt", f"{text}\nnext\n")))

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r")).filter(str.strip)))
    def test_lines_come_back_as_they_were_written(self, texts):
        """Fault 66: emoji, marks of direction and all other characters survive, each on its line."""
        stream = io.BytesIO("\n".join(texts).encode("utf-8-sig"))
        expected = [(text, line) for line, text in enumerate(texts, start=1)]
        assert expected == place(read_lines("-", stdin=stream))

    def test_only_the_first_mark_of_a_file_is_taken_off(self):
        """The same character further on is part of a text, as where files were put one after the other."""
        stream = io.BytesIO("\ufeff\ufeffa\n\ufeffb\n".encode())
        assert [("\ufeffa", 1), ("\ufeffb", 2)] == place(read_lines("-", stdin=stream))


class TestJsonLines:
    """`read_jsonl`."""

    def test_the_field_of_each_object_is_read(self, write):
        """Other fields do not matter, blank lines are left out, blank texts are not: the embedder judges those."""
        path = write("a.jsonl", '{"id": 1, "text": "one\\ntwo"}\n\n{"text": "", "id": null}\r\n{"text": "a\u2028b"}')
        assert [("one\ntwo", 1), ("", 3), ("a\u2028b", 4)] == place(read_jsonl(path, "text"))

    @pytest.mark.parametrize(
        ("line", "problem", "hint"),
        [
            ('{"text": "a"', "This is not JSON: Expecting ',' delimiter at character 13.", "one JSON object"),
            ("[", "This is not JSON: Expecting value at character 2.", "one JSON object on each line"),
            ("[1]", "This is no JSON object: [1].", '{"text": "…"}'),
            ('{"texts": "a", "id": 1}', "There is no field 'text'.", "did you mean texts? fields: texts, id"),
            ("{}", "There is no field 'text'.", "fields: none"),
            ('{"text": null}', "The field 'text' must be a string, not None.", "delete the line"),
            ('{"text": ["a"]}', "The field 'text' must be a string, not ['a'].", "delete the line"),
            ("[" * 100_000, "This JSON cannot be read", "plain object"),
            ('{"text": ' + "1" * 5000 + "}", "This JSON cannot be read", "plain object"),
        ],
    )
    def test_a_wrong_line_is_named(self, write, line, problem, hint):
        """Fault 63: the error has file and line, what is wrong and a mend; what came before was yielded."""
        path = write("a.jsonl", f'{{"text": "fine"}}\n\n{line}\n')
        documents = read_jsonl(path, "text")
        assert "fine" == next(documents).text
        with pytest.raises(InputError) as caught:
            next(documents)
        assert f"{path}:3" == caught.value.origin
        assert problem in caught.value.problem
        assert hint in caught.value.hint


class TestCsv:
    """`read_csv`."""

    def test_the_column_is_read_with_the_line_where_each_row_starts(self, write):
        """A cell may hold quotes, separators and line endings; empty rows are left out, blank cells are not."""
        path = write("a.csv", 'id,text\r\n1,"one\r\n""two"", three"\r\n\r\n2,\r\n3,four\r\n')
        assert [('one\r\n"two", three', 2), ("", 5), ("four", 6)] == place(read_csv(path, "text"))

    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    def test_the_separators_of_spreadsheets_are_understood(self, write, separator):
        """The header says which separator it is: the one that makes the column stand in it."""
        rows = [["id", "text", "note"], ["1", "a", "x,y" if separator != "," else "x;y"]]
        path = write("a.csv", "\n".join(separator.join(row) for row in rows))
        assert [("a", 2)] == place(read_csv(path, "text"))

    def test_a_header_may_span_lines(self, write):
        """The rows after it keep their line numbers."""
        assert [("a", 3)] == place(read_csv(write("a.csv", '"the\nid",text\n1,a\n'), "text"))

    def test_a_long_cell_is_read(self, write):
        """An article is longer than what the csv module allows unless it is told."""
        assert 300_000 == len(next(read_csv(write("a.csv", "text\n" + "x" * 300_000), "text")).text)

    @pytest.mark.parametrize(
        ("content", "line", "problem", "hint"),
        [
            ("", 1, "There is no column 'text'.", "columns: none"),
            ("id,Text\n1,a\n", 1, "There is no column 'text'.", "did you mean Text? columns: id, Text"),
            ("id|text\n1|a\n", 1, "There is no column 'text'.", "columns: id|text"),
            ("text,id,text\na,1,b\n", 1, "The column 'text' stands 2 times in the header.", "its own name"),
            ("id,text\n1,a\n\n2\n", 4, "This row has 1 of 2 columns and none for 'text'.", "complete the row"),
            ('id,text\n1,a\n2,"b\n3,c\n', 3, "is not CSV: unexpected end of data.", "close each quote"),
            ('id,text\n1,a\n2,"b"c\n', 3, "is not CSV: ',' expected after '\"'.", "close each quote"),
            ("id,text\r1,a\r2,b\r", 1, "is not CSV", "end lines as"),
        ],
    )
    def test_a_wrong_row_is_named(self, write, content, line, problem, hint):
        """The error has the file and the line where the row starts: a quote left open swallows no rows silently."""
        path = write("a.csv", content)
        with pytest.raises(InputError) as caught:
            list(read_csv(path, "text"))
        assert f"{path}:{line}" == caught.value.origin
        assert problem in caught.value.problem
        assert hint in caught.value.hint

    def test_a_quote_left_open_does_not_read_the_whole_stream(self):
        """Memory is bounded by the longest cell, whatever the file."""
        endless = Endless(b"x" * 2**16)
        with pytest.raises(InputError, match="field larger than field limit"):
            list(read_csv("-", "text", stdin=itertools.chain([b"text\n", b'"'], endless)))
        assert 16 * 2**20 // 2**16 + 1 == endless.n_read


class TestWhole:
    """`read_whole`."""

    def test_a_file_is_one_text_as_it_is(self, write):
        """Line endings are kept, which line numbers are counted by."""
        path = write("a.txt", "\n one\r\ntwo\n")
        assert Document("\n one\r\ntwo\n", path, 1) == read_whole(path)

    def test_an_empty_file_is_an_empty_text(self, write):
        """Whether that is a fault is for the embedder to say."""
        assert "" == read_whole(write("a.txt", "")).text


class TestEveryFormat:
    """What holds for each reader."""

    @pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "marked"])
    @pytest.mark.parametrize(
        ("read", "content"),
        list(zip(READERS.values(), ["é🙂", '{"text": "é🙂"}', "text\né🙂", "é🙂"], strict=True)),
        ids=READERS,
    )
    def test_a_byte_order_mark_is_no_part_of_the_text(self, write, read, content, mark):
        """Fault 3: what Windows programs put first is taken off."""
        assert ["é🙂"] == [document.text for document in read(write("a", mark + content.encode()))]

    @every_reader
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b'text\n{"text": "caf\xe9"}\n', "not UTF-8; only UTF-8 is read: byte 14 of line 2 is 0xe9."),
            ("text".encode("utf-16"), "binary or UTF-16; only UTF-8 is read: byte 1 of line 1 is 0xff."),
            ("text".encode("utf-16-le"), "binary or UTF-16; only UTF-8 is read: byte 2 of line 1 is 0x00."),
            (b'text\n{"text": "a\0"}\n', "binary or UTF-16; only UTF-8 is read: byte 12 of line 2 is 0x00."),
            (b"\xef\xbb\xbf\xfe", "not UTF-8; only UTF-8 is read: byte 1 of line 1 is 0xfe."),
        ],
        ids=["latin-1", "utf-16", "utf-16 unmarked", "nul", "after mark"],
    )
    def test_what_is_not_utf_8_is_refused_by_byte_and_line(self, write, read, content, expected):
        """Fault 3: the error names the file, the line, the byte and a command that converts."""
        if read is READERS["jsonl"]:
            content = content.replace(b"text\n", b"\n")
        path = write("a b.txt", content)
        with pytest.raises(InputError) as caught:
            list(read(path))
        assert f"{path} is {expected}" == caught.value.problem
        assert caught.value.origin.startswith(f"{path}:")
        encoding = "UTF-16" if "UTF-16" in expected else "LATIN1"
        assert f"iconv -f {encoding} -t UTF-8 '{path}' > converted.txt" in caught.value.hint

    @every_reader
    def test_a_dash_reads_the_given_stream(self, read):
        """The source is "-", and an error calls it what it is."""
        good = {"jsonl": b'{"text": "x"}', "csv": b"text\nx"}
        name = next(name for name, reader in READERS.items() if reader is read)
        [document] = read("-", stdin=io.BytesIO(good.get(name, b"x")))
        assert ("x", "-") == (document.text, document.source)
        with pytest.raises(InputError, match=r"^<stdin> is not UTF-8"):
            list(read("-", stdin=io.BytesIO(b"\xff\n")))

    def test_a_dash_reads_standard_input(self, monkeypatch):
        """Without a stream it is the process's own."""
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("é\n".encode()), encoding="latin-1"))
        assert [Document("é", "-", 1)] == list(read_lines("-"))

    def test_a_given_stream_stays_open(self):
        """It belongs to whoever gave it."""
        stream = io.BytesIO(b"a\n")
        list(read_lines("-", stdin=stream))
        assert not stream.closed

    @every_reader
    def test_a_path_that_cannot_be_read_is_named(self, tmp_path, read):
        """A file that is missing, and a name that no file can have."""
        with pytest.raises(InputError, match=r"nothing\.txt cannot be read: No such file"):
            list(read(tmp_path / "nothing.txt"))
        with pytest.raises(InputError, match=r"cannot be read: embedded null"):
            list(read("a\0b"))

    @every_reader
    def test_a_directory_is_refused(self, tmp_path, read):
        """The error says what is due instead."""
        with pytest.raises(InputError) as caught:
            list(read(tmp_path))
        assert f"{tmp_path} is a directory, where a file is due." == caught.value.problem
        assert str(tmp_path / "*.txt") in caught.value.hint

    @pytest.mark.parametrize(
        ("read", "line"),
        [(read_lines, b"text\n"), (READERS["jsonl"], b'{"text": "text"}\n'), (READERS["csv"], b"text\n")],
        ids=["lines", "jsonl", "csv"],
    )
    def test_an_endless_stream_is_read_as_far_as_it_is_used(self, read, line):
        """Fault 64: lazily, so that memory does not grow with the input."""
        endless = Endless(line)
        documents = list(itertools.islice(read("-", stdin=endless), 1000))
        assert ["text"] * 1000 == [document.text for document in documents]
        assert 1000 + (b"text\n" == line and read is not read_lines) == endless.n_read

    def test_the_file_is_closed_when_reading_stops_early(self, write):
        """On Windows an open file cannot be replaced."""
        documents = read_lines(write("a.txt", "one\ntwo\n"))
        next(documents)
        stream = documents.gi_frame.f_locals["stream"]
        documents.close()
        assert stream.closed


class TestFindTextFiles:
    """`find_text_files`."""

    def find(self, root, *paths):
        """Give what is found, as paths below *root*."""
        return [path.relative_to(root).as_posix() for path in find_text_files(paths or [root])]

    def test_a_directory_is_walked_in_order(self, write, tmp_path):
        """Files of a directory first, then what lies deeper, each sorted by name: the same on each machine."""
        for name in ("b.txt", "a.md", "d/z.py", "d/c/y", "c/x.rst"):
            write(name, "text")
        assert ["a.md", "b.txt", "c/x.rst", "d/z.py", "d/c/y"] == self.find(tmp_path)

    def test_what_nobody_wrote_is_left_out(self, write, tmp_path):
        """Hidden things, caches, installed packages and virtual environments are walked only when they are named."""
        for name in (".git/config", ".hidden", "__pycache__/a.txt", "node_modules/a.js", "venv/lib/a.py", "seen.txt"):
            write(name, "text")
        write("venv/pyvenv.cfg", "home = x")
        assert ["seen.txt"] == self.find(tmp_path)
        named = [tmp_path / ".git", tmp_path / ".hidden", tmp_path / "venv", tmp_path / "node_modules"]
        expected = [".git/config", ".hidden", "venv/pyvenv.cfg", "venv/lib/a.py", "node_modules/a.js"]
        assert expected == self.find(tmp_path, *named)

    def test_only_what_begins_like_text_is_found_in_a_directory(self, write, tmp_path):
        """A file that is named is taken as it is, so that its reader refuses it."""
        write("nul.bin", b"a\0b")
        latin = write("latin.txt", b"caf\xe9")
        write("utf16.txt", "text".encode("utf-16"))
        write("cut.txt", b"ab\xc3")
        write("empty.txt", b"")
        write("late.txt", b"x" * 9000 + b"\0")
        for shift in range(3):
            write(f"long{shift}.txt", "x" * shift + "€" * 4000)
        assert ["empty.txt", "late.txt", "long0.txt", "long1.txt", "long2.txt"] == self.find(tmp_path)
        assert ["latin.txt"] == self.find(tmp_path, latin)

    def test_each_file_is_found_once(self, write, tmp_path):
        """Also when it is named twice, in two ways, or by a link; the first place counts."""
        path = write("d/a.txt", "text")
        write("d/b.txt", "text")
        assert ["d/b.txt", "d/a.txt"] == self.find(
            tmp_path, tmp_path / "d" / "b.txt", tmp_path, path, tmp_path / "d" / ".." / "d" / "a.txt"
        )

    @pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
    def test_links_make_no_circle(self, write, tmp_path):
        """A link to a directory is followed when it is named, a link to a file is the file, a dead one is nothing."""
        write("d/a.txt", "text")
        (tmp_path / "d" / "up").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "d" / "self").symlink_to(tmp_path / "d" / "self")
        (tmp_path / "d" / "dead").symlink_to(tmp_path / "gone")
        (tmp_path / "d" / "same.txt").symlink_to(tmp_path / "d" / "a.txt")
        assert ["d/a.txt"] == self.find(tmp_path)
        assert ["d/up/d/a.txt"] == self.find(tmp_path, tmp_path / "d" / "up")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
    def test_a_named_pipe_does_not_block(self, write, tmp_path):
        """Opening it would wait for a writer for ever."""
        write("a.txt", "text")
        os.mkfifo(tmp_path / "pipe")
        assert ["a.txt"] == self.find(tmp_path)

    @pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions are those of POSIX")
    def test_what_is_unreadable_is_left_out_and_logged(self, caplog):
        """One file or directory without permission does not end a search; naming it does."""
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            root.chmod(0o755)
            (root / "a.txt").write_text("text", encoding="utf-8")
            (root / "b.txt").write_text("text", encoding="utf-8")
            (root / "b.txt").chmod(0)
            (root / "c").mkdir(mode=0)
            with as_nobody(), caplog.at_level(logging.WARNING, "embedkit"):
                assert ["a.txt"] == self.find(root)
                with pytest.raises(InputError, match=r"b\.txt cannot be read: Permission denied"):
                    read_whole(root / "b.txt")
                with pytest.raises(InputError, match=r"c.x cannot be read: Permission denied"):
                    find_text_files([root / "c" / "x"])
                with pytest.raises(InputError, match=r"c.x cannot be read: Permission denied"):
                    read_whole(root / "c" / "x")
            expected = [f"{root / left} was left out: Permission denied" for left in ("b.txt", "c")]
            assert expected == caplog.messages

    def test_a_dash_stays_a_dash(self, write):
        """Standard input can be searched beside files."""
        path = write("a.txt", "text")
        assert ["-", path] == [str(found) for found in find_text_files(["-", path, "-"])]

    def test_paths_that_do_not_exist_are_named_together(self, write, tmp_path):
        """A misspelt path is not an empty result."""
        with pytest.raises(InputError) as caught:
            find_text_files([tmp_path / "x", write("a.txt", "text"), tmp_path / "y"])
        assert f"There is no file or directory {tmp_path / 'x'}, {tmp_path / 'y'}." == caught.value.problem


def test_a_field_that_holds_json_text_is_read_as_text(write):
    """Fault 65: an escaped lone surrogate passes through here, for the embedder to refuse by position."""
    path = write("a.jsonl", json.dumps({"text": "a\ud800"}))
    assert "a\ud800" == next(read_jsonl(path, "text")).text
